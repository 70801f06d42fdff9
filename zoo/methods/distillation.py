"""Distillation: a teacher's scores of the batch say how much each negative is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.losses.distillation import DualMarginMSE, RewardDistillation
from zoo.methods.dual import DualEncoder, pair_embeddings
from zoo.negatives.blocks import PairEmbeddings, score_blocks


class Distillation(DualEncoder):
    """A dual encoder that learns from teachers which see the same batch, or from scores stored with the data.

    Args:
        encoder: as in `DualEncoder`.
        loss: not minimised; callbacks read its temperature to describe the scores.
        objective: maps (student's embeddings, teachers' embeddings, stored scores `[B, 1 + K]` or None) to a scalar.
        teachers: frozen models, `forward(PairBatch) -> Encoded`: guides (`zoo.methods.LexicalGuide`, `Bm25Teacher`,
            `EncoderGuide`). Their scores are dot products of their embeddings.
        **kwargs: as in `DualEncoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        objective: nn.Module,
        teachers: Sequence[nn.Module] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        self.objective = objective
        self.teachers = nn.ModuleList(teachers).requires_grad_(False)

    def frozen_models(self) -> list[nn.Module]:
        return [*super().frozen_models(), *self.teachers]

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        encoded = self.encode(batch)
        with torch.autocast(encoded.query.device.type, enabled=False):
            x = pair_embeddings(encoded, batch)
            with torch.no_grad():
                teachers = [pair_embeddings(teacher(batch), batch, grad=False) for teacher in self.teachers]
            loss = self.objective(x, teachers, batch.teacher)
            return self.report(loss, x.query, self.candidate_scores(x, score_blocks(x)))


class TeacherMargins(nn.Module):
    """TAS-Balanced's dual supervision: a pairwise teacher on own negatives, an in-batch teacher on everybody else's.

    The first teacher sees (positive, own negative), the last one the batch; a single teacher plays both parts. Stored
    scores, where the data has them, are the first's. Batches need one explicit negative per query.

    Args:
        loss: of the margins.
        scale: factor on teachers' scores: margin regression forces the student onto their scale, and a cosine cannot
            follow a BM25 score.
    """

    def __init__(self, loss: DualMarginMSE, scale: float = 1.0) -> None:
        super().__init__()
        self.loss, self.scale = loss, scale

    def forward(self, x: PairEmbeddings, teachers: list[PairEmbeddings], stored: Tensor | None) -> Float[Tensor, ""]:
        pairs, own = len(x.queries), x.own_places()
        if own.shape[1] < 2:
            raise ZooError("margins take an own negative: set --data.n_negatives 1 and --data.miner (or --data.table)")
        student = (x.query @ x.documents.T).split(pairs, 1)
        first, last = (self.scale * (t.query @ t.documents.T) for t in (teachers[0], teachers[-1]))
        pair = first.gather(1, own) if stored is None else self.scale * stored
        return self.loss(*student[:2], pair[:, :1], pair[:, 1:2], *last.split(pairs, 1)[:2], x.first)


class TeacherRewards(nn.Module):
    """LLM-Embedder's supervision: a query's own candidates in the order of their rewards.

    Args:
        loss: of the rewards.
        scale: factor on rewards, before their softmax.
    """

    def __init__(self, loss: RewardDistillation, scale: float = 1.0) -> None:
        super().__init__()
        self.loss, self.scale = loss, scale

    def forward(self, x: PairEmbeddings, teachers: list[PairEmbeddings], stored: Tensor | None) -> Float[Tensor, ""]:
        own = x.own_places()
        rewards = (teachers[0].query @ teachers[0].documents.T).gather(1, own) if stored is None else stored
        # The positive stays first, whatever its reward; negatives follow by falling reward.
        order = rewards[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
        order = torch.cat([torch.zeros_like(order[:, :1]), order], 1)
        scores = x.query @ x.documents.T
        weight = score_blocks(x)["qd"].weight
        return self.loss(scores, own.gather(1, order), self.scale * rewards.gather(1, order), weight)
