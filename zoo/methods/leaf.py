"""LEAF: a small student takes the place of its teacher, vector by vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.collections import Side
from zoo.data.pairs import PairBatch
from zoo.losses.matryoshka import Matryoshka
from zoo.losses.regression import EmbeddingRegression
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder, Encoded, pair_embeddings
from zoo.methods.guides import load_encoder
from zoo.methods.towers import Tower, UnitNorm
from zoo.negatives.blocks import join, score_blocks


class EmbeddingDistillation(DualEncoder):
    r"""The student's vector of every single text is regressed on the teacher's: $\lVert y(x) - t(x) \rVert^2$.

    No pairs and no negatives are needed, so the batch size hardly matters, and what holds for the teacher's vectors
    (prefixes that retrieve, codes of one bit) holds for the student's. Queries by the student may search documents by
    the teacher. Until `teacher_epochs` the teacher itself is trained, by `loss` on prefixes (`dims`); with a
    `checkpoint` it comes trained.

    Source: Vujanic and Rueckstiess 2025 (arXiv 2509.12539).

    Args:
        encoder: the student, of any width: a linear layer maps it to the teacher's.
        loss: the teacher's contrastive loss.
        teacher: the teacher's encoder.
        regression: the student's loss.
        teacher_epochs: epochs of the teacher's training.
        checkpoint: a run's `last.ckpt` whose `encoder` the teacher is.
        dims: prefix lengths that the teacher's loss is summed over; None trains on whole vectors.
        **kwargs: as in `DualEncoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        teacher: nn.Module,
        regression: EmbeddingRegression,
        teacher_epochs: int = 0,
        checkpoint: Path | None = None,
        dims: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        self.teacher, self.regression, self.teacher_epochs = teacher, regression, teacher_epochs
        self.project = nn.Linear(encoder.dim, teacher.dim)  # type: ignore[arg-type]
        if checkpoint is not None:
            load_encoder(teacher, checkpoint)
        self.dims = dims

    def rate(self, epoch: float, epochs: float) -> float:
        """A schedule for the teacher, and one of its own for the student."""
        if epoch < self.teacher_epochs:
            return super().rate(epoch, self.teacher_epochs)
        return super().rate(epoch - self.teacher_epochs, epochs - self.teacher_epochs)

    def embed(self, inputs: Any, side: Side) -> Float[Tensor, "B D"]:
        raw = self.project(self.encoder(inputs))
        with torch.autocast(raw.device.type, enabled=False):
            return normalize(raw)

    def towers(self) -> dict[str, Tower]:
        """The student's."""
        return {side: Tower(self.encoder, self.project, UnitNorm(), side=side) for side in ("query", "document")}

    def embed_teacher(self, inputs: Any) -> Float[Tensor, "B D"]:
        """The teacher's unit-norm vectors."""
        raw = self.teacher(inputs)
        with torch.autocast(raw.device.type, enabled=False):
            return normalize(raw)

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        if self.current_epoch < self.teacher_epochs:
            return self._teacher_step(batch)
        self.teacher.eval()
        with torch.no_grad():
            targets = [self.embed_teacher(t) for t in (batch.anchor, batch.positive)]
        encoded = self.encode(batch)
        with torch.autocast(encoded.query.device.type, enabled=False):
            loss = self.regression(torch.cat(encoded[:2]), torch.cat(targets))
            x = pair_embeddings(encoded, batch)
            return self.report(loss, x.query, self.candidate_scores(x, score_blocks(x)))

    def _teacher_step(self, batch: PairBatch) -> dict:
        query, positive = (self.embed_teacher(t) for t in (batch.anchor, batch.positive))

        def contrast(q: Tensor, p: Tensor) -> Tensor:
            x = pair_embeddings(Encoded(q, p, None), batch.replace(negative_key=None))
            return self.loss((q * p).sum(1, keepdim=True), *join(score_blocks(x)))

        with torch.autocast(query.device.type, enabled=False):
            loss = Matryoshka(contrast, self.dims or [query.shape[1]])(query, positive)
            x = pair_embeddings(Encoded(query, positive, None), batch.replace(negative_key=None))
            return self.report(loss, query, self.candidate_scores(x, score_blocks(x)))

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        found = super().validation_step(batch, batch_idx, dataloader_idx)
        inputs = batch.positive if batch.anchor is None else batch.anchor
        return {**found, "teacher": self.embed_teacher(inputs).float()}
