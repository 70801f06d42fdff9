"""GroCo: soft sorting against an oracle of explicit comparator matrices, and the loss against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy

from zoo.errors import ZooError
from zoo.losses import GroCo, group_ordering_loss, info_nce
from zoo.losses.soft_sort import comparators, depth, soft_sort
from zoo.methods.siamese import in_batch_candidates
from zoo.negatives import Candidates, HardestNegatives, HardNegativeMixing, Queue

NETWORKS = pytest.mark.parametrize("network", ["odd_even", "bitonic"])


def _rows(b=4, m=7, seed=0):
    return torch.rand(b, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _one_row(x, layers, steepness):
    """Values and permutation of one row, by products of comparator matrices."""
    total = torch.eye(len(x), dtype=x.dtype)
    for layer in layers:
        matrix = torch.eye(len(x), dtype=x.dtype)
        for low, high in layer:
            keep = 0.5 + math.atan(steepness * float(x[high] - x[low])) / math.pi
            matrix[low, low] = matrix[high, high] = keep
            matrix[low, high] = matrix[high, low] = 1 - keep
        x, total = matrix @ x, total @ matrix
    return x, total


def _directional(size):
    """The textbook's bitonic network of a power of two: neighbouring blocks are sorted in opposite directions."""
    layers, span = [], 2
    while span <= size:
        step = span // 2
        while step:
            pairs = [(i, i + step) for i in range(size) if not i & step]
            layers.append([(low, high) if not low & span else (high, low) for low, high in pairs])
            step //= 2
        span *= 2
    return layers


@NETWORKS
@settings(max_examples=25)
@given(m=st.integers(1, 12), steepness=st.floats(0.1, 30), seed=st.integers(0, 99))
def test_soft_sort_is_a_product_of_comparators(network, m, steepness, seed):
    x = _rows(3, m, seed)
    done = soft_sort(x, steepness, network)
    for row, values, permutation in zip(x, done.values, done.permutation(), strict=True):
        want = _one_row(row, comparators(m, network), steepness)
        torch.testing.assert_close((values, permutation), want)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_bitonic_network_is_that_of_the_textbook(size):
    (x,) = _rows(1, size)
    values, permutation = _one_row(x, _directional(size), 2.0)
    done = soft_sort(x[None], 2.0, "bitonic")
    torch.testing.assert_close(done.values[0], values)
    torch.testing.assert_close(done.permutation()[0], permutation)
    assert len(comparators(size, "bitonic")) == math.log2(size) * (math.log2(size) + 1) / 2


@NETWORKS
@pytest.mark.parametrize("m", [1, 2, 5, 8, 11])
def test_networks_sort_every_sequence_of_zeros_and_ones(network, m):
    # By the zero-one principle they then sort everything.
    bits = (torch.arange(2**m)[:, None] >> torch.arange(m) & 1).double()
    torch.testing.assert_close(soft_sort(bits, 1e12, network).values, bits.sort(1).values, atol=1e-6, rtol=0)


@NETWORKS
def test_permutation_is_doubly_stochastic_and_hard_when_steep(network):
    x = _rows(5, 11)
    soft = soft_sort(x.float(), 1.0, network).permutation()
    for axis in (1, 2):
        torch.testing.assert_close(soft.sum(axis), torch.ones(5, 11), atol=1e-5, rtol=0)
    hard = soft_sort(x, 1e9, network).permutation()
    want = torch.nn.functional.one_hot(x.argsort(1).argsort(1), 11)
    torch.testing.assert_close(hard, want.double(), atol=1e-5, rtol=0)
    # Sorted and far apart: nothing moves.
    apart = soft_sort(torch.arange(6.0)[None] * 1e6, 1.0, network).permutation()
    torch.testing.assert_close(apart[0], torch.eye(6), atol=1e-4, rtol=0)


@NETWORKS
def test_expectation_over_ranks_is_the_product_with_the_permutation(network):
    x, functions = _rows(4, 9), torch.randn(9, 3, dtype=torch.float64)
    done = soft_sort(x, 3.0, network)
    torch.testing.assert_close(done.expect(functions), done.permutation() @ functions)


@NETWORKS
def test_part_of_a_row_is_sorted_as_if_alone(network):
    x, sizes = _rows(9, 9), torch.arange(1, 10)
    done = soft_sort(x, 2.0, network, sizes)
    assert depth(sizes, network).tolist() == [len(comparators(m, network)) for m in range(1, 10)]
    for m, row, values, permutation in zip(sizes.tolist(), x, done.values, done.permutation(), strict=True):
        alone = soft_sort(row[None, :m], 2.0, network)
        torch.testing.assert_close(values, torch.cat([alone.values[0], row[m:]]))
        torch.testing.assert_close(permutation[:m, :m], alone.permutation()[0])
        torch.testing.assert_close(permutation[m:, m:], torch.eye(9 - m, dtype=torch.float64))


def _by_definition(positives, negatives, mask, n, steepness, network):
    losses = []
    for p, row, kept in zip(positives, negatives, mask, strict=True):
        hardest = row[kept].sort().values[-n:]
        if len(hardest) == 0:
            losses.append(torch.zeros((), dtype=row.dtype))
            continue
        x = torch.cat([hardest, p.sort().values])
        above = _one_row(x, comparators(len(x), network), steepness)[1][:, len(hardest) :].sum(1).clamp(0, 1)
        losses.append(binary_cross_entropy(above, (torch.arange(len(x)) >= len(hardest)).to(row.dtype)))
    return torch.stack(losses).mean()


