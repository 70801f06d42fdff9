"""AR2's retriever loss: who gets gradient, and in which direction."""

import math

import pytest
import torch

from zoo.losses import AdversarialRetrieverLoss, adversarial_retriever_loss


def _scores(b=3, m=5, seed=0):
    drawn = torch.randn(2, b, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_()


def test_parts_are_the_written_out_sums():
    r, g = _scores()
    loss = adversarial_retriever_loss(r, g, weight=0.3, temperature=2.0, retriever_temperature=1.5, eps=1e-4)
    distill = adversarial = 0.0
    for row, ranker in zip(r.tolist(), g.tolist(), strict=True):
        total, teacher = sum(math.exp(x / 1.5) for x in row), sum(math.exp(x / 2) for x in ranker)
        for x, y in zip(row, ranker, strict=True):
            log_p = math.log(math.exp(x / 1.5) / total + 1e-4)
            distill -= math.exp(y / 2) / teacher * log_p / 3
            adversarial += math.log(1 / (1 + math.exp(y - ranker[0])) + 1e-4) * log_p
    assert loss.distill.item() == pytest.approx(distill)
    assert loss.adversarial.item() == pytest.approx(adversarial)
    assert loss.total.item() == pytest.approx(0.3 * adversarial + 0.7 * distill)


def test_mean_reduction_makes_the_adversarial_part_independent_of_the_batch():
    r, g = _scores()
    one = adversarial_retriever_loss(r, g)
    two = AdversarialRetrieverLoss()(torch.cat([r, r]), torch.cat([g, g]))
    torch.testing.assert_close(two.adversarial, one.adversarial / 3)
    torch.testing.assert_close(two.distill, one.distill)


def test_ranker_gets_no_gradient():
    r, g = _scores()
    loss = adversarial_retriever_loss(r, g)
    assert torch.autograd.grad(loss.total, (r, g), allow_unused=True)[1] is None


def test_without_adversarial_part_the_gradient_is_that_of_softmax_distillation():
    r, g = _scores()
    loss = adversarial_retriever_loss(r, g, weight=0.0, eps=0.0)
    torch.testing.assert_close(torch.autograd.grad(loss.total, r)[0], (r.softmax(1) - g.softmax(1)) / 3)


def test_an_undecided_ranker_pushes_all_passages_equally():
    r, g = _scores()
    loss = adversarial_retriever_loss(r, g.detach()[:, :1].expand(3, 5), weight=1.0, eps=0.0)
    gradient = torch.autograd.grad(loss.total, r)[0]
    torch.testing.assert_close(gradient, math.log(0.5) * (1 - 5 * r.softmax(1)))


def test_a_passage_that_the_ranker_prefers_is_pulled_more():
    r, g = _scores()
    pulls = []
    for raised in (0.0, 0.5, 1.0, 4.0):
        changed = g.detach().clone()
        changed[0, 2] += raised
        loss = adversarial_retriever_loss(r, changed, weight=1.0)
        pulls.append(-torch.autograd.grad(loss.total, r)[0][0, 2].item())
    assert pulls == sorted(pulls) and len(set(pulls)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_passages_are_absent_and_rows_without_negatives_count_nothing(dtype):
    r, g = (x.detach().to(dtype).requires_grad_() for x in _scores())
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]) > 0
    loss, want = adversarial_retriever_loss(r, g, mask=mask), adversarial_retriever_loss(r[:2, :3], g[:2, :3])
    torch.testing.assert_close(loss.adversarial, want.adversarial)
    torch.testing.assert_close(loss.distill, want.distill * 2 / 3)
    gradient = torch.autograd.grad(loss.total, r)[0]
    assert gradient.isfinite().all() and not gradient[~mask].any() and not gradient[2].any()


def test_half_precision_scores_are_widened():
    r, g = (x.detach().half() for x in _scores())
    assert adversarial_retriever_loss(r, g).total == adversarial_retriever_loss(r.float(), g.float()).total
