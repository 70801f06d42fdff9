"""Writes result.json."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from zoo.callbacks.monitors import peak_memory_bytes
from zoo.results import RunInfo, write_result


class ResultWriter(pl.Callback):
    """Collects a run's metrics and writes them to `result.json` in its folder, on rank zero.

    The file says that a run is finished. It appears when training has ended, or, with `awaits_test`, when the same
    process has tested the final weights. The command line fills in `run`; without it nothing is written.
    """

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.awaits_test = False
        self.metrics: dict[str, float] = {}
        self._elapsed, self._start = 0.0, math.nan
        self._fitted = False

    @property
    def wall_time_s(self) -> float:
        """Training time so far, in seconds, over all resumptions."""
        return self._elapsed + (0.0 if math.isnan(self._start) else time.perf_counter() - self._start)

    def on_fit_start(self, trainer, pl_module) -> None:
        self._start, self._fitted = time.perf_counter(), False
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self._collect(trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self._collect(trainer)

    def on_fit_end(self, trainer, pl_module) -> None:
        self._collect(trainer)
        self._elapsed, self._start = self.wall_time_s, math.nan
        self._fitted = True
        batch_size = (
            getattr(getattr(trainer, "datamodule", None), "batch_size", 0)
            * trainer.world_size
            * trainer.accumulate_grad_batches
        )
        self._budget = f"{trainer.global_step} steps x {batch_size}"
        self._peak = peak_memory_bytes(pl_module.device)
        self._device = _device_name(pl_module.device)
        if not self.awaits_test:
            self._write(trainer)

    def on_test_end(self, trainer, pl_module) -> None:
        if self._fitted:
            self._collect(trainer)
            self._write(trainer)

    def _collect(self, trainer: pl.Trainer) -> None:
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _write(self, trainer: pl.Trainer) -> None:
        if self.run is None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        source = getattr(getattr(trainer, "datamodule", None), "source", None)
        run = replace(self.run, arena=getattr(source, "arena", self.run.arena))
        metrics = self.metrics | {f"data/{name}": float(n) for name, n in getattr(source, "report", {}).items()}
        write_result(run, metrics, self._budget, self.wall_time_s, self._peak, self._device)

    def state_dict(self) -> dict[str, Any]:
        return {"wall_time_s": self.wall_time_s, "metrics": dict(self.metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._elapsed, self.metrics = state_dict["wall_time_s"], dict(state_dict["metrics"])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
