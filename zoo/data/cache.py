"""Where prepared data is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
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
