"""Where prepared data is kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from zoo.errors import ZooError


def cache_folder(root: Path | None) -> Path:
    """Folder of cached data: `root`, `$ZOO_CACHE`, or `~/.cache/zoo`.

    Raises:
        ZooError: it cannot be made.
    """
    folder = Path(root or os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "zoo")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"cannot write the cache {folder} ({error}): set ZOO_CACHE") from error
    return folder


def cached_arrays(paths: Sequence[Path], make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Arrays mapped from cached files; all are made anew if one is missing or damaged.

    Args:
        paths: one file for each array, whose names carry all that the contents depend on.
        make: computes the arrays.

    Raises:
        ZooError: a file cannot be written.
    """
    try:
        return [np.load(path, mmap_mode="r") for path in paths]
    except (OSError, ValueError, EOFError):
        for path, array in zip(paths, make(), strict=True):
            save_array(path, array)
    return [np.load(path, mmap_mode="r") for path in paths]


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a cached array, whole or not at all.

    Raises:
        ZooError: it cannot be written.
    """
    _save(path, lambda file: np.save(file, array))


def save_text(path: Path, text: str) -> None:
    """As `save_array`, a text in UTF-8."""
    _save(path, lambda file: file.write(text.encode()))


def _save(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
        part.replace(path)
    except OSError as error:
        raise ZooError(f"cannot write the cache {path.parent} ({error}): set ZOO_CACHE") from error
