"""InfoNCE and its relatives on scores: torch's cross entropy and written-out sums are the oracles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from zoo.losses import InfoNCE, dcl, info_nce, logits, multi_positive_nce

LOSSES = pytest.mark.parametrize("loss", [info_nce, multi_positive_nce, dcl])


def _scores(b=5, p=1, m=7, seed=0):
    drawn = torch.rand(b, p + m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return [part.clone().requires_grad_() for part in drawn.split([p, m], 1)]


def _mask(b=5, m=7, seed=1):
    mask = torch.rand(b, m, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, 0] = True
    return mask


def _per_row(loss, positives, negatives, weight, temperature):
    """The mean over rows of an explicit formula on the negatives that remain."""
    rows = []
    for s, n, w in zip(positives, negatives, weight.double(), strict=True):
        up, down = (s / temperature).exp(), (w * (n / temperature).exp()).sum()
        if loss is info_nce:
            rows.append((-(up / (up + down)).log()).mean())
        elif loss is multi_positive_nce:
            rows.append(-(up.sum() / (up.sum() + down)).log())
        else:
            rows.append((down.log() - s / temperature).mean())
    return torch.stack(rows).mean()


@settings(max_examples=25)
@given(b=st.integers(1, 6), m=st.integers(0, 9), temperature=st.floats(0.02, 2), seed=st.integers(0, 999))
def test_info_nce_is_torchs_cross_entropy_in_value_and_gradient(b, m, temperature, seed):
    positives, negatives = _scores(b, 1, m, seed)
    mine = info_nce(positives, negatives, temperature=temperature)
    both = torch.cat([positives, negatives], 1) / temperature
    theirs = cross_entropy(both, torch.zeros(b, dtype=torch.long))
    torch.testing.assert_close(mine, theirs)
    for one, two in zip(*(torch.autograd.grad(x, (positives, negatives)) for x in (mine, theirs)), strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(logits(positives, negatives, None, temperature), both)


@LOSSES
@settings(max_examples=15)
@given(p=st.integers(1, 3), seed=st.integers(0, 999))
def test_formula_with_masks_weights_and_several_positives(loss, p, seed):
    positives, negatives = _scores(p=p, seed=seed)
    mask = _mask(seed=seed)
    weight = mask * torch.rand(5, 7, dtype=torch.float64) * 3
    for w in (mask, weight):
        torch.testing.assert_close(
            loss(positives, negatives, w, 0.2), _per_row(loss, positives, negatives, w, 0.2), check_dtype=False
        )


@LOSSES
@pytest.mark.parametrize("p", [1, 3])
def test_gradient_is_that_of_finite_differences(loss, p):
    positives, negatives = _scores(p=p)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mask = _mask()
    assert torch.autograd.gradcheck(lambda s, n, t: loss(s, n, mask, t), (positives, negatives, temperature))


@LOSSES
def test_order_of_negatives_and_of_rows_does_not_matter(loss):
    positives, negatives = _scores()
    mask, columns, rows = _mask(), torch.randperm(7), torch.randperm(5)
    want = loss(positives, negatives, mask)
    torch.testing.assert_close(loss(positives, negatives[:, columns], mask[:, columns]), want)
    torch.testing.assert_close(loss(positives[rows], negatives[rows], mask[rows]), want)


@LOSSES
def test_row_loss_reads_its_own_row_only(loss):
    positives, negatives = _scores()
    alone = torch.stack([loss(positives[i : i + 1], negatives[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(loss(positives, negatives), alone.mean())


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [torch.bool, torch.float32])
def test_fully_masked_row_has_zero_loss_and_gradient(loss, dtype, weight):
    temperature = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    positives, negatives = (x.detach().to(dtype).requires_grad_() for x in _scores(3))
    mask = torch.tensor([True, False, True])[:, None].expand(3, 7).to(weight)
    value = loss(positives, negatives, mask, temperature)
    torch.testing.assert_close(3 * value, 2 * loss(positives[::2], negatives[::2], temperature=temperature))
    gradients = torch.autograd.grad(value, (positives, negatives, temperature))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][1].any() and not gradients[1][1].any()
    assert loss(positives[1:2], negatives[1:2], mask[1:2]) == 0


@LOSSES
def test_learned_temperature_sees_only_what_is_not_masked(loss):
    positives, negatives = _scores()
    negatives = negatives.detach()
    negatives[:, 3:] = 1e4
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(7).expand(5, 7) < 3
    masked, dropped = (
        loss(positives, negatives, mask, temperature),
        loss(positives, negatives[:, :3], None, temperature),
    )
    torch.testing.assert_close(masked, dropped)
    want = torch.autograd.grad(dropped, temperature)
    torch.testing.assert_close(torch.autograd.grad(masked, temperature), want)


def test_module_learns_log_temperature_or_has_no_parameter():
    positives, negatives = _scores()
    learned, fixed = InfoNCE(0.2, learn_temperature=True).double(), InfoNCE(0.2)
    torch.testing.assert_close(learned(positives, negatives, _mask()), fixed(positives, negatives, _mask()))
    torch.testing.assert_close(fixed(positives, negatives), info_nce(positives, negatives, None, 0.2))
    assert not list(fixed.parameters()) and len(list(learned.parameters())) == 1
    learned(positives, negatives, _mask()).backward()
    assert learned.log_temperature.grad.isfinite() and learned.log_temperature.grad != 0


@LOSSES
@settings(max_examples=15)
@given(counts=st.lists(st.integers(0, 3), min_size=7, max_size=7).filter(any), seed=st.integers(0, 99))
def test_float_weight_is_that_many_copies(loss, counts, seed):
    positives, negatives = _scores(seed=seed)
    times = torch.tensor(counts)
    weighted = loss(positives, negatives, times.double().expand(5, 7))
    repeated = loss(positives, negatives.repeat_interleave(times, 1))
    torch.testing.assert_close(weighted, repeated)
    gradients = [torch.autograd.grad(x, negatives)[0] for x in (weighted, repeated)]
    torch.testing.assert_close(*gradients)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [None, torch.bool, torch.float16])
def test_half_precision_scores_are_widened(loss, dtype, weight):
    positives, negatives = (x.detach().to(dtype) for x in _scores())
    weight = None if weight is None else _mask().to(weight)
    value = loss(positives, negatives, weight, 0.07)
    assert value.dtype == torch.float32
    assert value == loss(positives.float(), negatives.float(), weight, 0.07)


@LOSSES
def test_further_negatives_only_increase_the_loss(loss):
    positives, negatives = _scores(m=20)
    values = [loss(positives, negatives[:, :m]).item() for m in range(1, 21)]
    assert values == sorted(values) and values[0] < values[-1]


def test_masked_positives_are_absent_and_rows_without_any_count_nothing():
    positives, negatives = _scores(p=4)
    some = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]) > 0
    rows = [
        multi_positive_nce(positives[i : i + 1, some[i]], negatives[i : i + 1]) if some[i].any() else torch.zeros(())
        for i in range(5)
    ]
    for weight in (some, some.double()):
        value = multi_positive_nce(positives, negatives, positive_weight=weight)
        torch.testing.assert_close(value, torch.stack([r.double() for r in rows]).mean())
        for gradient in torch.autograd.grad(value, (positives, negatives)):
            assert not gradient[2].any() and gradient.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_is_that_of_cross_entropy(smoothing):
    scores = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(
        scores / 0.2, torch.zeros(5, dtype=torch.int64), label_smoothing=smoothing
    )
    loss = info_nce(scores[:, :1], scores[:, 1:], temperature=0.2, label_smoothing=smoothing)
    assert torch.allclose(loss, expected)
    padded = torch.cat([scores[:, 1:], torch.full((5, 3), 9.0, dtype=torch.float64)], 1)
    mask = torch.arange(9) < 6
    assert torch.allclose(info_nce(scores[:, :1], padded, mask.expand(5, 9), 0.2, smoothing), expected)


def test_a_learned_temperature_is_held_in_its_range():
    loss = InfoNCE(0.07, learn_temperature=True, min_temperature=0.01)
    for wanted, held in ((0.001, 0.01), (5.0, 1.0), (0.3, 0.3)):
        loss.log_temperature.data.fill_(wanted).log_()
        loss.clamp()
        assert loss.temperature.item() == pytest.approx(held)
