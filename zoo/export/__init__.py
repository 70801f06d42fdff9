"""Trained models as folders that other libraries load by themselves."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from zoo.errors import ZooError
from zoo.export.card import write_card
from zoo.recipes import suggest
from zoo.runs import Run

# Writers by format, and what of the optional packages they need.
WRITERS = {
    "timm": ("libraries.to_timm", ()),
    "sentence-transformers": ("libraries.to_sentence_transformers", ("sentence_transformers",)),
    "open_clip": ("libraries.to_open_clip", ()),
    "onnx": ("graphs.to_onnx", ("onnx", "onnxscript", "onnxruntime")),
    "torch": ("graphs.to_torch", ()),
}


def export(run: Run, to: str, out: Path | None = None) -> Path:
    """Write a run's model with a model card (README.md), whole or not at all.

    What was written is loaded again by the library in question, and compared with the run's own embeddings.

    Args:
        run: the run.
        to: one of `WRITERS`.
        out: the folder; None takes `exports/<to>` in the run's.

    Returns:
        The folder.

    Raises:
        ZooError: no such format, one that the model does not fit, a package is missing, the folder is not empty, or the
            library embeds otherwise.
    """
    out = out or run.path / "exports" / to
    check(to, out)
    module, name = WRITERS[to][0].split(".")
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.mkdir(parents=True)
    try:
        with _quietly():
            usage = getattr(import_module(f"zoo.export.{module}"), name)(run, part)
        write_card(run, to, usage, part / "README.md")
        if out.exists():
            out.rmdir()
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the libraries tell each other."""
    from transformers.utils import logging as bars

    before, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()


def check(to: str, out: Path) -> None:
    """What can be said without loading the run.

    Raises:
        ZooError: as `export`.
    """
    if to not in WRITERS:
        raise ZooError(f"no format {to!r}{suggest(to, WRITERS) or '; there are: ' + ', '.join(WRITERS)}")
    for package in WRITERS[to][1]:
        if find_spec(package) is None:
            raise ZooError(f"--to {to} needs {package.replace('_', '-')}: pip install negatives-zoo[export]")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ZooError(f"{out} is there already: pass --out with another folder, or remove it")
