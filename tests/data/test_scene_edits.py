"""Scenes are drawn as promised, and edits are exact."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.pictures import UNSEEN, draw, picture, word_pairs
from zoo.data.scene_edits import (
    BACKGROUND,
    C0,
    C1,
    C2,
    COLOURS,
    FRAME,
    KINDS,
    RELATION,
    S0,
    S1,
    S2,
    SHAPES,
    STRIPED,
    canonical,
    caption,
    edit,
    meaning,
)
from zoo.errors import ZooError

seeds = st.integers(0, 10_000)
kinds = st.sampled_from(KINDS)


def test_draws_are_the_same_on_every_machine():
    scenes = draw(200, extras=0.5)
    assert hashlib.sha256(scenes.astype("<i8").tobytes()).hexdigest()[:16] == "e404fc924255e408"


def test_scenes_are_what_they_promise():
    scenes = draw(4000, extras=0.4)
    assert (scenes[:, C0] != scenes[:, C1]).all() and (scenes[:, S0] != scenes[:, S1]).all()
    third = scenes[:, S2] >= 0
    assert ((scenes[:, C2] >= 0) == third).all() and not (third & (scenes[:, STRIPED] >= 0)).any()
    assert third.mean() == pytest.approx(0.2, abs=0.03)
    assert (scenes[:, STRIPED] >= 0).mean() == pytest.approx(0.2, abs=0.03)
    assert np.bincount(scenes[:, RELATION]) / 4000 == pytest.approx(0.25, abs=0.03)


def test_captions():
    scene = np.array([[0, 2, 0, 1, 0, 0, 0, -1, -1, -1], [3, 7, 7, 6, 3, 5, 2, 1, 3, 1]])
    assert caption(scene) == [
        "a red circle left of a blue square on navy in oak",
        "a yellow star below a striped copper bar and a green cross on umber in jade",
    ]


def test_few_scenes_of_a_batch_share_their_words():
    bags = Counter(tuple(sorted(text.split())) for text in caption(draw(2000)))
    assert sum(n for n in bags.values() if n > 1) < 0.05 * 2000


@given(seeds, kinds)
def test_edits_keep_or_change_the_words_they_should(seed, kind):
    scenes = draw(20, seed, extras=0.3)
    edited = edit(scenes, kind, np.random.default_rng(seed))
    for before, after in zip(caption(scenes), caption(edited), strict=True):
        a, b = before.split(), after.split()
        if kind.startswith("swap"):
            assert Counter(a) == Counter(b) and a != b
        elif kind.startswith("replace"):
            assert sum(x != y for x, y in zip(a, b, strict=True)) == 1
        else:
            short, long = sorted((a, b), key=len)
            more = list((Counter(long) - Counter(short)).elements())
            assert not Counter(short) - Counter(long) and len(more) == {"add_att": 1, "add_obj": 4}[kind]


@given(seeds)
def test_swapping_twice_changes_nothing(seed):
    scenes, rng = draw(20, seed, extras=0.5), np.random.default_rng(seed)
    for kind in ("swap_att", "swap_obj", "replace_rel"):
        assert np.array_equal(edit(edit(scenes, kind, rng), kind, rng), scenes)


@given(seeds, kinds, st.booleans())
def test_no_edit_is_a_true_caption(seed, kind, held_out):
    scenes = draw(20, seed, held_out=held_out, extras=0.3)
    edited = edit(scenes, kind, np.random.default_rng(seed))
    for before, after in zip(caption(scenes), caption(edited), strict=True):
        assert picture(before) != picture(after)


def test_meaning_is_what_the_words_say():
    scenes = draw(60, 1)
    scenes[:, [BACKGROUND, FRAME]] = 0
    family = np.concatenate([scenes, *(edit(scenes, kind, np.random.default_rng(0)) for kind in KINDS)])
    pictures = {}
    numbers = [pictures.setdefault(picture(text), len(pictures)) for text in caption(family)]
    assert len(pictures) < len(family)
    same = np.equal.outer(numbers, numbers)
    assert np.array_equal(same, np.equal.outer(meaning(family), meaning(family)))
    assert {picture(a) == picture(b) for a, b in zip(caption(family), caption(canonical(family)), strict=True)} == {
        True
    }


def test_unknown_edit_is_explained():
    with pytest.raises(ZooError, match="unknown edit 'swap': choose from swap_att"):
        edit(draw(2), "swap", np.random.default_rng(0))


@given(seeds, kinds)
def test_training_scenes_and_their_edits_hold_no_unseen_pair(seed, kind):
    scenes = draw(30, seed, extras=0.3)
    assert not word_pairs(caption(edit(scenes, kind, np.random.default_rng(seed)))) & UNSEEN
    assert not word_pairs(caption(scenes)) & UNSEEN


def test_every_pair_is_either_seen_or_held_out():
    everything = {(c, s) for c in COLOURS for s in SHAPES}
    assert word_pairs(caption(draw(4000))) == everything - UNSEEN and len(UNSEEN) == 16
    assert {c for c, _ in UNSEEN} == set(COLOURS) and {s for _, s in UNSEEN} == set(SHAPES)
