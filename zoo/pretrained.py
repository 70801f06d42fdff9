"""Pretrained models and tokenizers, from a folder or a model hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import ZooError


def load_pretrained(load: Callable[..., Any], name: str, **kwargs: Any) -> Any:
    """What `load(name, **kwargs)` returns; the network is not touched where `name` is a folder or looks like a path.

    Args:
        load: a `from_pretrained`.
        name: a folder, or an id on the hub (`name` or `owner/name`).
        **kwargs: passed on.

    Raises:
        ZooError: no such folder, nothing usable in it, or nothing by that id that the hub can serve.
    """
    if Path(name).is_dir():
        kwargs["local_files_only"] = True
    elif Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ZooError(f"no folder {name}: pass one that `save_pretrained` wrote, or an id on the hub")
    try:
        return load(name, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ZooError(
            f"cannot load {name!r} ({reason}): check the name and the network, or pass the folder of a copy"
        ) from error
