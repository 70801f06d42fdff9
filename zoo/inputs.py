"""Images and texts of a user, on their way into a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from zoo.data.collections import CollectionPairs, fetch
from zoo.errors import ZooError
from zoo.losses.scores import normalize as unit_norm
from zoo.methods.towers import Tower
from zoo.recipes import suggest
from zoo.runs import Run


@torch.no_grad()
def embed(
    run: Run, inputs: Any, name: str | None, batch_size: int, normalize: bool, device: str
) -> Float[Tensor, "B D"]:
    """`Run.embed`."""
    items = [inputs] if isinstance(inputs, str | Path | Image.Image) else inputs
    if not len(items):
        raise ZooError("no inputs to embed: pass texts or images")
    strings = all(isinstance(item, str) for item in items)
    tower = pick(run.towers, name, ("texts", "images") if strings else ("images",)).to(device)
    parts = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        prepared = texts(run, batch, tower) if tower.reads == "texts" else images(run, batch, tower).to(device)
        parts.append(tower(prepared.to(device)).float().cpu())
    tower.cpu()
    found = torch.cat(parts)
    return unit_norm(found) if normalize else found


def pick(towers: Mapping[str, Tower], name: str | None, reads: Sequence[str]) -> Tower:
    """The named tower, or the one that reads the first possible of some kinds of inputs.

    Raises:
        ZooError: there is none.
    """
    if name is not None and name not in towers:
        raise ZooError(f"no tower {name!r}{suggest(name, towers)}; there are: {', '.join(towers)}")
    named = [tower for key, tower in towers.items() if name in (None, key)]
    for tower in (tower for kind in reads for tower in named if tower.reads == kind):
        return tower
    what = f"tower {name!r} reads" if name else "the run's model reads"
    raise ZooError(f"{what} {' and '.join(sorted({t.reads for t in named}))}, not {' or '.join(reads)}")


def texts(run: Run, batch: Any, tower: Tower) -> Any:
    """Tokens of texts.

    Raises:
        ZooError: the run has no tokenizer.
    """
    if run.data.tokenizer is None:
        raise ZooError("the run has no --data.tokenizer: it reads no texts")
    return run.data.tokenizer(list(batch), tower.side)


def images(run: Run, batch: Any, tower: Tower) -> Tensor:
    """Images as the evaluation of the run prepares them.

    Raises:
        ZooError: something is no image.
    """
    if isinstance(batch, Tensor | np.ndarray) and batch.ndim == 4:
        stacked = batch if isinstance(batch, Tensor) else torch.from_numpy(np.require(batch, requirements="W"))
        if stacked.dtype != torch.uint8 or stacked.shape[1] != 3:
            raise ZooError(f"a batch of images is 8-bit [B, 3, H, W], not {stacked.dtype} {list(stacked.shape)}")
    else:
        height, width = image_size(run, tower)
        stacked = torch.stack([_image(item, height, width) for item in batch])
    transform: Any = run.datamodule.transform
    return stacked if transform is None else transform.evaluate(stacked)


def image_size(run: Run, tower: Tower) -> tuple[int, int]:
    """Height and width of the images in the run's data that a tower reads."""
    pairs = run.data.train_pairs
    if isinstance(pairs, CollectionPairs):
        found: Any = fetch(pairs.queries if tower.side == "query" else pairs.documents, [0])
    else:
        found = pairs[0][tower.side == "document"]
    height, width = getattr(found, "image", found).shape[-2:]  # a composed query has an image
    return height, width


def _image(item: Any, height: int, width: int) -> UInt8[Tensor, "3 H W"]:
    if isinstance(item, Tensor) and item.dtype == torch.uint8 and item.ndim == 3 and len(item) == 3:
        item = item.permute(1, 2, 0).numpy()
    try:
        if isinstance(item, str | Path):
            with Image.open(item) as file:
                item = file.convert("RGB")
        elif isinstance(item, np.ndarray):
            item = Image.fromarray(item)
        picture: Any = item
        fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, TypeError, ValueError, AttributeError) as error:
        what = str(item) if isinstance(item, str | Path) else type(item).__name__
        raise ZooError(f"cannot read {what} as an image: pass a file, a PIL image, or 8-bit [H, W, 3]") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
