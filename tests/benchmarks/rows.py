"""The rows of the table: each a context that yields what is timed."""

from __future__ import annotations

import copy
import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torchvision.transforms import v2

from tests.benchmarks import bare
from tests.benchmarks.steps import Steps, steps
from zoo.cli import ZooCLI, build
from zoo.data import TwoViews
from zoo.data.pairs import PairBatch
from zoo.data.samplers import BatchSampler
from zoo.methods.momentum import ema_update, queue_candidates

STEPS = 10  # per call: the callbacks that look at every tenth step look once
# A paper's step on a GPU, on images that need no download.
PAPER = [
    "--data.source.init_args.size=224",
    "--data.source.init_args.n_train=512",
    "--data.batch_size=256",
    "--data.transform.init_args={size: 224, crop_scale: [0.2, 1.0], gray_p: 0.2, blur_p: 0.5}",
    "--model.init_args.encoder.init_args.backbone=zoo.TimmBackbone",
    "--model.init_args.encoder.init_args.dim=128",
    "--model.init_args.encoder.init_args.batch_norm=false",
    "--model.init_args.queue_size=65536",
    "--model.init_args.bn_splits=8",
]


class Pair(NamedTuple):
    """Two callables, and the units of work (steps, images) in one call."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    per: int


class LongEpochs(BatchSampler):
    """RandomBatches whose epochs last a hundred times as long, so that no measurement meets the end of one."""

    def __len__(self) -> int:
        return 100 * (len(self.dataset) // (self.batch_size * self.world_size))

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        rows = len(self) // 100
        size = self.batch_size * self.world_size
        orders = [rng.permutation(len(self.dataset))[: rows * size] for _ in range(100)]
        return np.concatenate(orders).reshape(len(self), size)


class Ticks(pl.Callback):
    """Ties a Trainer to `Steps`."""

    def __init__(self, gate: Steps) -> None:
        self.gate = gate

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.gate.tick()


def made(recipe: str, *overrides: str) -> ZooCLI:
    """A recipe's objects, MoCHi without its warm-up."""
    cli = build(recipe, [], overrides)
    cli.datamodule.sampler = LongEpochs()
    for module in getattr(cli.model, "negatives", []):
        module.start_epoch = 0
    return cli


def trained(cli: ZooCLI) -> Callable[[Steps], None]:
    """The recipe as `python -m zoo fit` runs it."""

    def loop(gate: Steps) -> None:
        cli.trainer.callbacks.insert(0, Ticks(gate))  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    return loop


def written_out(cli: ZooCLI, device: torch.device) -> Callable[[Steps], None]:
    """The same recipe as a bare loop."""

    def loop(gate: Steps) -> None:
        model = cli.model.to(device)
        optimizer = model.configure_optimizers()
        momentum = bare.Momentum(model) if hasattr(model, "queue") else None
        loss = momentum or bare.simclr(model)
        data = cli.datamodule
        batches = bare.views(data, device)
        total = 100 * 46 * 30
        bare.train(batches, loss, optimizer, total, gate.tick, momentum.enqueue if momentum else lambda: None)

    return loop


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def over_bare(recipe: str) -> Iterator[Pair]:
    """The recipe's Trainer with its default callbacks against a bare loop."""
    with steps(STEPS, trained(made(recipe)), written_out(made(recipe), device())) as (ours, peer):
        yield Pair(ours, peer, STEPS)


@contextmanager
def mochi_over_moco(*overrides: str) -> Iterator[Pair]:
    """Both recipes through the same Trainer loop."""
    mixing = overrides and ["--model.init_args.negatives=[{class_path: zoo.negatives.HardNegativeMixing}]"]
    loops = trained(made("mochi", *overrides, *mixing)), trained(made("moco", *overrides))
    with steps(STEPS, *loops) as (ours, peer):
        yield Pair(ours, peer, STEPS)
