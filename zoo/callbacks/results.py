"""Writes result.json."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from zoo import wandb_runs
from zoo.callbacks.monitors import peak_memory_bytes
from zoo.callbacks.pictures import wandb_run
from zoo.results import RunInfo, read_result, write_result


class ResultWriter(pl.Callback):
    """Collects a run's metrics and writes them to `result.json` in its folder, on rank zero, and into the W&B summary.

    The file says that a run is finished. It appears when training has ended, or, with `awaits_test`, when the same
    process has tested the final weights. The command line fills in `run`, without which nothing is written, and the
    resolved `configuration`, which W&B gets. What the source reports of its data, `data/<name>`, goes to the loggers
    from here.
    """

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.configuration: dict[str, Any] = {}
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
        if self.run is not None and trainer.is_global_zero and (logged := wandb_run(trainer)) is not None:
            wandb_runs.start(logged, self._placed(self.run, trainer), self.configuration)

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
        report = {f"data/{name}": float(n) for name, n in getattr(source, "report", {}).items()}
        if report:
            for logger in trainer.loggers:
                logger.log_metrics(report, trainer.global_step)
        run = self._placed(self.run, trainer)
        path = write_result(run, self.metrics | report, self._budget, self.wall_time_s, self._peak, self._device)
        if (logged := wandb_run(trainer)) is not None:
            wandb_runs.summarise(logged, read_result(path))

    @staticmethod
    def _placed(run: RunInfo, trainer: pl.Trainer) -> RunInfo:
        """The run, in the arena that its source names."""
        source = getattr(getattr(trainer, "datamodule", None), "source", None)
        return replace(run, arena=getattr(source, "arena", run.arena))

    def state_dict(self) -> dict[str, Any]:
        return {"wall_time_s": self.wall_time_s, "metrics": dict(self.metrics)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._elapsed, self.metrics = state_dict["wall_time_s"], dict(state_dict["metrics"])


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform

    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
