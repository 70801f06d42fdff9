"""Distillation, regression and Matryoshka losses: invariants of the papers, with written-out sums as oracles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div

from zoo.errors import ZooError
from zoo.losses import (
    DualMarginMSE,
    EmbeddingRegression,
    KLDistillation,
    MarginMSE,
    Matryoshka,
    RewardDistillation,
    embedding_regression,
    in_batch_margin_mse,
    info_nce,
    kl_distillation,
    margin_mse,
    normalize,
    stabilised_distillation,
)


def _drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def _constants(rows, seed=9):
    return _drawn(rows, 1, seed=seed).detach() * 10


def _gradient(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


def test_margin_mse_is_the_mean_of_squared_margin_differences_over_what_is_kept():
    s, n, t, m = _drawn(3, 1), _drawn(3, 4, seed=1), _drawn(3, 1, seed=2), _drawn(3, 4, seed=3)
    values = [x.tolist() for x in (s, n, t, m)]
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]) > 0
    rows = [
        (p - n_k - (q - m_k)) ** 2
        for (p,), ns, (q,), ms, kept in zip(*values, mask.tolist(), strict=True)
        for n_k, m_k, k in zip(ns, ms, kept, strict=True)
        if k
    ]
    value = margin_mse(s, n, t, m.detach().masked_fill(~mask, -torch.inf), mask)
    assert value.item() == pytest.approx(sum(rows) / 5)
    gradient_s, gradient_n = _gradient(value, s, n)
    assert not gradient_s[1].any() and not gradient_n[~mask].any() and gradient_n[mask].all()
    torch.testing.assert_close(MarginMSE()(s, n, t, m, mask), value)
    assert margin_mse(s, n, t, m, mask & False) == 0 == margin_mse(s, n[:, :0], t, m[:, :0])


def test_teachers_row_constants_do_not_matter():
    s, n, t, m = _drawn(4, 4), _drawn(4, 4, seed=1), _drawn(4, 4, seed=2), _drawn(4, 4, seed=3)
    shift = _constants(4)
    torch.testing.assert_close(in_batch_margin_mse(s, n, t + shift, m + shift), in_batch_margin_mse(s, n, t, m))
    pair = s[:, :1], n[:, :1]
    torch.testing.assert_close(
        margin_mse(*pair, t[:, :1] + shift, m[:, :1] + shift), margin_mse(*pair, t[:, :1], m[:, :1])
    )


def test_a_student_that_has_learnt_the_teacher_up_to_row_constants_has_no_loss_and_no_gradient():
    s, n = _drawn(4, 4), _drawn(4, 4, seed=1)
    shift = _constants(4)
    t, m = s.detach() + shift, n.detach() + shift
    pair = [x.diagonal()[:, None] + _constants(4, seed=8) for x in (t, m)]
    value = DualMarginMSE()(s, n, *pair, t, m)
    assert value.item() == pytest.approx(0, abs=1e-20)
    assert all(g.abs().max() < 1e-10 for g in _gradient(value, s, n))


def test_in_batch_part_leaves_out_the_own_pair_wherever_its_column_is():
    s, n, t, m = (_drawn(4, 4, seed=i) for i in range(4))
    value = in_batch_margin_mse(s, n, t, m)
    parts = [
        ((s[i, i] - x[i, j]) - (t[i, i] - y[i, j])) ** 2
        for x, y in ((s, t), (n, m))
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    torch.testing.assert_close(value, torch.stack(parts).mean())
    assert not _gradient(value, n)[0].diagonal().any()
    halves = [in_batch_margin_mse(*(x[at : at + 2] for x in (s, n, t, m)), first=at) for at in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, value)
    assert in_batch_margin_mse(*(x[:1, :1] for x in (s, n, t, m))) == 0


@settings(max_examples=20)
@given(a=st.floats(0.05, 3), b=st.floats(0.05, 3), seed=st.integers(0, 99))
def test_kl_is_torchs_and_zero_for_equal_distributions(a, b, seed):
    s, t = _drawn(3, 5, seed=seed), _drawn(3, 5, seed=seed + 1)
    want = kl_div((s / a).log_softmax(1), (t / b).softmax(1), reduction="batchmean")
    torch.testing.assert_close(kl_distillation(s, t, a, b), want)
    torch.testing.assert_close(KLDistillation(a, b, rescale=True)(s, t), want * a * a)
    same = kl_distillation(s, s.detach() * b / a + 3, a, b)
    assert same.item() == pytest.approx(0, abs=1e-12) and _gradient(same, s)[0].abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_without_masked_candidates_is_that_of_a_shorter_list(dtype):
    s, t = (x.detach().to(dtype).requires_grad_() for x in (_drawn(3, 5), _drawn(3, 5, seed=1)))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]) > 0
    value = kl_distillation(s, t, 0.01, 0.1, mask=mask)
    torch.testing.assert_close(value, kl_distillation(s[:2, :3], t[:2, :3], 0.01, 0.1) * 2 / 3)
    (gradient,) = _gradient(value, s)
    assert gradient.isfinite().all() and not gradient[~mask].any() and gradient[0, :3].any()


def _block(b=3, g=4, seed=0):
    """Scores of b queries against all their b * g keys, own columns, rewards."""
    return _drawn(b, b * g, seed=seed), torch.arange(b * g).view(b, g), _drawn(b, g, seed=seed + 1).detach()


def _written_out(scores, own, teacher, temperature):
    """sum_g mean_b w CE(higher-ranked own columns removed), as the paper's code has it."""
    total = torch.zeros((), dtype=scores.dtype)
    for g in range(own.shape[1]):
        logits = (scores / temperature).scatter(1, own[:, :g], -torch.inf)
        total = total + (teacher.softmax(1)[:, g] * cross_entropy(logits, own[:, g], reduction="none")).mean()
    return total


