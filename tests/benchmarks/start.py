"""The row about the start: from the command to the first training step."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.benchmarks.runner import Result, summarize

FIRST_STEP = """
import sys
import lightning.pytorch as pl
from zoo.cli import build
class First(pl.Callback):
    def on_train_batch_start(self, *_):
        import os
        os._exit(0)
cli = build(sys.argv[1], [], [])
cli.trainer.callbacks.insert(0, First())
cli.trainer.fit(cli.model, datamodule=cli.datamodule)
"""
LIBRARIES = "import torch, torchvision, lightning.pytorch, jsonargparse"


def _seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", *words], check=True, capture_output=True)
    return time.perf_counter() - start


def first_step(name: str, recipe: str, goal: str, repeats: int) -> Result:
    """Seconds to the first step, probes of the untrained encoder included, beside those of importing the libraries.

    Reported in seconds; data are rendered and cached before.
    """
    _seconds(FIRST_STEP, recipe)
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(_seconds(FIRST_STEP, recipe) / 1e3)  # `summarize` reports thousandths
        peer.append(_seconds(LIBRARIES) / 1e3)
    return summarize(name, ours, peer, goal)
