import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.losses import info_nce, normalize
from zoo.losses.lean import lean_info_nce


def world(b, m, seed=0):
    draw = torch.Generator().manual_seed(seed)
    queries, documents = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (b, m))
    own = torch.randperm(m, generator=draw)[:b]
    counted = torch.rand(b, m, generator=draw) < 0.7
    return queries, documents, own, counted


def dense(queries, documents, own, counted, temperature, smoothing):
    q, d = normalize(queries), normalize(documents)
    scores = q @ d.T
    mask = counted.clone().scatter_(1, own[:, None], False)
    return info_nce(scores.gather(1, own[:, None]), scores, mask, temperature, smoothing)


@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 8), st.sampled_from([0.0, 0.1]), st.integers(0, 99))
def test_value_and_gradients_are_those_of_the_full_matrix(b, more, chunk, smoothing, seed):
    queries, documents, own, counted = world(b, b + more, seed)
    temperature = torch.tensor(0.2, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (queries, documents, temperature)]
    expected = dense(queries, documents, own, counted, temperature, smoothing)
    loss = lean_info_nce(
        normalize(queries), normalize(documents), own, lambda rows: counted[rows], temperature, smoothing, chunk
    )
    assert torch.allclose(loss, expected, atol=1e-12)
    found, wanted = (torch.autograd.grad(3 * x, leaves) for x in (loss, expected))
    for x, y in zip(found, wanted, strict=True):
        assert torch.allclose(x, y, atol=1e-10)


def test_a_query_without_negatives_has_no_loss():
    queries, documents, own, counted = world(3, 4)
    nothing = torch.zeros_like(counted)
    queries.requires_grad_()
    loss = lean_info_nce(normalize(queries), normalize(documents), own, lambda rows: nothing[rows])
    loss.backward()
    assert loss.item() == 0 and queries.grad.abs().max() < 1e-12


def test_half_precision_is_widened():
    queries, documents, own, counted = world(4, 6)
    q, d = normalize(queries).bfloat16().requires_grad_(), normalize(documents).bfloat16()
    loss = lean_info_nce(q, d, own, lambda rows: counted[rows])
    loss.backward()
    wide = lean_info_nce(q.detach().float(), d.float(), own, lambda rows: counted[rows])
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wide.item()) and q.grad.dtype == torch.bfloat16


def test_no_tensor_of_the_whole_matrix_is_made():
    b, chunk = 512, 32
    queries = normalize(torch.randn(b, 8)).requires_grad_()
    documents = normalize(torch.randn(b, 8)).requires_grad_()
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor))
            return out

    with Watch():
        keys = torch.arange(b)
        lean_info_nce(queries, documents, keys, lambda rows: keys[rows, None] != keys, chunk=chunk).backward()
    assert max(sizes) == b * chunk


def test_without_a_mask_every_document_counts():
    queries, documents, own, counted = world(4, 6)
    q, d = normalize(queries), normalize(documents)
    everything = torch.ones_like(counted)
    assert torch.equal(
        lean_info_nce(q, d, own, None, 0.2, 0.1, 3),
        lean_info_nce(q, d, own, lambda rows: everything[rows], 0.2, 0.1, 3),
    )