@settings(max_examples=20)
@given(b=st.integers(1, 4), g=st.integers(1, 5), temperature=st.floats(0.02, 2), seed=st.integers(0, 99))
def test_stabilised_distillation_removes_higher_ranked_candidates_in_turn(b, g, temperature, seed):
    scores, own, teacher = _block(b, g, seed)
    columns = torch.randperm(b * g, generator=torch.Generator().manual_seed(seed))
    value = stabilised_distillation(scores, own, teacher, temperature=temperature)
    want = _written_out(scores, own, teacher, temperature)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(_gradient(value, scores), _gradient(want, scores))
    shuffled = stabilised_distillation(scores[:, columns], columns.argsort()[own], teacher, temperature=temperature)
    torch.testing.assert_close(shuffled, value)


def test_stabilised_distillation_of_a_one_hot_reward_or_a_single_candidate_is_info_nce():
    scores, own, _ = _block()
    one_hot = torch.tensor([1e3, 0, 0, 0], dtype=torch.float64).expand(3, 4)
    want = cross_entropy(scores / 0.1, own[:, 0])
    torch.testing.assert_close(stabilised_distillation(scores, own, one_hot, temperature=0.1), want)
    torch.testing.assert_close(stabilised_distillation(scores, own[:, :1], one_hot[:, :1], temperature=0.1), want)


def test_stabilised_distillation_reads_rewards_up_to_a_constant_and_not_the_masked_keys():
    scores, own, teacher = _block()
    value = stabilised_distillation(scores, own, teacher)
    torch.testing.assert_close(stabilised_distillation(scores, own, teacher + _constants(3)), value)
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = mask.scatter(1, own, True)
    want = _written_out(scores.masked_fill(~kept, -torch.inf), own, teacher, 0.5)
    for weight in (mask, mask.double()):
        value = stabilised_distillation(scores, own, teacher, weight, 0.5)
        torch.testing.assert_close(value, want)
        (gradient,) = _gradient(value, scores)
        assert not gradient[~kept].any() and gradient[kept].all()


def test_tied_rewards_of_negatives_still_count_their_order():
    scores, own, teacher = _block()
    teacher[:, 2] = teacher[:, 1]
    swapped = own[:, [0, 2, 1, 3]]
    one, two = (stabilised_distillation(scores, order, teacher, temperature=1.0) for order in (own, swapped))
    assert abs(one.item() - two.item()) > 1e-3


