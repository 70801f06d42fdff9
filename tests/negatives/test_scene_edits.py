"""Made captions are false, known by what they mean, and drawn afresh."""

import numpy as np
import pytest

from tests.data.pictures import picture
from zoo.data.collections import CollectionPairs
from zoo.data.scene_edits import KINDS
from zoo.data.scenes import Scenes
from zoo.errors import ZooError
from zoo.negatives.scene_edits import SceneEdits


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return Scenes(n_train=60, n_val=1, n_test=1, siblings=3).split("train", tmp_path_factory.mktemp("cache"))


def made(pairs, generator, seed=0):
    indices = np.arange(40)
    documents, keys, mask = generator.generate(pairs, indices, np.random.default_rng(seed))
    assert keys.shape == mask.shape == (40, generator.n) and ((keys == -1) == ~mask).all()
    return np.array(documents).reshape(40, -1), keys, mask


def test_negatives_are_false_and_differ(pairs):
    documents, keys, mask = made(pairs, SceneEdits(KINDS, n=4))
    assert mask.all()
    for i in range(40):
        pictures = [picture(text) for text in documents[i]]
        assert picture(pairs[i][1]) not in pictures and len(set(pictures)) == 4
        assert len(set(keys[i])) == 4


def test_a_caption_that_is_true_of_another_image_has_the_key_of_that_image_s_caption(pairs):
    documents, keys, _ = made(pairs, SceneEdits(("swap_att", "swap_obj", "replace_rel"), n=2))
    of_picture = {picture(text): i for i, text in enumerate(pairs.documents)}
    known = {picture(pairs[i][1]): set(pairs.columns["known"][i].tolist()) for i in range(len(pairs))}
    seen, reworded = 0, 0
    for text, key in zip(documents.ravel(), keys.ravel(), strict=True):
        if picture(text) in of_picture:
            assert key in known[picture(text)]
            seen += 1
            reworded += text not in pairs.documents
        else:
            assert key >= 2**40
    assert seen > 5 and reworded > 0


def test_equal_keys_mean_equal_pictures(pairs):
    documents, keys, _ = made(pairs, SceneEdits(KINDS, n=6))
    pictures = [picture(text) for text in documents.ravel()]
    keys = keys.ravel().tolist()
    assert len(set(zip(pictures, keys, strict=True))) == len(set(pictures)) == len(set(keys))


def test_where_kinds_run_out_of_pictures_the_rest_is_masked(pairs):
    _, _, mask = made(pairs, SceneEdits(("swap_obj", "replace_rel"), n=2))
    assert np.array_equal(mask, np.tile([True, False], (40, 1)))


def test_draws_follow_the_generator_of_random_numbers(pairs):
    generator = SceneEdits(("swap_att", "replace_att"))
    first, again, other = (made(pairs, generator, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and (first != other).any()
    assert made(pairs, SceneEdits(("swap_att",)))[0].tolist() == made(pairs, SceneEdits(("swap_att",)), 5)[0].tolist()


def test_mistakes_are_explained(pairs):
    with pytest.raises(ZooError, match="unknown edit 'swap'"):
        SceneEdits(("swap",))
    with pytest.raises(ZooError, match="3 negatives of different kinds from 2 kinds"):
        SceneEdits(("swap_att", "swap_obj"), n=3)
    texts = CollectionPairs(["a"], ["b"], np.array([0]), np.array([0]))
    with pytest.raises(ZooError, match="use it with the source Scenes"):
        SceneEdits().generate(texts, np.array([0]), np.random.default_rng(0))
