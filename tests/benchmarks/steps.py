"""A training loop that can be stopped and resumed from outside, as the runner asks."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np

from zoo.data.samplers import BatchSampler

_M_ARENA_MAX = -8  # glibc's malloc.h


class Steps:
    """A training loop that stands still between calls; each call lets it go on for `n` steps.

    The loop runs in a thread of its own and calls `tick` once per step. Start-up is over when the constructor returns.

    Args:
        loop: called with this object; it never ends by itself.
        n: steps per call.
    """

    def __init__(self, loop: Callable[[Steps], Any], n: int) -> None:
        if sys.platform == "linux":  # all threads share the main one's heap: on their own, one's steps cost 15 % more
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        self.n, self.left, self.closed = n, 0, False
        self.error: BaseException | None = None
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()
        self._wait()

    def __call__(self) -> None:
        self.left = self.n
        self._go.release()
        self._wait()

    def tick(self) -> None:
        """The loop is about to make a step."""
        if self.left == 0:
            self._stands.release()
            self._go.acquire()
        if self.closed:
            raise _Closed
        self.left -= 1

    def close(self) -> None:
        self.closed = True
        self._go.release()
        self._thread.join()

    def _wait(self) -> None:
        self._stands.acquire()
        if self.error is not None:
            raise self.error

    def _run(self, loop: Callable[[Steps], Any]) -> None:
        try:
            loop(self)
        except _Closed:
            pass
        except BaseException as error:  # handed to the caller
            self.error = error
        finally:
            self._stands.release()


class _Closed(Exception):  # noqa: N818 - no error
    pass


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
