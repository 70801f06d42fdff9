"""Pictures follow their scenes, and nothing but them, their seed and their row."""

import numpy as np
import pytest

from tests.data.pictures import draw
from zoo.data.scene_edits import (
    BACKGROUND,
    C0,
    C1,
    C2,
    COLUMNS,
    FRAME,
    KINDS,
    RELATION,
    S0,
    S1,
    canonical,
    edit,
)
from zoo.data.scene_render import render


def test_pixels_are_the_same_on_every_machine():
    images = render(draw(50, extras=0.5), 3)
    block_means = images.reshape(50, 3, 4, 8, 4, 8).mean((0, 3, 5))
    np.testing.assert_allclose(block_means[:, 1, 2], [94.6475, 78.0816, 88.5575], atol=0.05)


def test_two_descriptions_of_a_picture_give_one_image_and_edits_move_nothing_else():
    scenes, rng = draw(30, 2, extras=0.4), np.random.default_rng(0)
    images = render(scenes, 5)
    assert np.array_equal(render(edit(scenes, "swap_obj", rng), 5), render(edit(scenes, "replace_rel", rng), 5))
    assert np.array_equal(render(canonical(scenes), 5), images)
    for kind in KINDS:
        changed = (render(edit(scenes, kind, rng), 5) != images).any(1)
        assert changed.any((1, 2)).all()
        one = 13 * 13 if kind in ("replace_att", "replace_obj", "add_att", "add_obj") else 2 * 13 * 13
        assert changed.sum((1, 2)).max() <= one
        assert not changed[:, :2].any() and not changed[:, :, -2:].any()


def test_an_image_depends_on_its_scene_seed_and_row_alone():
    scenes = draw(40, 3)
    images = render(scenes, (1, 2))
    rows = np.array([7, 31, 2])
    assert np.array_equal(render(scenes[rows], (1, 2), rows), images[rows])
    assert (render(scenes, (1, 3)) != images).any((1, 2, 3)).all()


def accuracies(scenes, truths, train):
    """Accuracy on the rest of ridge regression of one-hot truths on pixels, trained on the first rows."""
    pixels = render(scenes, 6).reshape(len(scenes), -1) / 255
    pixels -= pixels[:train].mean(0)
    targets = [np.eye(truth.max() + 1)[truth] for truth in truths]
    gram = pixels[:train] @ pixels.T
    weights = np.linalg.solve(gram[:, :train] + 30 * np.eye(train), np.concatenate(targets, 1)[:train])
    scores = np.split(gram[:, train:].T @ weights, np.cumsum([t.shape[1] for t in targets])[:-1], 1)
    return [(s.argmax(1) == t[train:]).mean() for s, t in zip(scores, truths, strict=True)]


@pytest.mark.parametrize("axis", [0, 2])
def test_a_linear_probe_reads_every_slot_from_pixels(axis):
    scenes = draw(4000, 4)
    scenes = canonical(scenes[scenes[:, RELATION] // 2 * 2 == axis])[:1300]
    least = {C0: 0.65, C1: 0.65, S0: 0.55, S1: 0.55, BACKGROUND: 0.9, FRAME: 0.75}  # chance is 1/8, 1/6 for backgrounds
    for column, accuracy in zip(least, accuracies(scenes, [scenes[:, c] for c in least], 900), strict=True):
        assert accuracy > least[column], COLUMNS[column]


def test_a_linear_probe_tells_the_axis_and_a_third_object_from_stripes():
    scenes = draw(1300, 5, extras=1.0)
    axis, third = accuracies(scenes, [scenes[:, RELATION] // 2, (scenes[:, C2] >= 0).astype(int)], 900)
    assert axis > 0.9 and third > 0.6  # chance is 1/2
