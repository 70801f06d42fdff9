"""Figures without a display, and their way to W&B."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches that no window belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def wandb_run(trainer: Any) -> Any:
    """The run of the trainer's W&B logger, if it has one."""
    for logger in trainer.loggers:
        if type(logger).__name__ == "WandbLogger":
            return logger.experiment
    return None


def log_picture(trainer: Any, name: str, path: Path) -> None:
    """Show a picture in the trainer's W&B run, if it has one."""
    if (run := wandb_run(trainer)) is not None:
        import wandb

        run.log({name: wandb.Image(str(path)), "trainer/global_step": trainer.global_step})
