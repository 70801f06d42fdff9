"""Distillation from scores of the batch."""

import pytest
import torch
from torch import nn

from tests.methods.test_dual import attach, batch_of, embeddings
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.losses.distillation import DualMarginMSE, RewardDistillation
from zoo.methods.distillation import Distillation, TeacherMargins, TeacherRewards
from zoo.methods.dual import Encoded
from zoo.methods.guides import LexicalGuide
from zoo.methods.text_encoders import TextTransformer, TokenBag


def student(batch, seed=0):
    x = embeddings(batch, seed=seed)
    return x.replace(query=x.query.clone().requires_grad_())


@pytest.mark.parametrize("stored", [False, True])
def test_margins_by_hand(stored):
    batch = batch_of(4, 1)
    x, first, last = student(batch), embeddings(batch, seed=1), embeddings(batch, seed=2)
    pair = torch.randn(4, 2, dtype=torch.float64) if stored else None
    loss = TeacherMargins(DualMarginMSE(2.0, 0.75), scale=3.0)(x, [first, last], pair)

    def score(e, i, j, negative):
        return e.query[i] @ e.documents[j + 4 * negative]

    own = in_batch = 0.0
    for i in range(4):
        margin = pair[i, 0] - pair[i, 1] if stored else score(first, i, i, 0) - score(first, i, i, 1)
        own += (score(x, i, i, 0) - score(x, i, i, 1) - 3 * margin) ** 2 / 4
        for j in set(range(4)) - {i}:
            for side in (0, 1):
                margin = score(last, i, i, 0) - score(last, i, j, side)
                in_batch += 0.5 * (score(x, i, i, 0) - score(x, i, j, side) - 3 * margin) ** 2 / 12
    torch.testing.assert_close(loss, 2 * own + 0.75 * in_batch)


def test_a_student_that_agrees_up_to_its_queries_constants_has_nothing_to_learn():
    batch = batch_of(5, 1)
    x = student(batch)

    def widened(column, y):
        return torch.cat([y.detach(), column * torch.ones(len(y), 1, dtype=torch.float64)], 1)

    constants = torch.arange(5.0, dtype=torch.float64)[:, None]
    sides = {"query": constants, "queries": constants, "documents": torch.ones(10, 1), "positive": torch.ones(5, 1)}
    teacher = x.replace(**{name: widened(column, getattr(x, name)) for name, column in sides.items()})
    loss = TeacherMargins(DualMarginMSE())(x, [teacher], None)
    loss.backward()
    assert loss < 1e-20 and x.query.grad.abs().max() < 1e-12


def test_margins_need_an_own_negative():
    x = student(batch_of(4, 0))
    with pytest.raises(ZooError, match="--data.n_negatives 1"):
        TeacherMargins(DualMarginMSE())(x, [x], None)


@pytest.mark.parametrize("stored", [False, True])
def test_rewards_by_hand(stored):
    batch = batch_of(3, 3)
    x, teacher = student(batch), embeddings(batch, seed=1)
    pair = torch.randn(3, 4, dtype=torch.float64) if stored else None
    loss = TeacherRewards(RewardDistillation("stabilised", 0.0, 1.0, 0.5), scale=2.0)(x, [teacher], pair)
    expected = 0.0
    for i in range(3):
        own = [i + 3 * slot for slot in range(4)]
        rewards = pair[i] if stored else torch.stack([teacher.query[i] @ teacher.documents[d] for d in own])
        rewards = dict(zip(own, rewards.tolist(), strict=True))
        order = [i, *sorted(own[1:], key=lambda d: -rewards[d])]
        share = torch.tensor([2 * rewards[d] for d in order], dtype=torch.float64).softmax(0)
        for g, target in enumerate(order):
            columns = [d for d in range(12) if d not in order[:g]]
            logits = x.query[i] @ x.documents[columns].T / 0.5
            expected -= share[g] * logits.log_softmax(0)[columns.index(target)] / 3
    torch.testing.assert_close(loss, expected)


def test_the_positive_stays_first_whatever_its_reward():
    x = student(batch_of(1, 2))
    x = x.replace(documents=x.documents.clone().requires_grad_())
    # All weight is on a negative, whose softmax holds what comes after it, and hence not the positive.
    rewards = torch.tensor([[-60.0, -60.0, 0.0]], dtype=torch.float64)
    TeacherRewards(RewardDistillation("stabilised", 0.0, 1.0, 0.5))(x, [], rewards).backward()
    assert x.documents.grad[0].abs().max() < 1e-12 < 0.1 < x.documents.grad[1:].abs().max()


class Watched(nn.Module):
    """A teacher that has parameters, and says whether its output carried gradient."""

    def __init__(self):
        super().__init__()
        self.encoder = TokenBag(50, 8)

    def forward(self, batch):
        self.grad = torch.is_grad_enabled()
        q, p, n = (self.encoder(t) for t in (batch.anchor, batch.positive, batch.negatives))
        return Encoded(q, p, n.view(len(q), -1, 8))


def test_only_the_student_learns():
    torch.manual_seed(0)
    teacher, objective = Watched(), TeacherMargins(DualMarginMSE())
    method = attach(Distillation(TextTransformer(50, 8, 1, 2), InfoNCE(0.1), objective, [teacher, LexicalGuide(50)]))
    step = method.training_step(batch_of(4, 1), 0)
    step["loss"].backward()
    assert not teacher.grad and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in method.encoder.parameters())
    assert step["positives"].shape == (4, 1) and step["negatives"].shape == (4, 8)
    trained = {id(p) for group in method.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in method.encoder.parameters()}
    assert method.frozen_models() == [*method.teachers]


def test_the_step_minimises_its_objective_over_the_data_s_own_scores():
    torch.manual_seed(0)
    batch = batch_of(4, 1)
    seen = {}

    class Objective(nn.Module):
        def forward(self, x, teachers, stored):
            seen.update(x=x, teachers=teachers, stored=stored)
            return x.query.sum()

    method = attach(Distillation(TokenBag(50, 8), InfoNCE(0.1), Objective(), [LexicalGuide(50)], normalize=False))
    stored = torch.randn(4, 2)
    loss = method.training_step(batch.replace(teacher=stored), 0)["loss"]
    torch.testing.assert_close(loss, method.encoder(batch.anchor).sum())
    assert seen["stored"] is stored and seen["teachers"][0].documents.shape == (8, 50)
    assert torch.equal(seen["teachers"][0].document_key, seen["x"].document_key)
