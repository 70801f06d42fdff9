"""The row about the start: from the command to the first training step."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import lightning.pytorch as pl

from tests.benchmarks.runner import Result, summarize

LIBRARIES = "import torch, torchvision, lightning.pytorch, jsonargparse"


class First(pl.Callback):
    """Ends the process as the first training step begins."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        os._exit(0)


def _seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def first_step(name: str, recipe: str, goal: str, repeats: int) -> Result:
    """Seconds to the first step, probes of the untrained encoder included, beside those of importing the libraries.

    Reported in seconds; data are rendered and cached before.
    """
    words = "-m", "zoo", "fit", recipe, f"--trainer.callbacks+={First.__module__}.First"
    _seconds(*words)
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(_seconds(*words) / 1e3)  # `summarize` reports thousandths
        peer.append(_seconds("-c", LIBRARIES) / 1e3)
    return summarize(name, ours, peer, goal)
