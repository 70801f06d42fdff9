"""The rows about training steps: each a context that yields what is timed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor

from tests.benchmarks import bare
from tests.benchmarks.runner import Result, summarize
from tests.benchmarks.steps import LongEpochs, Steps, Ticks, steps
from zoo.callbacks import FinalProbes
from zoo.cli import ZooCLI, build
from zoo.data.pairs import PairBatch
from zoo.methods.dual import DualEncoder
from zoo.methods.momentum import MomentumContrast, ema_update, queue_candidates

Loop = Callable[[Steps], Any]
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

# Two narrow layers in place of the bag of tokens, whose step is little more than reading its embeddings.
TRANSFORMER = [
    "--model.init_args.encoder=zoo.TextTransformer",
    "--model.init_args.encoder.init_args.dim=128",
    "--model.init_args.encoder.init_args.depth=2",
    "--data.tokenizer.init_args.document_length=64",
]
WITHOUT_BN = "--model.init_args.encoder.init_args.batch_norm=false"


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


def trained(cli: ZooCLI) -> Loop:
    """The recipe as `python -m zoo fit` runs it."""

    def loop(gate: Steps) -> None:
        cli.trainer.callbacks.insert(0, Ticks(gate))  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    return loop


def written_out(cli: ZooCLI) -> Loop:
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
            loss = bare.dual(model) if isinstance(model, DualEncoder) else bare.simclr(model)  # type: ignore[arg-type]
            clip_value = cli.trainer.gradient_clip_val  # type: ignore[attr-defined]
            bare.train(batches, loss, optimizer, total, gate.tick, clip_value=clip_value)

    return loop


@contextmanager
def _in_turn(ours: Callable[[], Loop], peer: Callable[[], Loop]) -> Iterator[Pair]:
    """Two loops of each side, made in the order A B B A, as the place in memory changes a loop's steps."""
    with steps(STEPS, ours(), peer(), peer(), ours()) as (a, b, c, d):
        yield Pair(lambda: (a(), d()), lambda: (b(), c()), 2 * STEPS)


def over_bare(recipe: str, *overrides: str) -> AbstractContextManager[Pair]:
    """The recipe's Trainer with its default callbacks against a bare loop."""
    return _in_turn(lambda: trained(made(recipe, *overrides)), lambda: written_out(made(recipe, *overrides)))


@contextmanager
def compiled_over_plain(recipe: str) -> Iterator[Pair]:
    """The recipe with its encoder through torch.compile; compilation itself is over before the first call."""
    with _in_turn(
        lambda: trained(made(recipe, "--model.init_args.compile=true")), lambda: trained(made(recipe))
    ) as pair:
        for _ in range(3):
            pair.ours()  # shapes that are new are compiled anew
        yield pair


def waiting(name: str, recipe: str, goal: str, repeats: int) -> Result:
    """Time that training waits for batches, beside the whole: a share. On CPU composing a batch is that time."""
    waits, totals = [], []
    for _ in range(repeats):
        profiler = SimpleProfiler()
        cli = made(recipe)
        cli.trainer.profiler = profiler  # type: ignore[attr-defined]
        with steps(5 * STEPS, trained(cli)) as (loop,):
            for _ in range(3):  # more than an epoch of texts, which are tokenized once
                loop()
            profiler.recorded_durations.clear()
            start = time.perf_counter()
            loop()
            totals.append(time.perf_counter() - start)
            waits.append(sum(profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]))
    return summarize(name, waits, totals, goal, 5 * STEPS)


def refreshing(name: str, recipe: str, goal: str) -> Result:
    """Time of a refresh of negatives, beside the epoch before it: a share."""
    cli = build(recipe)
    cli.trainer.profiler = profiler = SimpleProfiler()  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)  # type: ignore[attr-defined]
    spent = profiler.recorded_durations
    *refreshes, _ = spent["[Callback]RefreshNegatives.on_train_epoch_end"]  # nobody would see one after the last epoch
    return summarize(name, refreshes, spent["run_training_epoch"][:-1], goal)


def mochi_over_moco(*overrides: str) -> AbstractContextManager[Pair]:
    """Both recipes through the same Trainer loop."""
    mixing = overrides and ["--model.init_args.negatives=[{class_path: zoo.negatives.HardNegativeMixing}]"]
    return _in_turn(lambda: trained(made("mochi", *overrides, *mixing)), lambda: trained(made("moco", *overrides)))


def over_lightly() -> AbstractContextManager[Pair]:
    """MoCo from parts, both without a Trainer and on views that were made before: what is left is the step alone.

    The head is MoCo v2's, without BN: with BN, lightly's has one more of them (MoCo v3).
    """
    cli = made("moco", WITHOUT_BN)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    views = bare.views(cli.datamodule, DEVICE)
    batches = [next(views) for _ in range(STEPS)]

    def loop(loss: bare.Loss, optimizer: torch.optim.Optimizer, after: Callable[[], None] = lambda: None) -> Loop:
        return lambda gate: bare.train(itertools.cycle(batches), loss, optimizer, 10**6, gate.tick, after)

    def ours() -> Loop:
        model = cast(MomentumContrast, made("moco", WITHOUT_BN).model.to(DEVICE))

        def parts(batch: PairBatch) -> Tensor:
            q = bare.embed(model.encoder, batch.anchor)
            ema_update(model.key_encoder, model.encoder, model.momentum)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=batch.anchor.is_cuda):
                k = model.encode_keys(batch.positive)
            candidates = queue_candidates(q, k, model.queue, batch.anchor_key)
            model._pending.append((candidates.positive, batch.positive_key))
            return model.loss(*candidates.scores())

        return loop(parts, model.configure_optimizers(), model.on_after_backward)

    def theirs() -> Loop:
        model = cast(MomentumContrast, made("moco", WITHOUT_BN).model.to(DEVICE))
        peer = bare.Lightly(model)
        return loop(peer, model.optimizer(peer.query.parameters()))

    return _in_turn(ours, theirs)
