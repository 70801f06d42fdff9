"""The rows about training steps: each a context that yields what is timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from tests.benchmarks import bare
from tests.benchmarks.steps import LongEpochs, Steps, Ticks, steps
from zoo.callbacks import FinalProbes
from zoo.cli import ZooCLI, build
from zoo.data.pairs import PairBatch
from zoo.methods.momentum import MomentumContrast, ema_update, queue_candidates

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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


def made(recipe: str, *overrides: str) -> ZooCLI:
    """A recipe's objects, MoCHi without its warm-up, and without probes of the untrained encoder before the first step."""
    cli = build(recipe, [], overrides)
    cli.datamodule.sampler = LongEpochs()
    for callback in cli.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FinalProbes):
            callback.references = False  # seconds before the first step
    for module in getattr(cli.model, "negatives", []):
        module.start_epoch = 0
    return cli


def trained(cli: ZooCLI) -> Callable[[Steps], None]:
    """The recipe as `python -m zoo fit` runs it."""

    def loop(gate: Steps) -> None:
        cli.trainer.callbacks.insert(0, Ticks(gate))  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    return loop


def written_out(cli: ZooCLI) -> Callable[[Steps], None]:
    """The same recipe as a bare loop."""

    def loop(gate: Steps) -> None:
        model, data = cli.model.to(DEVICE), cli.datamodule
        data.prepare_data()
        data.setup("fit")
        total = cli.trainer.max_epochs * len(data.train_dataloader())  # type: ignore[attr-defined]
        optimizer, batches = model.configure_optimizers(), bare.views(data, DEVICE)
        if hasattr(model, "queue"):
            loss = bare.Momentum(model)
            bare.train(batches, loss, optimizer, total, gate.tick, loss.enqueue)
        else:
            bare.train(batches, bare.simclr(model), optimizer, total, gate.tick)

    return loop


@contextmanager
def over_bare(recipe: str) -> Iterator[Pair]:
    """The recipe's Trainer with its default callbacks against a bare loop."""
    with steps(STEPS, trained(made(recipe)), written_out(made(recipe))) as (ours, peer):
        yield Pair(ours, peer, STEPS)


@contextmanager
def mochi_over_moco(*overrides: str) -> Iterator[Pair]:
    """Both recipes through the same Trainer loop."""
    mixing = overrides and ["--model.init_args.negatives=[{class_path: zoo.negatives.HardNegativeMixing}]"]
    loops = trained(made("mochi", *overrides, *mixing)), trained(made("moco", *overrides))
    with steps(STEPS, *loops) as (ours, peer):
        yield Pair(ours, peer, STEPS)


@contextmanager
def over_lightly() -> Iterator[Pair]:
    """MoCo from parts, both without a Trainer and on views that were made before: what is left is the step alone.

    The head is MoCo v2's, without BN: with BN, lightly's has one more of them (MoCo v3).
    """
    cli = made("moco", "--model.init_args.encoder.init_args.batch_norm=false")
    model, views = cast(MomentumContrast, cli.model.to(DEVICE)), bare.views(cli.datamodule, DEVICE)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    batches = [next(views) for _ in range(STEPS)]
    theirs = bare.Lightly(model)

    def parts(batch: PairBatch) -> Tensor:
        q = bare.embed(model.encoder, batch.anchor)
        ema_update(model.key_encoder, model.encoder, model.momentum)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=batch.anchor.is_cuda):
            k = model.encode_keys(batch.positive)
        candidates = queue_candidates(q, k, model.queue, batch.anchor_key)
        model._pending.append((candidates.positive, batch.positive_key))
        return model.loss(*candidates.scores())

    def loop(
        loss: bare.Loss, optimizer: torch.optim.Optimizer, after: Callable[[], None] = lambda: None
    ) -> Callable[[Steps], None]:
        return lambda gate: bare.train(itertools.cycle(batches), loss, optimizer, 10**6, gate.tick, after)

    loops = (
        loop(parts, model.configure_optimizers(), model.on_after_backward),
        loop(theirs, model.optimizer(theirs.query.parameters())),
    )
    with steps(STEPS, *loops) as (ours, peer):
        yield Pair(ours, peer, STEPS)
