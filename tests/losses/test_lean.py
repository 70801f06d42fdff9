"""InfoNCE from embeddings: the plain form on the full matrix, in float64, is the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import InfoNCE, info_nce, normalize
from zoo.losses.lean import KeyMask, lean_info_nce


def world(b, m, k=3, seed=0):
    """Queries, documents, and further negatives of each query, unit-norm; positives; keys of both sides; a mask."""
    draw = torch.Generator().manual_seed(seed)
    q, d, n = (normalize(torch.randn(*s, 5, generator=draw, dtype=torch.float64)) for s in ((b,), (m,), (b, k)))
    keys = KeyMask(*(torch.randint(-1, 5, (rows, 2), generator=draw) for rows in (b, m)))
    return q, d, n, torch.randperm(m, generator=draw)[:b], keys, torch.rand(b, k, generator=draw) < 0.6


def mask_of(keys):
    """Pair by pair: which documents are negatives of which queries."""
    return torch.tensor(
        [
            [bool(mine := set(d) - {-1}) and not mine & set(q) for d in keys.documents.tolist()]
            for q in keys.queries.tolist()
        ]
    )


def plain(q, d, own, keys=None, temperature=0.1, smoothing=0.0, more=None, more_mask=None):
    """The same loss from the full matrix."""
    scores = q @ d.T
    mask = (torch.ones_like(scores, dtype=torch.bool) if keys is None else mask_of(keys).to(q.device)).scatter(
        1, own[:, None], False
    )
    positives = scores.gather(1, own[:, None])
    if more is not None:
        scores = torch.cat([scores, (q[:, None] * more).sum(2)], 1)
        mask = torch.cat([mask, torch.ones(more.shape[:2], dtype=torch.bool) if more_mask is None else more_mask], 1)
    return info_nce(positives, scores, mask, temperature, smoothing)


def gradients(loss, leaves):
    return torch.autograd.grad(3 * loss, leaves)


@settings(max_examples=60)
@given(
    b=st.integers(1, 6),
    spare=st.integers(0, 5),
    chunk=st.sampled_from([1, 2, 4, None]),
    smoothing=st.sampled_from([0.0, 0.1]),
    keyed=st.booleans(),
    further=st.sampled_from(["none", "all", "some"]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_are_those_of_the_full_matrix(b, spare, chunk, smoothing, keyed, further, seed):
    q, d, n, own, keys, mask = world(b, b + spare, seed=seed)
    temperature = torch.tensor(0.2, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (q, d, temperature, n)][: 4 if further != "none" else 3]
    arguments = (
        *(q, d, own, keys if keyed else None, temperature, smoothing),
        *(None if further == "none" else n, mask if further == "some" else None),
    )
    found, wanted = lean_info_nce(*arguments, chunk=chunk), plain(*arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    for x, y in zip(gradients(found, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_agree_with_float64(dtype):
    q, d, n, own, keys, mask = world(40, 50)
    narrow = [x.to(dtype).requires_grad_() for x in (q, d, n)]
    wide = [x.detach().double().requires_grad_() for x in narrow]  # of what the narrow type holds
    found = lean_info_nce(*narrow[:2], own, keys, 0.1, 0.1, narrow[2], mask)
    wanted = plain(*wide[:2], own, keys, 0.1, 0.1, wide[2], mask)
    assert found.dtype == torch.float32 and narrow[0].dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8  # gradients are rounded to the leaves' type
    for x, y in zip(gradients(found, narrow), gradients(wanted, wide), strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=1e-6)


def test_the_roles_turned_around_give_the_symmetric_form():
    q, d, _, _, keys, _ = world(6, 6)
    own = torch.arange(6)
    leaves = [q.requires_grad_(), d.requires_grad_()]
    turned = KeyMask(keys.documents, keys.queries)
    found = (lean_info_nce(q, d, own, keys) + lean_info_nce(d, q, own, turned)) / 2
    scores, mask = q @ d.T, mask_of(keys)
    apart = ~torch.eye(6, dtype=torch.bool)
    padding = (keys.queries < 0).all(1)  # a query without keys is nobody's negative, either
    other = (mask | (keys.documents < 0).all(1)) & ~padding[:, None]
    forward = info_nce(scores.diag()[:, None], scores, mask & apart)
    wanted = (forward + info_nce(scores.diag()[:, None], scores.T, other.T & apart)) / 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients(found, leaves), gradients(wanted, leaves), rtol=0, atol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_query_without_negatives_has_no_loss_and_no_gradient(smoothing, dtype):
    q, d, n, own, _, mask = world(4, 6)
    same = KeyMask(
        torch.tensor([[1], [1], [1], [2]]), torch.ones(6, 1, dtype=torch.long)
    )  # only the last has negatives
    mask = torch.zeros_like(mask)
    mask[2] = True  # and the third, of its own
    q, d, n = (x.to(dtype) for x in (q, d, n))
    first = slice(0, 2)
    q.requires_grad_()
    alone = lean_info_nce(
        q[first], d, own[first], KeyMask(same.queries[first], same.documents), 0.1, smoothing, n[:2], mask[:2]
    )
    assert alone.item() == 0
    lean_info_nce(q, d, own, same, 0.1, smoothing, n, mask).backward()
    assert q.grad[:2].count_nonzero() == 0 and (q.grad[2:].abs().sum(1) > 1e-3).all()


def test_a_learned_temperature_gets_its_gradient_in_the_module():
    q, d, n, own, keys, mask = world(5, 8)
    loss = InfoNCE(0.3, learn_temperature=True, label_smoothing=0.1).double()
    found = loss.lean(q, d, own, keys, n, mask)
    wanted = plain(q, d, own, keys, loss.temperature, 0.1, n, mask)
    torch.testing.assert_close(found, wanted)
    leaves = [loss.log_temperature]
    (gradient,) = gradients(found, leaves)
    torch.testing.assert_close(gradient, *gradients(wanted, leaves))
    assert gradient.abs() > 1e-3


def largest_tensor(b, dim, **kwargs):
    """Elements of the largest tensor that value and gradient make."""
    q, d = (normalize(torch.randn(b, dim)).requires_grad_() for _ in range(2))
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor))
            return out

    keys = torch.arange(b)[:, None]
    with Watch():
        lean_info_nce(q, d, keys[:, 0], KeyMask(keys, keys), **kwargs).backward()
    return max(sizes)


def test_no_tensor_of_the_whole_matrix_is_made(monkeypatch):
    assert largest_tensor(512, 8, chunk=32) == 512 * 32
    assert largest_tensor(1024, 8) == 1024 * 512
    monkeypatch.setattr("zoo.losses.lean.TILE_BYTES", 2**14)
    assert [largest_tensor(b, 16) for b in (256, 512)] == [2**12, 2**13]  # the tile's bytes, then the embeddings
