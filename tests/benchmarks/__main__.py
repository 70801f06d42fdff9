"""Times what the package does against its peers: `python -m tests.benchmarks [--quick] [--repeats N]`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    """A row: its name and goal, what makes the pair, and calls of each side per repeat (100 steps hold a checkpoint)."""

    name: str
    goal: str
    pair: Any
    rounds: int = 10


def rows(quick: bool) -> list[Row]:
    import torch

    from tests.benchmarks import augment, clip, lean, search, sentences
    from tests.benchmarks import rows as r

    n = 4 if quick else 16
    exact = partial(search.over_faiss, 1000, 100_000, 256, 64)
    parts = [
        Row("batched augmentation, 32 px", ">= 10", partial(augment.over_torchvision, 32, 32, 16 * n), 4),
        Row("batched augmentation, 224 px", ">= 10", partial(augment.over_torchvision, 224, 256, n), 4),
        Row("CLIP loss over open_clip's, 1024 x 512", "<= 1.00", partial(clip.over_open_clip, 1024, 512, False), 4),
        Row("lean CLIP loss over open_clip's, 4096 x 512", "<= 1.00", partial(clip.over_open_clip, 4096, 512, True), 1),
        Row(
            "ranks in 100k x 256 over a chunked matrix",
            "<= 1.00",
            partial(clip.ranks_over_dense, 1000, 100_000, 256),
            1,
        ),
        Row("exact top-64 of 100k x 256 over faiss IndexFlatIP", "<= 1.00", exact, 2),
        Row(
            "search of 100k x 256 on disk over in memory",
            "<= 1.10",
            partial(search.over_memory, 4096, 100_000, 256, 64),
            1,
        ),
        *(Row(*row) for row in lean.timed(quick)),
    ]
    recipes = [
        Row("zoo step over bare loop, SimCLR", "<= 1.03", partial(r.over_bare, "simclr")),
        Row("zoo step over bare loop, MoCHi", "<= 1.03", partial(r.over_bare, "mochi")),
        Row("MoCHi over MoCo step", "<= 1.10", r.mochi_over_moco, 5),
        Row("MoCo step over lightly's parts", "<= 1.00", r.over_lightly, 5),
    ]
    if torch.cuda.is_available():
        recipes.append(Row("MoCHi over MoCo step, paper scale", "<= 1.10", partial(r.mochi_over_moco, *r.PAPER)))
    if not quick:
        families = {"InfoNCE": "infonce", "CLIP": "clip", "geo InfoNCE": "infonce_geo"}
        st = sentences.over_sentence_transformers
        parts += [
            Row("step over sentence-transformers', 128 pairs", "<= 1.00", partial(st, 128), 2),
            Row("GIST step over sentence-transformers', 128 pairs", "<= 1.00", partial(st, 128, guided=True), 2),
            Row("gradient cache over sentence-transformers', 256 pairs", "<= 1.00", partial(st, 256, 32), 1),
        ]
        recipes += [
            *(
                Row(f"zoo step over bare loop, {name}", "<= 1.03", partial(r.over_bare, recipe))
                for name, recipe in families.items()
            ),
            Row("zoo step over bare loop, transformer", "<= 1.03", partial(r.over_bare, "infonce", *r.TRANSFORMER), 4),
            *(
                Row(f"torch.compile over eager, {name}", "<= 1.00", partial(r.compiled_over_plain, recipe), 2)
                for name, recipe in {"SimCLR": "simclr", **families}.items()
            ),
        ]
    table = parts + recipes  # in this order: on CPU a recipe has the process keep freed memory, for peers as well
    return [row._replace(rounds=1) for row in table] if quick else table


def machine() -> str:
    """What the numbers depend on: the GPU's name, or architecture, vector instructions and cores."""
    import torch

    if torch.cuda.is_available():
        return re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}-{cores}cores"


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few repeats and rows, about a minute; its numbers are rough"
    )
    parser.add_argument("--repeats", type=int, help="ratios per row (7; with --quick 2)")
    options = parser.parse_args(args)
    repeats = options.repeats or (2 if options.quick else 7)
    path = RESULTS / f"{machine()}.json"
    path.parent.mkdir(exist_ok=True)
    names = ("torch", "torchvision", "lightning", "lightly", "pillow", "faiss-cpu", "sentence-transformers")
    report = {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {x: importlib.metadata.version(x) for x in names},
        "command": shlex.join(["python", "-m", "tests.benchmarks", *args]),
    }
    results: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ZOO_RUNS": folder, "WANDB_MODE": "disabled"}
        for result in _measurements(options.quick, repeats):
            results.append(result)  # written as it comes: what stops the rest loses none
            path.write_text(json.dumps({**report, "rows": [r.row() for r in results]}, indent=2) + "\n")
    _show(results)
    print(f"wrote {path}")
    return 0


