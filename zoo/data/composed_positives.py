"""More triplets for composed retrieval, from captions: SPN4CIR's positives.

Source: Feng et al. 2024 (arXiv 2404.11317), section 3.2; templates of the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from zoo.errors import ZooError

TEMPLATES = ("{1} instead of {0}", "Unlike {0}, I want {1}", "{1}")


class Generated(NamedTuple):
    """n triplets: image numbers and texts."""

    references: Int[np.ndarray, " n"]
    texts: list[str]
    targets: Int[np.ndarray, " n"]


def generate_triplets(
    features: Float[np.ndarray, "N D"],
    captions: Sequence[str],
    window: tuple[int, int],
    rng: np.random.Generator,
    templates: Sequence[str] = TEMPLATES,
    per_reference: int = 1,
    references: Int[np.ndarray, " R"] | None = None,
    limit: int | None = None,
    fits: Callable[[str], bool] = lambda text: True,
) -> Generated:
    """Pairs of images that differ clearly, and the text that leads from one's caption to the other's.

    Of each reference, targets are drawn uniformly from the images whose rank by similarity to it lies in the window:
    far enough not to be near-duplicates. Images must be distinct; duplicates would be false negatives of the bank.

    Args:
        features: image features, of any length.
        captions: caption of each image.
        window: r_min (included) and r_max (excluded); the most similar other image has rank 0.
        rng: source of randomness.
        templates: drawn from uniformly; `{0}` is the reference's caption, `{1}` the target's.
        per_reference: k, targets of each reference.
        references: images to start from, e.g. those that are references already; None takes all.
        limit: at most so many triplets, drawn uniformly; None keeps all.
        fits: does the tokenizer take the whole text? Otherwise the target's caption is the text.

    Raises:
        ZooError: the window holds fewer than k images.
    """
    low, high = window[0], min(window[1], len(features) - 1)
    if low < 0 or high - low < per_reference:
        raise ZooError(
            f"ranks {window[0]} to {window[1]} of {len(features) - 1} other images hold fewer than {per_reference}: "
            "move the window"
        )
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    start = np.arange(len(features)) if references is None else np.asarray(references)
    targets = np.empty((len(start), per_reference), np.int64)
    for row, reference in enumerate(start):
        similarity = unit @ unit[reference]
        similarity[reference] = np.inf  # itself stands before rank 0
        ranked = np.argsort(-similarity, kind="stable")[1:]
        targets[row] = rng.choice(ranked[low:high], per_reference, replace=False)
    start, ends = start.repeat(per_reference), targets.ravel()
    if limit is not None and limit < len(start):
        kept = np.sort(rng.choice(len(start), limit, replace=False))
        start, ends = start[kept], ends[kept]
    texts, names = [], list(templates)
    drawn = rng.integers(len(templates), size=len(start)).tolist()
    for reference, target, which in zip(start.tolist(), ends.tolist(), drawn, strict=True):
        text = names[which].format(captions[reference], captions[target])
        texts.append(text if fits(text) else captions[target])
    return Generated(start, texts, ends)
