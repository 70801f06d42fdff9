"""Composed retrieval asks for what changes, and images outside the known classes are what they are called."""

import numpy as np
import pytest

from zoo.data.scene_edits import C0, C1, RELATION, S0, S1, SHAPES, STRIPED, caption, edit, meaning
from zoo.data.scene_render import render
from zoo.data.scene_tasks import CHANGES, KNOWN_SHAPES, SceneSubjects, composed_triplets
from zoo.data.scenes import Scenes
from zoo.errors import ZooError


def apply(text, scene):
    """The caption of the scene that a modification text asks for, from its words."""
    words, (objects, _, rest) = text.split(), caption(scene[None])[0].partition(" on ")
    background, _, frame = rest.partition(" in ")
    relation = next(r for r in (" left of ", " right of ", " above ", " below ") if r in objects)
    parts = [part.split() for part in objects.split(relation)]
    if text == "exchange the two":
        parts.reverse()
    elif words[:3] == ["put", "it", "on"]:
        background = words[3]
    elif words[:3] == ["put", "it", "in"]:
        frame = words[3]
    else:
        place = {"left": " left of ", "right": " right of ", "top": " above ", "bottom": " below "}[words[2]]
        if words[4] == "a":
            parts[place != relation][-1] = words[5]
        else:
            parts[place != relation][-2] = words[4]
    return f"{' '.join(parts[0])}{relation}{' '.join(parts[1])} on {background} in {frame}"


def test_targets_are_what_the_texts_ask_for():
    references, texts, targets = composed_triplets(300, np.random.default_rng(0))
    assert [apply(t, s) for t, s in zip(texts, references, strict=True)] == caption(targets)
    assert (meaning(references) != meaning(targets)).all()
    assert {t.split()[0] for t in texts} == {"make", "put", "exchange"}


def test_changes_can_be_chosen():
    references, texts, targets = composed_triplets(50, np.random.default_rng(0), changes=("colour",))
    assert ((references != targets).sum(1) == 1).all() and all(t.startswith("make the ") for t in texts)
    with pytest.raises(ZooError, match="unknown change 'size': choose from colour"):
        composed_triplets(5, np.random.default_rng(0), changes=("size",))
    assert len(CHANGES) == 5


def test_subjects_are_pictures_of_one_known_object(tmp_path):
    source = SceneSubjects(n_train=300, n_val=10, n_test=20)
    pairs, scenes = source.split("train", tmp_path), source.scenes("train")[0]
    assert len(pairs) == 300
    full = [set(text.split()) for text in caption(scenes)]
    said = [pairs[i][1] for i in range(300)]
    assert all(set(text.split()) <= words for text, words in zip(said, full, strict=True))
    assert all(len(set(KNOWN_SHAPES) & set(text.split())) == 1 for text in said)
    known = [{pairs.documents[d] for d in row if d >= 0} for row in pairs.columns["known"]]
    assert known == [{text for text in said if set(text.split()) <= words} for words in full]
    kinds = np.bincount([("on" in text.split()) + ("in" in text.split()) for text in said], minlength=3)
    assert len(set(said)) > 100 and kinds.min() > 40 and "a circle" in said
    assert said == [source.split("train", tmp_path)[i][1] for i in range(300)]
    Scenes(n_train=300, n_val=10, n_test=20).prepare(tmp_path)  # the caches of the two are apart
    assert np.array_equal(source.split("train", tmp_path).queries.images, render(scenes, (0, 0)))
    assert source.composition_cases("test", tmp_path) == {}


def test_outside_is_outside(tmp_path):
    source = SceneSubjects(n_train=10, n_val=10, n_test=60)
    sets = source.ood_sets("test", tmp_path)
    scenes = source.scenes("test")[0]
    assert sets.classes == SHAPES[:6] and [sets.classes[i] for i in sets.labels] == [
        text.split()[2] for text in caption(scenes)
    ]
    assert list(sets.outside) == ["near_erased", "near_shape", "far_noise", "far_texture"]
    assert all(images.shape == sets.images.shape for images in sets.outside.values())
    inside = sets.outside["near_erased"][:, :, 2:-2, 2:-2] / 255
    assert inside.std((2, 3)).max() < 0.05 < (sets.images[:, :, 2:-2, 2:-2] / 255).std((2, 3)).max(1).min()
    shown = (sets.images != sets.outside["near_erased"]).any(1).sum((1, 2))
    assert shown.min() > 20 and shown.max() <= 13 * 13
    again = source.ood_sets("test", tmp_path)
    assert all(np.array_equal(sets.outside[name], again.outside[name]) for name in sets.outside)


def test_near_shapes_are_the_two_that_training_lacks(tmp_path):
    source = SceneSubjects(n_train=10, n_val=10, n_test=40)
    sets = source.ood_sets("test", tmp_path)
    scenes, rows, _ = source.scenes("test")
    candidates = []
    for shape in range(len(SHAPES)):
        other = scenes.copy()
        other[:, S0] = shape
        candidates.append((render(other, (0, 2), rows) == sets.outside["near_shape"]).all((1, 2, 3)))
    assert np.array_equal(np.stack(candidates)[6:].sum(0), np.ones(40)) and not np.stack(candidates)[:6].any()


def test_subjects_cannot_be_edited(tmp_path):
    scenes = SceneSubjects(n_train=10, n_val=10, n_test=10).scenes("val")[0]
    assert (scenes[:, [C1, S1, STRIPED]] == -1).all() and (scenes[:, [C0, RELATION]] >= 0).all()
    with pytest.raises(ZooError, match="two objects"):
        edit(scenes, "replace_att", np.random.default_rng(0))