def _measurements(quick: bool, repeats: int) -> Iterator[Any]:
    for name, measure in (*_ratios(quick, repeats), *_readings(quick, repeats)):
        print(name, file=sys.stderr)
        with _silence():
            result = measure(name)
        yield result


def _ratios(quick: bool, repeats: int) -> Iterator[tuple[str, Any]]:
    from tests.benchmarks.runner import compare

    def measure(name: str, row: Row) -> Any:
        with row.pair() as pair:
            return compare(name, pair.ours, pair.peer, row.goal, repeats, row.rounds, pair.per)

    for row in rows(quick):
        yield row.name, partial(measure, row=row)


def _readings(quick: bool, repeats: int) -> Iterator[tuple[str, Any]]:
    """Names of the rows about memory and shares of time, and what measures each."""
    from tests.benchmarks import clip, lean, rows, sentences, start

    pairs = 2048 if quick else 16384
    name = f"lean CLIP loss over open_clip's, peak of {pairs} x 512 in GB"
    yield name, partial(clip.memory, goal="<= 0.10", repeats=repeats, pairs=pairs, dim=512)
    for name, goal, pairs, dim in lean.peaks(quick):
        yield name, partial(lean.memory, goal=goal, pairs=pairs, dim=dim)
    if quick:
        return
    for step, chunk, guided in (("step", None, False), ("GIST step", None, True), ("gradient cache", 64, False)):
        name = f"{step} over sentence-transformers', peak of 512 pairs in GB"
        yield name, partial(sentences.memory, goal="<= 1.00", pairs=512, chunk=chunk, guided=guided)
    few = min(repeats, 3)
    for recipe in ("simclr", "infonce", "clip", "infonce_geo"):
        name = f"wait for batches in a step, {recipe}"
        yield name, partial(rows.waiting, recipe=recipe, goal="<= 0.05", repeats=few)
        name = f"fit to first step over imports, {recipe}, in s"
        yield name, partial(start.first_step, recipe=recipe, goal="<= 2.00", repeats=few)
    name = "refresh of negatives in an epoch, ance"
    yield name, partial(rows.refreshing, recipe="ance", goal="<= 0.10")


@contextmanager
def _silence() -> Iterator[None]:
    """Progress bars draw as on a terminal, but where nobody sees it."""
    import rich

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        warnings.catch_warnings(action="ignore"),
    ):
        rich.reconfigure(file=nowhere, force_terminal=True, width=120)
        yield


def _show(results: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="medians in ms per step, image or query, or in GB; a goal of >= speaks of peer / ours",
        title_justify="left",
    )
    for column in ("", "ours", "peer", "ratio", "range", "goal", "holds"):
        table.add_column(column, justify="left" if column in ("", "holds") else "right")
    for r in results:
        low, high = r.spread
        cells = (f"{r.ours:.3f}", f"{r.peer:.3f}", f"{r.ratio:.3f}", f"{low:.3f} – {high:.3f}", r.goal)
        table.add_row(r.name, *cells, "yes" if r.holds else "no")
    Console(width=max(110, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
