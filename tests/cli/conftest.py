"""A folder of toy recipes, a folder for runs, and the command line in this process."""

import signal
from pathlib import Path

import pytest

from zoo.__main__ import main

DEFAULTS = """
seed_everything: 0
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  use_distributed_sampler: false
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
  callbacks:
    - class_path: zoo.callbacks.ResultWriter
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_last: true, save_top_k: 0, every_n_train_steps: 1}
data:
  source: {class_path: tests.cli.toy.ToySource}
  batch_size: 8
"""
BASE = """
recipe: {title: Base, arena: toys, primary: test/score, claim: [
  {part: quality, metric: test/score, against: test/score_random, statement: beats chance}]}
model: {class_path: tests.cli.toy.Toy}
"""
BETTER = """
recipe: {title: Better, paper: "1234.5678", year: 2020, idea: a bonus, arena: toys, primary: test/score, baseline: base,
  claim: [{part: quality, metric: test/score, direction: higher, statement: scores more},
          {part: mechanism, metric: train/loss, direction: lower, margin: 100.0, statement: loses much less}]}
model: {class_path: tests.cli.toy.Toy, init_args: {bonus: 0.5}}
"""


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """Toy recipes `base` and `better`, their runs in `tmp_path / "runs"`, and `main`."""
    folder = tmp_path / "recipes"
    for name, text in {
        "_defaults": DEFAULTS,
        "toy/base": BASE,
        "toy/better": BETTER,
        "_with/long": "trainer: {max_epochs: 3}",
        "toy/_with/long/better": "trainer: {max_epochs: 4}",
    }.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("ZOO_RECIPES", str(folder))
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("zoo.results.committed_root", lambda: tmp_path / "committed")
    handler = signal.getsignal(signal.SIGINT)
    yield main
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def error_line(zoo, capfd):
    """Run a command that must fail with status 2 and one line; return the line."""

    def run(*args: str) -> str:
        capfd.readouterr()
        assert zoo(list(args)) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("zoo: error: ")
        return lines[0]

    return run
