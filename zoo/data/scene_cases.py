"""Compositional cases of the scenes, and the files that benchmarks publish such cases in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from zoo.data.scene_edits import KINDS, caption, draw_scenes, edit, unseen_pairs
from zoo.data.scene_render import render

WINOGROUND = ("swap_att", "swap_obj")


class Cases(NamedTuple):
    """C cases with K images and L captions each, the true caption of image k in place k."""

    images: UInt8[np.ndarray, "C K 3 32 32"]
    captions: list[list[str]]


def composition_cases(n: int, seed: tuple[int, ...]) -> dict[str, Cases]:
    """Cases of every kind of edit: one image with its caption and that of the edited scene (SugarCrepe, ARO).

    `winoground_swap_att` and `winoground_swap_obj` have the edited scene's image too. Names that end in `_unseen` have
    objects that training never shows, in the true caption and in the false one as many. Which of the two scenes of a
    case is the true one is a coin's toss, so nothing in the words tells (the `add` cases have the third object, or the
    stripes, in one half of the pictures).

    Args:
        n: cases of each kind.
        seed: of the cases.
    """
    cases = {}
    for number, kind in enumerate(KINDS):
        for held_out, suffix in enumerate(("", "_unseen")):
            sides = scene_pairs(kind, n, np.random.default_rng([*seed, 1, number, held_out]), bool(held_out))
            captions = [list(texts) for texts in zip(*map(caption, sides), strict=True)]
            both = kind in WINOGROUND
            images = [render(side, (*seed, 1, number, held_out)) for side in sides[: 1 + both]]
            cases[f"{kind}{suffix}"] = Cases(images[0][:, None], captions)
            if both:
                cases[f"winoground_{kind}{suffix}"] = Cases(np.stack(images, 1), captions)
    return cases


def scene_pairs(kind: str, n: int, rng: np.random.Generator, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """True scenes and their edits, `[n, 10]` each, with equally many unseen objects."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < n:
        scenes = draw_scenes(2 * n + 16, rng, held_out)
        pairs = np.stack([scenes, edit(scenes, kind, rng)], 1)
        found.append(pairs[unseen_pairs(pairs[:, 0]) == unseen_pairs(pairs[:, 1])])
    pairs = np.concatenate(found)[:n]
    turned = rng.random(n) < 0.5
    pairs[turned] = pairs[turned, ::-1]
    return pairs[:, 0], pairs[:, 1]
