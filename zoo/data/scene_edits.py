"""Scenes as integers: drawing, describing and editing them.

A scene is a row of ten integers (`COLUMNS`). Seven are always there; `colour2` and `shape2` are a small third object and
`striped` is the object (0 or 1) that has stripes, -1 where there is none. A caption names every object of its scene
and says where object 0 is as seen from object 1, so each picture of two objects has two captions: "a red circle left of
a blue square" is "a blue square right of a red circle".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from zoo.errors import ZooError

COLUMNS = (
    "colour0", "colour1", "shape0", "shape1", "relation", "background", "frame", "colour2", "shape2", "striped",
)  # fmt: skip
C0, C1, S0, S1, RELATION, BACKGROUND, FRAME, C2, S2, STRIPED = range(10)
COLOURS = ("red", "green", "blue", "yellow", "pink", "cyan", "white", "copper")
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "bar", "star")
RELATIONS = ("left of", "right of", "above", "below")  # the opposite of r is r ^ 1
BACKGROUNDS = ("navy", "maroon", "forest", "slate", "plum", "umber")
FRAMES = ("oak", "ivory", "jade", "coral", "ebony", "gold", "cobalt", "lilac")

# (colour, shape) pairs that training never shows: four blocks of two colours by two shapes, so that a swap of colours
# or the replacement of one can lead from an unseen pair to an unseen pair.
HELD_OUT = np.kron(np.eye(4, dtype=bool)[[1, 0, 3, 2]], np.ones((2, 2), bool))

KINDS = ("swap_att", "swap_obj", "replace_rel", "replace_att", "replace_obj", "add_obj", "add_att")

SceneArray = Int[np.ndarray, "N 10"]


def draw_scenes(n: int, rng: np.random.Generator, held_out: bool = False, extras: float = 0.0) -> SceneArray:
    """Draw scenes uniformly; the two colours differ, and so do the two shapes.

    Args:
        n: number of scenes.
        rng: source of randomness.
        held_out: False draws scenes without pairs of `HELD_OUT`, also after an exchange of their colours, as training
            needs; True draws scenes with at least one such pair.
        extras: share of scenes with a third object or with stripes (half of it each).
    """
    found: list[np.ndarray] = []
    while sum(map(len, found)) < n:
        scenes = np.full((2 * n + 16, len(COLUMNS)), -1)
        scenes[:, [C0, C1]] = rng.random((len(scenes), len(COLOURS))).argsort(1)[:, :2]
        scenes[:, [S0, S1]] = rng.random((len(scenes), len(SHAPES))).argsort(1)[:, :2]
        for column, names in ((RELATION, RELATIONS), (BACKGROUND, BACKGROUNDS), (FRAME, FRAMES)):
            scenes[:, column] = rng.integers(len(names), size=len(scenes))
        wanted = unseen_pairs(scenes) > 0 if held_out else unseen_pairs(scenes) + unseen_pairs(_swap_att(scenes)) == 0
        found.append(scenes[wanted])
    scenes = np.concatenate(found)[:n]
    extra = rng.random(n)
    third, striped = extra < extras / 2, (extras / 2 <= extra) & (extra < extras)
    scenes[third] = _add_obj(scenes[third], rng)
    scenes[striped] = _add_att(scenes[striped], rng)
    return scenes


def unseen_pairs(scenes: SceneArray) -> Int[np.ndarray, " N"]:
    """How many objects of each scene are a (colour, shape) pair that training never shows."""
    held = HELD_OUT[scenes[:, [C0, C1, C2]], scenes[:, [S0, S1, S2]]] & (scenes[:, [S0, S1, S2]] >= 0)
    return held.sum(1)


def caption(scenes: SceneArray) -> list[str]:
    """Describe each scene: "a red circle left of a blue square on navy in oak"."""
    return [_caption(*row) for row in scenes.tolist()]


def _caption(c0: int, c1: int, s0: int, s1: int, r: int, ground: int, frame: int, c2: int, s2: int, at: int) -> str:
    objects = [(c0, s0), (c1, s1), (c2, s2)]
    first, second, third = (
        f"a {'striped ' if at == i else ''}{COLOURS[c]} {SHAPES[s]}" for i, (c, s) in enumerate(objects)
    )
    if s1 < 0:
        return f"{first} on {BACKGROUNDS[ground]} in {FRAMES[frame]}"
    also = f" and {third}" if s2 >= 0 else ""
    return f"{first} {RELATIONS[r]} {second}{also} on {BACKGROUNDS[ground]} in {FRAMES[frame]}"


def canonical(scenes: SceneArray) -> SceneArray:
    """The same pictures described from the object at the left or at the top."""
    turned = _swap_obj(_replace_rel(scenes))
    return np.where((scenes[:, RELATION] % 2 == 1)[:, None], turned, scenes)


def meaning(scenes: SceneArray) -> Int[np.ndarray, " N"]:
    """A number for each scene, equal for those that describe the same picture."""
    names = (COLOURS, COLOURS, SHAPES, SHAPES, RELATIONS, BACKGROUNDS, FRAMES, COLOURS, SHAPES, (0, 1))
    digits = tuple(canonical(scenes).T + 1)  # absent is a digit too
    return np.asarray(np.ravel_multi_index(digits, tuple(len(x) + 1 for x in names)))


def edit(scenes: SceneArray, kind: str, rng: np.random.Generator) -> SceneArray:
    """Change one thing in each scene, so that no caption of the result is true of the original.

    | kind | change |
    |---|---|
    | `swap_att` | exchange the colours of the two objects |
    | `swap_obj` | exchange the objects; the same picture as after `replace_rel` |
    | `replace_rel` | the opposite relation |
    | `replace_att` | another colour for one object |
    | `replace_obj` | another shape for one object |
    | `add_obj` | a third object; taken away where there is one |
    | `add_att` | stripes on one object; taken away where there are some |

    New colours and shapes occur nowhere else in the scene. An object that training may show becomes another one that it
    may show; an unseen one becomes another unseen one where the rest of the scene allows that.

    Raises:
        ZooError: `kind` is none of these, or a scene has not two objects.
    """
    if kind not in _EDITS:
        raise ZooError(f"unknown edit {kind!r}: choose from {', '.join(KINDS)}")
    if (scenes[:, [S0, S1]] < 0).any():
        raise ZooError("only scenes of two objects can be edited: use the source Scenes")
    return _EDITS[kind](scenes, rng)


def _swap_att(scenes: SceneArray, _: object = None) -> SceneArray:
    return scenes[:, [C1, C0, *range(S0, len(COLUMNS))]]


def _swap_obj(scenes: SceneArray, _: object = None) -> SceneArray:
    swapped = scenes[:, [C1, C0, S1, S0, *range(RELATION, len(COLUMNS))]]
    swapped[:, STRIPED] = np.array([1, 0, -1])[swapped[:, STRIPED]]
    return swapped


def _replace_rel(scenes: SceneArray, _: object = None) -> SceneArray:
    changed = scenes.copy()
    changed[:, RELATION] ^= 1
    return changed


def _replace_att(scenes: SceneArray, rng: np.random.Generator) -> SceneArray:
    return _replace(scenes, (C0, C1, C2), (S0, S1), HELD_OUT, rng)


def _replace_obj(scenes: SceneArray, rng: np.random.Generator) -> SceneArray:
    return _replace(scenes, (S0, S1, S2), (C0, C1), HELD_OUT.T, rng)


def _replace(
    scenes: SceneArray,
    slots: Sequence[int],
    others: Sequence[int],
    held: Bool[np.ndarray, "8 8"],
    rng: np.random.Generator,
) -> SceneArray:
    """Another value in one of the first two `slots`; `held[value, other]` says which pairs are unseen."""
    rows, side = np.arange(len(scenes)), rng.integers(2, size=len(scenes))
    slot = np.array(slots)[side]
    old, own = scenes[rows, slot], scenes[rows, np.array(others)[side]]
    across = scenes[rows, np.array(others)[1 - side]]  # what it would be paired with after an exchange of colours
    rank = rng.random((len(scenes), len(held)))
    rank += 2 * (held[old, own][:, None] == held[:, own].T) + (held[old, across][:, None] == held[:, across].T)
    for column in slots:
        present = scenes[:, column] >= 0
        rank[rows[present], scenes[present, column]] = -1
    changed = scenes.copy()
    changed[rows, slot] = rank.argmax(1)
    return changed


def _add_obj(scenes: SceneArray, rng: np.random.Generator) -> SceneArray:
    pairs = rng.random((len(scenes), *HELD_OUT.shape)) - HELD_OUT  # unseen pairs only where nothing else is left
    rows = np.arange(len(scenes))
    for colour, shape in ((C0, S0), (C1, S1)):
        pairs[rows, scenes[:, colour]] = -2
        pairs[rows, :, scenes[:, shape]] = -2
    added = np.stack(np.unravel_index(pairs.reshape(len(scenes), HELD_OUT.size).argmax(1), HELD_OUT.shape), 1)
    changed = scenes.copy()
    changed[:, [C2, S2]] = np.where(scenes[:, [S2]] >= 0, -1, added)
    return changed


def _add_att(scenes: SceneArray, rng: np.random.Generator) -> SceneArray:
    changed = scenes.copy()
    changed[:, STRIPED] = np.where(scenes[:, STRIPED] >= 0, -1, rng.integers(2, size=len(scenes)))
    return changed


_EDITS = dict(
    zip(KINDS, (_swap_att, _swap_obj, _replace_rel, _replace_att, _replace_obj, _add_obj, _add_att), strict=True)
)
