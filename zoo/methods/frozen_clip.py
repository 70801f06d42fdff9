"""A CLIP that is trained first, or comes trained, and parts that are then trained on top of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.distributed import world_size
from zoo.errors import ZooError
from zoo.methods.dual import DualEncoder
from zoo.methods.guides import load_encoder


class FrozenClip(DualEncoder):
    """Base of methods that train in stages: 0 is the CLIP itself, the others leave it as it is.

    Each stage has an optimiser of its own, for `trained(stage)` alone, and runs through the whole learning-rate schedule.
    During the other stages the CLIP is in evaluation mode and has no gradient.

    Args:
        encoder, loss: the CLIP's, as in `DualEncoder`; the scale of later scores is one over the loss's temperature.
        clip_epochs: epochs of stage 0. With 0 the CLIP comes trained.
        checkpoint: a run's `last.ckpt` whose `encoder` and temperature the CLIP starts with.
        **kwargs: as in `DualEncoder`.

    Raises:
        ZooError: no such checkpoint, or one that does not fit.
    """

    stage: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        clip_epochs: int = 0,
        checkpoint: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        if checkpoint is not None:
            load_encoder(encoder, checkpoint)
            _load_temperature(loss, checkpoint)
        self.clip_epochs = clip_epochs
        self.register_buffer("stage", torch.tensor(-1))  # the last that was entered
        self._clip_parameters = [p for p in self.parameters() if p.requires_grad]
        self._optimized = -1

    # What a method says about its stages

    def starts(self) -> Sequence[int]:
        """First epoch of each stage from 1 on, ascending."""
        return (self.clip_epochs,)

    def trained(self, stage: int) -> Iterable[nn.Parameter]:
        """Parameters that a stage from 1 on trains."""
        raise NotImplementedError

    def stage_optimizer(self, stage: int) -> OptimizerCallable:
        """Makes a stage's optimiser."""
        return self.optimizer

    def enter(self, stage: int) -> None:
        """Called once, before a stage's first step."""

    def stage_step(self, batch: PairBatch, stage: int) -> dict:
        """`training_step` of a stage from 1 on."""
        raise NotImplementedError

    # Stages

    def stage_of(self, epoch: float) -> int:
        """The stage that an epoch belongs to."""
        return sum(epoch >= start for start in self.starts())

    def configure_model(self) -> None:
        # Before a strategy wraps the module, as it looks at what has a gradient.
        self._mark_trained(self._first_stage())

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if world_size() > 1 and self.starts()[-1] > 0:
            raise ZooError(
                "several stages need one device: train the CLIP first, then set --model.clip_epochs 0 and --model.checkpoint"
            )

    def _first_stage(self) -> int:
        """The stage that training starts in, or goes on in from a checkpoint."""
        return max(int(self.stage), self.stage_of(0))

    def _mark_trained(self, stage: int) -> None:
        trained = {id(p) for p in (self._clip_parameters if stage == 0 else self.trained(stage))}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        stage = self._first_stage()
        self._mark_trained(stage)
        self._optimized = stage
        common, self.optimizer = self.optimizer, self.stage_optimizer(stage)
        try:
            return super().configure_optimizers()
        finally:
            self.optimizer = common

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        now = self.stage_of(self.current_epoch)
        if int(self.stage) < now:
            self._mark_trained(now)
            for stage in range(max(int(self.stage) + 1, 1), now + 1):
                self.enter(stage)
            self.stage.fill_(now)
        if self._optimized != now:
            self.trainer.strategy.setup_optimizers(self.trainer)
        super().on_train_batch_start(batch, batch_idx)

    def rate(self, epoch: float, epochs: float) -> float:
        bounds = [0, *self.starts(), epochs]
        stage = self.stage_of(epoch)
        return super().rate(epoch - bounds[stage], min(bounds[stage + 1], epochs) - bounds[stage])

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        stage = self.stage_of(self.current_epoch)
        if stage == 0:
            return super().training_step(batch, batch_idx)
        self.encoder.eval()
        if self.document_encoder is not None:
            self.document_encoder.eval()
        return self.stage_step(batch, stage)

    @property
    def temperature(self) -> Tensor | float:
        """What cosines are divided by, without gradient."""
        temperature: Any = self.loss.temperature
        return temperature.detach() if isinstance(temperature, Tensor) else temperature

    @property
    def scale(self) -> float:
        """One over the temperature."""
        return 1 / float(self.temperature)


def _load_temperature(loss: Any, checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    learned = state.get("loss.log_temperature")
    if learned is None:
        return
    if getattr(loss, "log_temperature", None) is None:
        raise ZooError(f"{checkpoint} has a learned temperature: set --model.loss.learn_temperature true")
    loss.log_temperature.data.copy_(learned)
