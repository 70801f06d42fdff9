"""The source: pairs know what is true of them, images are cached, siblings differ in what was edited."""

import numpy as np
import pytest

from tests.data.pictures import UNSEEN, picture, word_pairs
from zoo.data.scene_edits import KINDS, caption, edit, meaning
from zoo.data.scene_render import render
from zoo.data.scenes import Scenes
from zoo.errors import ZooError


def test_pairs_know_all_that_is_true_of_an_image(tmp_path):
    pairs = Scenes(n_train=2500, n_val=10, n_test=10).split("train", tmp_path)
    texts = [pairs[i][1] for i in range(len(pairs))]
    pictures = [picture(text) for text in texts]
    documents = {}
    for text, shown in zip(texts, pictures, strict=True):
        documents.setdefault(shown, set()).add(text)
    known = [{pairs.documents[d] for d in row if d >= 0} for row in pairs.columns["known"]]
    assert known == [documents[shown] for shown in pictures]
    assert max(map(len, known)) == 2 and len(pairs.documents) == len(set(texts)) < 2500


def test_images_are_cached_by_all_that_they_depend_on(tmp_path):
    source = Scenes(n_train=30, n_val=10, n_test=20)
    source.prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    pairs = source.split("test", tmp_path)
    assert np.array_equal(pairs.queries.images, render(pairs.scenes, (0, 2)))
    assert source.split("val", tmp_path).scenes.tolist() != pairs.scenes[:10].tolist()
    Scenes(n_train=30, n_val=10, n_test=20, siblings=2).prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    Scenes(seed=1, n_train=30, n_val=10, n_test=20).prepare(tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


def test_retrieval_searches_the_captions_of_the_split(tmp_path):
    source = Scenes(n_train=10, n_val=10, n_test=2000)
    data = source.retrieval("test", tmp_path)
    texts = caption(source.scenes("test")[0])
    assert sorted(data.documents) == sorted(set(texts)) and len(data.queries) == 2000
    for text, relevant in zip(texts, data.relevance, strict=True):
        assert {picture(data.documents[d]) for d in relevant} == {picture(text)}
        assert text in [data.documents[d] for d in relevant]


def test_siblings_stand_together_and_show_different_pictures(tmp_path):
    source = Scenes(n_train=50, n_val=10, n_test=10, siblings=4, edits=KINDS)
    pairs = source.split("train", tmp_path)
    assert pairs.columns["group"].tolist() == [i // 4 for i in range(200)]
    edits = pairs.columns["edit"].reshape(50, 4)
    assert (edits[:, 0] == -1).all() and set(edits[:, 1:].ravel()) == set(range(len(KINDS)))
    assert (np.diff(np.sort(meaning(pairs.scenes).reshape(50, 4), 1), axis=1) > 0).all()
    alone = Scenes(n_train=50, n_val=10, n_test=10).split("train", tmp_path)
    assert np.array_equal(pairs.scenes[::4], alone.scenes)
    assert np.array_equal(pairs.queries.images[::4], alone.queries.images)
    names = [KINDS[i] if i >= 0 else None for i in edits[:, 1]]
    for name, origin, sibling in zip(names, pairs.scenes[::4], pairs.scenes[1::4], strict=True):
        if name in ("swap_att", "swap_obj", "replace_rel"):
            assert np.array_equal(edit(origin[None], name, np.random.default_rng(0))[0], sibling)
    assert not word_pairs(pairs.documents) & UNSEEN


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edits": ("swap",)}, "unknown edit 'swap'"),
        ({"siblings": 0}, "siblings"),
        ({"siblings": 2, "edits": ()}, "siblings"),
        ({"siblings": 3, "edits": ("swap_obj", "replace_rel")}, "cannot make 3 different siblings"),
    ],
)
def test_impossible_siblings_are_explained(tmp_path, arguments, message):
    with pytest.raises(ZooError, match=message):
        Scenes(n_train=5, **arguments).split("train", tmp_path)
