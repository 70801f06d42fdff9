"""Guards and meters: stop at a NaN loss; progress, throughput and peak memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from zoo.errors import ZooError


class StopOnNaN(pl.Callback):
    """Stops the run at a loss that is not finite, naming step and batch; checkpoints written before it are kept.

    Args:
        every_n_steps: on CUDA, look this often, so that the device does not wait for each step; on CPU every step.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._seen: list[tuple[int, Any, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        self._seen.append((trainer.global_step, batch, outputs["loss"]))
        if outputs["loss"].device.type != "cpu" and len(self._seen) < self.every_n_steps:
            return
        self._check()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self._check()

    def _check(self) -> None:
        if not self._seen:
            return
        seen, self._seen = self._seen, []
        finite = [math.isfinite(loss) for loss in torch.stack([loss.detach() for _, _, loss in seen]).tolist()]
        if all(finite):
            return
        step, batch, loss = seen[finite.index(False)]
        pairs = ", ".join(map(str, batch.index[:8].tolist()))
        raise ZooError(
            f"the loss is {loss.item()} at step {step} (epoch {batch.epoch}, batch {batch.number}, pairs {pairs}, ...): "
            "lower the learning rate or raise the temperature, then resume from the last checkpoint"
        )


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: allocated on a CUDA device, resident in the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ProgressBar(RichProgressBar):
    """Lightning's, drawn every tenth step. It would be drawn up to a hundred times a second, and training waits meanwhile.

    The metrics beside it are collected then, too, not at every step.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.refresh_rate == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Throughput(pl.Callback):
    """Logs `perf/pairs_per_s` (all devices, training steps only) and `perf/peak_memory_gb` each epoch."""

    def on_train_start(self, trainer, pl_module) -> None:
        # A run that is resumed in the middle of an epoch sees no start of that epoch.
        self._start, self._pairs = time.perf_counter(), 0

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        self._pairs += len(batch)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        rate = self._pairs * trainer.world_size / (time.perf_counter() - self._start)
        pl_module.log_dict({"perf/pairs_per_s": rate, "perf/peak_memory_gb": peak_memory_bytes(pl_module.device) / 1e9})