@NETWORKS
@settings(max_examples=25)
@given(p=st.integers(1, 4), m=st.integers(1, 9), n=st.integers(1, 6), seed=st.integers(0, 99))
def test_loss_is_its_definition_also_where_negatives_are_few(network, p, m, n, seed):
    positives, negatives = _rows(6, p, seed), _rows(6, m, seed + 1)
    mask = torch.rand(6, m, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[0], mask[1] = True, False
    got = group_ordering_loss(positives, negatives, mask, n, 2.0, network)
    torch.testing.assert_close(got, _by_definition(positives, negatives, mask, n, 2.0, network))
    assert GroCo(n, 2.0, network)(positives, negatives, mask.float()) == got
    full = group_ordering_loss(positives, negatives, None, n, 2.0, network)
    assert full == group_ordering_loss(positives, negatives, torch.ones_like(mask), n, 2.0, network)


@NETWORKS
def test_gradient_is_that_of_finite_differences_and_of_counted_negatives_only(network):
    positives, negatives = (x.requires_grad_() for x in (_rows(4, 2), _rows(4, 6, 1)))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]) > 0
    assert torch.autograd.gradcheck(
        lambda p, n: group_ordering_loss(p, n, mask, 3, 2.0, network), (positives, negatives)
    )
    got = torch.autograd.grad(group_ordering_loss(positives, negatives, mask, 3, 2.0, network), (positives, negatives))
    assert not got[0][3].any() and not got[1][3].any()
    hardest = negatives.detach().masked_fill(~mask, -9).argsort(1, descending=True)
    for row, order, kept in zip(got[1][:3], hardest, mask, strict=False):
        assert (row[order[: min(3, int(kept.sum()))]] > 0).all() and not row[order[3:]].any() and not row[~kept].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_stay_finite_in_low_precision_and_at_any_steepness(dtype):
    positives, negatives = -torch.ones(3, 2, dtype=dtype), torch.ones(3, 12, dtype=dtype, requires_grad=True)
    for steepness in (1.0, 1e6):
        loss = group_ordering_loss(positives, negatives, steepness=steepness)
        (gradient,) = torch.autograd.grad(loss, negatives)
        assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()


def test_order_of_negatives_and_positives_does_not_matter():
    positives, negatives = _rows(5, 3), _rows(5, 14, 1)
    want = group_ordering_loss(positives, negatives)
    got = group_ordering_loss(positives[:, torch.randperm(3)], negatives[:, torch.randperm(14)])
    torch.testing.assert_close(got, want)


@NETWORKS
def test_loss_falls_as_a_positive_rises_above_the_hardest_negative(network):
    negatives = _rows(1, 12).clamp(-0.5, 0.5)
    losses = [
        group_ordering_loss(torch.full((1, 1), s), negatives.float(), network=network) for s in (-0.6, 0.0, 0.6, 1.0)
    ]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1] + 0.02


def test_floor_at_steepness_one():
    # The best that cosines can do: no comparison is certain, and the loss says so.
    best = group_ordering_loss(torch.ones(1, 1), -torch.ones(1, 10))
    worse = group_ordering_loss(torch.ones(1, 1), -torch.ones(1, 10) + torch.rand(1, 10) * 0.1)
    assert 0.1 < best < worse


def test_sorting_no_negatives_is_one_line():
    with pytest.raises(ZooError, match="at least one negative"):
        GroCo(n_negatives=0)(torch.zeros(2, 1), torch.zeros(2, 3))


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_reaches_candidates_only_without_stop_gradient(detach):
    views = [_rows(12, 5, seed).requires_grad_() for seed in range(3)]
    x = in_batch_candidates(views, torch.arange(12), detach, "same", anchors=range(1))
    gradients = torch.autograd.grad(group_ordering_loss(*x.scores()), views, allow_unused=True, materialize_grads=True)
    assert gradients[0].any() and all(g.any() != detach for g in gradients[1:])


def test_nt_xent_over_the_ten_hardest_negatives_can_be_told_from_sorting():
    x = in_batch_candidates([_rows(16, 5), _rows(16, 5, 1)], torch.arange(16), True, "same")
    x = HardestNegatives(10)(x)
    positives, negatives, mask = x.scores()
    assert (mask.sum(1) == 10).all()
    torch.testing.assert_close(
        group_ordering_loss(positives, negatives, mask), group_ordering_loss(positives, negatives, mask, 15)
    )
    hard = negatives[mask].view(32, 10)
    torch.testing.assert_close(info_nce(positives, negatives, mask, 0.5), info_nce(positives, hard, None, 0.5))


def test_mixed_negatives_are_sorted_along():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    queue = Queue(64, 8)
    x = Candidates(unit(torch.randn(6, 8)), unit(torch.randn(6, 8)), queue.rows, queue.mask(torch.arange(6)))
    mixed = HardNegativeMixing(n_hard=16, n_mix=8, n_query_mix=8)(x)
    assert mixed.scores()[1].shape == (6, 80)
    # Mixes with the query are its hardest negatives: the border moves up.
    assert group_ordering_loss(*mixed.scores()) > group_ordering_loss(*x.scores())
