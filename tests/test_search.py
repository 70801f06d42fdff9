"""Exact search against sorting all scores, and the approximate indexes against exact search."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import search
from zoo.errors import ZooError
from zoo.search import faiss_top_k, top_k


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute(queries, corpus, k):
    """Scores and ids by (-score, id), in Python."""
    scores = (queries.double() @ corpus.double().T).tolist()
    order = [sorted(range(len(row)), key=lambda j: (-row[j], j))[:k] for row in scores]
    return [[row[j] for j in ids] for row, ids in zip(scores, order, strict=True)], order


@pytest.fixture(params=[(torch.bfloat16, search._BFLOAT16), (torch.float32, search._BFLOAT16), (torch.float32, 2**-22)])
def rough(request, monkeypatch):
    """Whatever the processor, all precisions of the rough pass."""
    monkeypatch.setattr(search, "_rough", lambda device: request.param)


def test_float32_products_are_not_trusted_where_they_may_be_made_of_less(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert search._rough(torch.device("cpu")) == (torch.float32, 2**-22)
    assert search._rough(torch.device("cuda")) == (torch.float32, search._BFLOAT16)
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        assert search._rough(torch.device("cpu")) == (torch.float32, search._BFLOAT16)
    finally:
        matmul.fp32_precision = before


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@settings(max_examples=20)  # 240 over all precisions
@given(st.integers(1, 90), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 99), st.data())
def test_equals_a_full_sort_with_ties(dtype, n, q, d, limit, seed, data):
    g = torch.Generator().manual_seed(seed)
    queries, corpus = (torch.randint(-limit, limit + 1, (rows, d), generator=g).to(dtype) for rows in (q, n))
    k = data.draw(st.integers(1, n) | st.just(n))
    chunks = data.draw(st.sampled_from([1, 3, q])), data.draw(st.sampled_from([1, 3, 32, n, n + 5]))
    scores, ids = top_k(queries, corpus, k, *chunks)
    assert (scores.tolist(), ids.tolist()) == brute(queries, corpus, k)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize("common", [0.0, 30.0])  # an untrained encoder's embeddings lie close together
@pytest.mark.parametrize(("k", "chunk"), [(5, 3000), (5, 700), (200, 700), (200, 100)])
def test_finds_what_the_rough_pass_cannot_tell_apart(common, k, chunk):
    queries, corpus = (
        seeded(20, 24) + common,
        seeded(3000, 24, seed=1) * 0.5 ** (torch.arange(3000) % 3)[:, None] + common,
    )
    corpus[1000:2000] = corpus[:1000] + 1e-3 * seeded(1000, 24, seed=2)  # neighbours within bfloat16's error
    scores, ids = top_k(queries, corpus, k, 7, chunk)
    exact = queries.double() @ corpus.double().T
    expected = exact.sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(exact.gather(1, ids), expected, rtol=1e-6, atol=1e-5)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.usefixtures("rough")
def test_chunks_change_no_bit_and_equal_documents_keep_their_order():
    queries, half = seeded(9, 33), seeded(500, 33, seed=1)
    corpus = torch.cat([half, half])
    scores, ids = top_k(queries, corpus, 40)
    assert (ids[:, 1::2] == ids[:, ::2] + 500).all() and torch.equal(scores[:, 1::2], scores[:, ::2])
    for chunks in ((1, 1000), (4, 64), (9, 7)):
        other = top_k(queries, corpus, 40, *chunks)
        assert torch.equal(other[0], scores) and torch.equal(other[1], ids)


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_embeddings_does_not_matter(scale):
    queries, corpus = seeded(4, 16), seeded(600, 16, seed=1)
    assert torch.equal(top_k(queries * scale, corpus, 9)[1], top_k(queries, corpus, 9)[1])
    assert torch.equal(top_k(queries, corpus * scale, 9)[1], top_k(queries, corpus, 9)[1])


@pytest.mark.usefixtures("rough")
def test_half_precision_is_widened_before_it_is_multiplied():
    corpus = torch.tensor([[256.0, 0.0], [256.0, 1.0]], dtype=torch.bfloat16)  # 257 is no bfloat16
    scores, ids = top_k(torch.ones(1, 2, dtype=torch.bfloat16), corpus, 2)
    assert scores.tolist() == [[257, 256]] and ids.tolist() == [[1, 0]]


@pytest.mark.parametrize("find", [top_k, faiss_top_k])
@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_corpus_is_an_error(find, k):
    with pytest.raises(ZooError, match=f"k = {k} of 3 documents"):
        find(torch.ones(1, 2), torch.ones(3, 2), k)


@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_that_are_not_finite_are_an_error(side):
    pair = seeded(3, 2), seeded(9, 2)
    pair[side][1, 1] = torch.nan
    with pytest.raises(ZooError, match="not finite"):
        top_k(*pair, 2)


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_approximate_indexes_find_nearly_the_same(index):
    pytest.importorskip("faiss")
    corpus = torch.nn.functional.normalize(seeded(2000, 8), dim=1)
    scores, ids = faiss_top_k(corpus[:50], corpus, 5, index)
    exact = top_k(corpus[:50], corpus, 5)[1]
    assert (ids[:, :, None] == exact[:, None]).any(2).float().mean() > 0.9
    torch.testing.assert_close(scores, (corpus[:50, None] * corpus[ids]).sum(2))
    assert ids.dtype == torch.int64


def test_missing_faiss_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ZooError, match=r"pip install negatives-zoo\[ann\]$"):
        faiss_top_k(torch.ones(1, 2), torch.ones(3, 2), 1)
