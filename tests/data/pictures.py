"""What captions of scenes say, read from their words: an oracle beside the integers."""

from itertools import pairwise

import numpy as np

from zoo.data.scene_edits import COLOURS, HELD_OUT, SHAPES, draw_scenes


def draw(n, seed=0, **kwargs):
    return draw_scenes(n, np.random.default_rng(seed), **kwargs)


def picture(text):
    """What a caption says, read from its words: which object is where, what else there is, and on what."""
    objects, _, frame = text.partition(" in ")
    objects, _, background = objects.partition(" on ")
    objects, _, third = objects.partition(" and ")
    relation = next(r for r in (" left of ", " right of ", " above ", " below ") if r in objects)
    first, second = objects.split(relation)
    if relation in (" right of ", " below "):
        first, second = second, first
    return "across" if relation in (" left of ", " right of ") else "down", first, second, third, background, frame


def word_pairs(texts):
    """All (colour, shape) pairs that captions name."""
    words = [text.split() for text in texts]
    return {pair for row in words for pair in pairwise(row) if pair[0] in COLOURS}


UNSEEN = {(COLOURS[c], SHAPES[s]) for c, s in np.argwhere(HELD_OUT)}
