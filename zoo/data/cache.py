"""Where prepared data is kept."""

from __future__ import annotations

import os
from pathlib import Path

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
