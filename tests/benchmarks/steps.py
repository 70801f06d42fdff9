"""A training loop that can be stopped and resumed from outside, as the runner asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lightning.pytorch as pl
import numpy as np
from greenlet import greenlet

from zoo.data.samplers import BatchSampler


class Steps:
    """A training loop that stands still between calls; each call lets it go on for `n` steps.

    The loop calls `tick` once per step, and runs in the caller's thread: in one of its own, with a team of OpenMP
    workers more than there are cores, its steps would cost a third more. Start-up is over when the constructor returns.

    Args:
        loop: called with this object; it never ends by itself.
        n: steps per call.
    """

    def __init__(self, loop: Callable[[Steps], Any], n: int) -> None:
        self.n, self.left = n, 0
        self._loop = greenlet(loop)
        self._loop.switch(self)

    def __call__(self) -> None:
        self.left = self.n
        self._loop.switch()

    def tick(self) -> None:
        """The loop is about to make a step."""
        if self.left == 0:
            self._loop.parent.switch()  # type: ignore[union-attr]
        self.left -= 1

    def close(self) -> None:
        with suppress(IndexError):  # Lightning's progress bars share one console: the latest has ended the others
            self._loop.throw()


@contextmanager
def steps(n: int, *loops: Callable[[Steps], Any]) -> Iterator[list[Steps]]:
    """`Steps` of several loops, closed at the end."""
    running: list[Steps] = []
    try:
        for loop in loops:
            running.append(Steps(loop, n))
        yield running
    finally:
        for each in running:
            each.close()


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