def test_reward_distillation_weighs_two_terms_and_leaves_a_single_one_unweighted():
    scores, own, teacher = _block()
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, 7] = False
    rest = mask.scatter(1, own[:, :1], False)
    contrastive = info_nce(scores.gather(1, own[:, :1]), scores, rest, 0.5)
    distilled = stabilised_distillation(scores, own, teacher, mask, 0.5)
    divergence = kl_distillation(scores.gather(1, own), teacher, 0.5 * 2, 0.1)

    def loss(*args, **kwargs):
        return RewardDistillation(*args, temperature=0.5, **kwargs)(scores, own, teacher, mask)

    torch.testing.assert_close(loss(), 0.2 * contrastive + distilled)
    torch.testing.assert_close(loss("stabilised", 0.2, 0.0), contrastive)
    torch.testing.assert_close(loss("stabilised", 0.0, 0.3), distilled)
    kl = {"student_temperature": 2.0, "teacher_temperature": 0.1}
    torch.testing.assert_close(loss("kl", 0.2, 1.0, **kl), 0.2 * contrastive + divergence)


def test_no_gradient_reaches_a_teacher():
    scores, own, _ = _block()
    teacher, pairs = _drawn(3, 4, seed=5), (_drawn(3, 3, seed=6), _drawn(3, 3, seed=7))
    student = scores[:, :3], scores[:, 3:6]
    total = (
        stabilised_distillation(scores, own, teacher)
        + kl_distillation(scores[:, :4], teacher)
        + in_batch_margin_mse(*student, *pairs)
        + embedding_regression(scores[:, :4], teacher)
    )
    assert torch.autograd.grad(total, (teacher, *pairs), allow_unused=True) == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_widened(dtype):
    scores, own, teacher = _block()
    scores, teacher = scores.detach().to(dtype), teacher.to(dtype)
    for half, full in (
        (margin_mse(scores[:, :1], scores[:, 1:5], teacher[:, :1], teacher), None),
        (stabilised_distillation(scores, own, teacher), stabilised_distillation(scores.float(), own, teacher.float())),
        (RewardDistillation()(scores, own, teacher), RewardDistillation()(scores.float(), own, teacher.float())),
    ):
        assert half.dtype == torch.float32 and (full is None or half == full)


def test_regression_of_unit_vectors_is_twice_the_cosine_distance_and_at_most_four():
    y, t = normalize(_drawn(5, 8)), normalize(_drawn(5, 8, seed=1))
    squared = embedding_regression(y, t)
    torch.testing.assert_close(squared, 2 * embedding_regression(y, t, "cosine"))
    torch.testing.assert_close(squared, 8 * embedding_regression(y, t, "mse"))
    torch.testing.assert_close(embedding_regression(y, t, "l2"), (y - t).square().sum(1).sqrt().mean())
    torch.testing.assert_close(embedding_regression(y, -y), torch.tensor(4.0, dtype=torch.float64))


@pytest.mark.parametrize("distance", ["squared", "mse", "l2", "cosine"])
def test_regression_ends_at_the_teachers_vectors_with_a_finite_gradient(distance):
    y = _drawn(3, 4)
    value = EmbeddingRegression(distance)(y, y.detach())
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert _gradient(value, y)[0].abs().max() < 1e-9


def test_matryoshka_sums_the_loss_of_renormalised_prefixes():
    query, positive, negatives = _drawn(4, 8), _drawn(4, 8, seed=1), _drawn(4, 3, 8, seed=2)

    def loss(q, p, n):
        return info_nce((q * p).sum(1, keepdim=True), torch.einsum("bd,bkd->bk", q, n))

    def prefix(dim):
        return loss(*(x[..., :dim] / x[..., :dim].norm(dim=-1, keepdim=True) for x in (query, positive, negatives)))

    value = Matryoshka(loss, [8, 4, 2], [1, 0.5, 0.25])(query, positive, negatives)
    torch.testing.assert_close(value, prefix(8) + 0.5 * prefix(4) + 0.25 * prefix(2))
    torch.testing.assert_close(Matryoshka(loss, [2])(query, positive, negatives), prefix(2))
    assert not _gradient(Matryoshka(loss, [2])(query, positive, negatives), query)[0][:, 2:].any()


def test_matryoshka_refuses_dims_without_a_weight_or_beyond_the_embedding():
    with pytest.raises(ZooError, match="2 Matryoshka dims have 1 weights"):
        Matryoshka(torch.sum, [4, 2], [1.0])
    with pytest.raises(ZooError, match="dim 16 exceeds the embedding's 8"):
        Matryoshka(torch.sum, [16, 2])(_drawn(3, 8))
