"""What every contrastive method shares: optimiser, schedule, evaluation steps, and the step's report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.methods.towers import Tower
from zoo.negatives.candidates import Candidates, EmbeddingNegatives


class ContrastiveMethod(pl.LightningModule):
    """Base of the methods. A subclass writes `training_step` and returns `report(...)`.

    Args:
        encoder: maps inputs to embeddings; `features(inputs)` gives what evaluation uses.
        loss: maps (positives `[B, P]`, negatives `[B, M]`, mask or weight `[B, M]` or None) to a scalar; or, with the
            attribute `takes_candidates`, maps `Candidates` to one.
        negatives: modules that change the candidates on their way to the loss, in order.
        optimizer: maps parameter groups to an optimiser; its learning rate is the peak of the schedule.
        schedule: "cosine" to zero at the end of training, "step" (times 0.1 at each of `milestones`), or "constant".
        milestones: for "step": fractions of training at which the rate drops.
        warmup_epochs: linear warm-up from zero.
        exclude_from_decay: no weight decay for biases and normalisation parameters.
        rates: factors on the learning rate of submodules, by name (`ranker: 0.1`).
        compile: run the encoder through torch.compile.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        negatives: Sequence[EmbeddingNegatives] = (),
        optimizer: OptimizerCallable = torch.optim.SGD,
        schedule: Literal["cosine", "step", "constant"] = "cosine",
        milestones: Sequence[float] = (0.6, 0.8),
        warmup_epochs: float = 0.0,
        exclude_from_decay: bool = False,
        rates: Mapping[str, float] | None = None,
        compile: bool = False,  # noqa: A002 - the user's word
    ) -> None:
        super().__init__()
        self.encoder, self.loss, self.negatives = encoder, loss, nn.ModuleList(negatives)
        self.optimizer, self.schedule, self.milestones = optimizer, schedule, tuple(milestones)
        self.warmup_epochs, self.exclude_from_decay, self.rates = warmup_epochs, exclude_from_decay, rates or {}
        if compile:
            encoder.compile()

    def transform_candidates(self, candidates: Candidates) -> Candidates:
        """Apply the negatives modules whose start epoch has come."""
        for module in self.negatives:
            if self.current_epoch >= module.start_epoch:  # type: ignore[operator]
                candidates = module(candidates)
        return candidates

    def report(self, loss: Tensor, query: Tensor, scores: tuple[Tensor, Tensor, Tensor | None], **raw: Tensor) -> dict:
        """A step's output: the loss, and for the callbacks what it was made of.

        Args:
            loss: scalar.
            query: unit-norm queries `[B, D]`.
            scores: positives `[B, P]`, negatives `[B, M]` and their mask, as the loss saw them.
            **raw: `raw_positives`, `raw_negatives` where a module changed them on the way.
        """
        positives, negatives, mask = scores
        if self._logs_this_step:
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(query))
        return {"loss": loss, "query": query, "positives": positives, "negatives": negatives, "mask": mask, **raw}

    def loss_of(self, candidates: Candidates) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
        """The loss of candidates, and their scores. A loss that `takes_candidates` reads embeddings instead of scores."""
        scores = candidates.scores()
        loss = self.loss(candidates) if getattr(self.loss, "takes_candidates", False) else self.loss(*scores)
        return loss, scores

    def encode_views(self, views: Sequence[Tensor]) -> list[Float[Tensor, "N D"]]:
        """Raw embeddings of each view, all views of a size at once."""
        groups = (list(alike) for _, alike in itertools.groupby(views, lambda view: view.shape))
        return [embeddings for alike in groups for embeddings in self.encode_alike(alike)]

    def encode_alike(self, views: Sequence[Tensor]) -> Sequence[Float[Tensor, "N D"]]:
        """Raw embeddings of views of one size: one pass of the encoder.

        An encoder with an `encode_alike` of its own is asked instead. If it reads every view in R ways (its attribute
        `readings`), the N = R * B rows are R blocks of B.
        """
        if hasattr(self.encoder, "encode_alike"):
            return self.encoder.encode_alike(views)  # type: ignore[operator]
        return self.encoder(torch.cat(list(views))).chunk(len(views))

    @property
    def readings(self) -> int:
        """In how many ways the encoder reads a view."""
        return getattr(self.encoder, "readings", 1)

    def features(self, inputs: Any) -> Tensor:
        """Features that evaluation uses, `[B, F]`."""
        return self.encoder.features(inputs)  # type: ignore[operator]

    def towers(self) -> dict[str, Tower]:
        """What is left to use after training, by name: what `zoo.load` embeds with and `zoo export` writes."""
        return {"query": Tower(getattr(self.encoder, "backbone", self.encoder))}

    def validation_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"features": self.features(batch.anchor).float()}

    def test_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return {"index": batch.index, **self.validation_step(batch, batch_idx, dataloader_idx)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        unknown = [part for part in self.rates if not hasattr(self, part)]
        if unknown:
            known = ", ".join(name for name, _ in self.named_children())
            raise ZooError(f"--model.rates names {unknown[0]!r}, which the method does not have; it has {known}")
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                factor = next((f for part, f in self.rates.items() if name.startswith(f"{part}.")), 1.0)
                plain = self.exclude_from_decay and parameter.ndim < 2
                groups.setdefault((factor, plain), []).append(parameter)
        optimizer = self.optimizer(
            [{"params": p, **({"weight_decay": 0.0} if plain else {})} for (_, plain), p in groups.items()]
        )
        for (factor, _), group in zip(groups, optimizer.param_groups, strict=True):
            group["lr"] = group["lr"] * factor
            # PyTorch's default on a CPU passes over the parameters a dozen times a step.
            if self.device.type == "cpu" and group.get("fused", True) is None and not group["foreach"]:
                group["fused"] = True
        return optimizer

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        # A pure function of progress, so that a resumed run needs no scheduler state.
        trainer: Any = self.trainer
        epoch = self.current_epoch + batch_idx / trainer.num_training_batches
        factor = self.rate(epoch, self._epochs())
        if hasattr(self.loss, "progress"):  # a loss with a schedule of its own
            self.loss.progress = epoch / self._epochs()
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = factor * group.setdefault("peak_lr", group["lr"])
        if self._logs_this_step:
            self.log("train/lr", self.optimizers().param_groups[0]["lr"], batch_size=len(batch))  # type: ignore[union-attr]

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        if hasattr(self.loss, "clamp"):  # a loss with a learned temperature
            self.loss.clamp()  # type: ignore[operator]

    @property
    def _logs_this_step(self) -> bool:
        """Does Lightning write this step's numbers? Collecting those it drops would cost a millisecond a step."""
        trainer: Any = self.trainer
        return (trainer.global_step + 1) % trainer.log_every_n_steps == 0

    def _epochs(self) -> float:
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps * trainer.accumulate_grad_batches / trainer.num_training_batches
        return float(trainer.max_epochs or 1)

    def rate(self, epoch: float, epochs: float) -> float:
        """Learning-rate factor at a (fractional) epoch of a run of `epochs`."""
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        progress = (epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1e-9)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if self.schedule == "step":
            return 0.1 ** sum(epoch / epochs >= m for m in self.milestones)
        return 1.0
