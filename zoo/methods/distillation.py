"""Distillation: a teacher's scores of the batch say how much each negative is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.losses.distillation import DualMarginMSE, RewardDistillation
from zoo.methods.dual import DualEncoder, pair_embeddings
from zoo.negatives.blocks import PairEmbeddings, score_blocks


class Distillation(DualEncoder):
    """A dual encoder that learns from teachers which see the same batch, or from scores stored with its negatives.

    Scores of each query's own list, the positive and the explicit negatives, are the first found of: those of the
    negatives' table (`PairBatch.teacher`), a teacher's `rewards`, dot products of a teacher's embeddings.

    Args:
        encoder: as in `DualEncoder`.
        loss: not minimised; callbacks read its temperature to describe the scores.
        objective: maps (student's embeddings, embeddings of those teachers that have them, scores of the own lists
            `[B, 1 + K]` or None) to a scalar.
        teachers: frozen models in evaluation mode. Guides, `forward(PairBatch) -> Encoded`, embed a batch (`LexicalGuide`,
            `Bm25Teacher`, `EncoderGuide`, all in `zoo.methods`); models of pairs, `rewards(PairBatch) -> [B, 1 + K]`,
            score the own lists (`CrossEncoder`, `CausalReward`).
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
        self.teachers = nn.ModuleList(teachers).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teachers.eval()
        return self

    def frozen_models(self) -> list[nn.Module]:
        return [*super().frozen_models(), *self.teachers]

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        encoded = self.encode(batch)
        with torch.autocast(encoded.query.device.type, enabled=False):
            x = pair_embeddings(encoded, batch)
            with torch.no_grad():
                judges = [teacher for teacher in self.teachers if hasattr(teacher, "rewards")]
                guides = [teacher for teacher in self.teachers if not hasattr(teacher, "rewards")]
                own = batch.teacher
                if own is None and judges:
                    own = judges[0].rewards(batch)  # type: ignore[operator]
                teachers = [pair_embeddings(guide(batch), batch, grad=False) for guide in guides]
            loss = self.objective(x, teachers, own)
            return self.report(loss, x.query, self.candidate_scores(x, score_blocks(x)))


class TeacherMargins(nn.Module):
    """TAS-Balanced's dual supervision: a pairwise teacher on own negatives, an in-batch teacher on everybody else's.

    The first teacher sees (positive, own negative), the last one the batch; a single teacher plays both parts. Scores of
    the own lists, where there are some, are the first's. Batches need one explicit negative per query.

    Args:
        loss: of the margins.
        scale: factor on teachers' scores: margin regression forces the student onto their scale, and a cosine cannot
            follow a BM25 score.
    """

    def __init__(self, loss: DualMarginMSE, scale: float = 1.0) -> None:
        super().__init__()
        self.loss, self.scale = loss, scale

    def forward(self, x: PairEmbeddings, teachers: list[PairEmbeddings], listed: Tensor | None) -> Float[Tensor, ""]:
        pairs, own = len(x.queries), x.own_places()
        if own.shape[1] < 2:
            raise ZooError("margins take an own negative: set --data.n_negatives 1 and --data.miner (or --data.table)")
        if not teachers:
            raise ZooError("margins take a teacher that embeds the batch: add one to --model.teachers")
        scores = x.query @ x.documents.T
        student = scores.split(pairs, 1)
        first, last = (self.scale * (t.query @ t.documents.T) for t in (teachers[0], teachers[-1]))
        if listed is None:
            pair = first.gather(1, own)
        else:  # where a row has no negative, nothing is to be learnt from its pair
            pair = (self.scale * listed).where(_there(x, own).all(1, keepdim=True), scores.gather(1, own).detach())
        return self.loss(*student[:2], pair[:, :1], pair[:, 1:2], *last.split(pairs, 1)[:2], x.first)


class TeacherRewards(nn.Module):
    """LLM-Embedder's supervision: a query's own candidates in the order of their rewards.

    Rows with too few negatives repeat those they have, or else the positive.

    Args:
        loss: of the rewards.
        scale: factor on rewards, before their softmax.
    """

    def __init__(self, loss: RewardDistillation, scale: float = 1.0) -> None:
        super().__init__()
        self.loss, self.scale = loss, scale

    def forward(self, x: PairEmbeddings, teachers: list[PairEmbeddings], listed: Tensor | None) -> Float[Tensor, ""]:
        own = x.own_places()
        if listed is None and not teachers:
            raise ZooError("no rewards: add to --model.teachers, or set --data.miner to one of a data set with scores")
        rewards = (teachers[0].query @ teachers[0].documents.T).gather(1, own) if listed is None else listed
        tiled = _tiled(_there(x, own))
        own, rewards = own.gather(1, tiled), rewards.gather(1, tiled)
        # The positive stays first, whatever its reward; negatives follow by falling reward.
        order = rewards[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
        order = torch.cat([torch.zeros_like(order[:, :1]), order], 1)
        scores = x.query @ x.documents.T
        weight = score_blocks(x)["qd"].weight
        return self.loss(scores, own.gather(1, order), self.scale * rewards.gather(1, order), weight)


def _there(x: PairEmbeddings, own: Int[Tensor, "B G"]) -> Bool[Tensor, "B G"]:
    """Which of each query's own candidates are no padding."""
    return x.document_key[own] >= 0


def _tiled(there: Bool[Tensor, "B G"]) -> Int[Tensor, "B G"]:
    """For each place of a list the place of a candidate that is there: itself, or one of the list's negatives in turn."""
    negatives = there[:, 1:].sort(dim=1, descending=True, stable=True)
    count = negatives.values.sum(1, keepdim=True)
    turn = torch.arange(there.shape[1] - 1, device=there.device) % count.clamp_min(1)
    place = torch.where(count > 0, negatives.indices.gather(1, turn) + 1, 0)
    return torch.cat([torch.zeros_like(count), place], 1)
