"""Where prepared data is kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.save(file, array)
        Path(file.name).replace(path)
    except OSError as error:
        raise ZooError(f"cannot write the cache {path.parent} ({error}): set ZOO_CACHE") from error
