"""Timing of two callables in turn, and the statistics of their ratio."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

GOALS = {"<=": operator.le, ">=": operator.ge}


@dataclass
class Result:
    """One row of the table: medians in milliseconds, and the ratio that the goal speaks of, with its range over repeats.

    The ratio is ours / peer for a goal of "<= x" and the speed-up peer / ours for one of ">= x": the median over
    repeats, not the quotient of the medians.
    """

    name: str
    ours: float
    peer: float
    ratio: float
    spread: tuple[float, float]
    goal: str
    holds: bool

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "spread": list(self.spread)}


def summarize(name: str, ours: list[float], peer: list[float], goal: str, per: int = 1) -> Result:
    """Statistics of the seconds that each repeat took.

    Args:
        name: of the row.
        ours: seconds of each repeat.
        peer: the same of the peer.
        goal: e.g. "<= 1.03" (ours / peer) or ">= 10" (peer / ours).
        per: units of work (steps, images) in a repeat: the times are reported per unit.
    """
    sign, bound = goal.split()
    pairs = zip(ours, peer, strict=True)
    ratios = [a / b if sign == "<=" else b / a for a, b in pairs]
    ratio = statistics.median(ratios)
    a, b = (1e3 * statistics.median(times) / per for times in (ours, peer))
    return Result(name, a, b, ratio, (min(ratios), max(ratios)), goal, GOALS[sign](ratio, float(bound)))


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    goal: str,
    repeats: int = 7,
    rounds: int = 10,
    per: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Time two callables in turn, so that the drift of a busy machine strikes both.

    A repeat is `rounds` calls of each, every other round in reverse order (A B B A ...). One call of each comes before.

    Args:
        name: of the row.
        ours: callable.
        peer: callable.
        goal: see `summarize`.
        repeats: number of ratios.
        rounds: calls of each per repeat.
        per: units of work in one call.
        clock: returns seconds.
    """
    sides = (ours, peer)
    for side in sides:
        side()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        spent = [0.0, 0.0]
        for i in range(rounds):
            for which in (0, 1) if i % 2 == 0 else (1, 0):
                _synchronize()
                start = clock()
                sides[which]()
                _synchronize()
                spent[which] += clock() - start
        for which in (0, 1):
            times[which].append(spent[which])
    return summarize(name, *times, goal, per * rounds)


def grown(step: Callable[[], Any]) -> int:
    """Bytes by which a call raises the memory in use at its peak, beyond what is in use before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak; Linux
    before = _kilobytes("VmRSS")
    step()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
