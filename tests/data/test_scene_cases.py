"""Compositional cases: captions alone say nothing, unseen pairs stay balanced, files have the benchmarks' layouts."""

import ast
import csv
import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from tests.data.pictures import UNSEEN, draw, picture, word_pairs
from zoo.data.scene_cases import composition_cases, scene_pairs
from zoo.data.scene_edits import KINDS, caption, edit, unseen_pairs
from zoo.data.scene_files import write_layouts
from zoo.data.scene_render import render


@pytest.mark.parametrize("kind", KINDS)
def test_unseen_cases_have_as_many_unseen_pairs_on_both_sides(kind):
    true, false = scene_pairs(kind, 300, np.random.default_rng(0), held_out=True)
    counts = [[len(word_pairs([text]) & UNSEEN) for text in caption(side)] for side in (true, false)]
    assert counts[0] == counts[1] == unseen_pairs(true).tolist() and min(counts[0]) >= 1


def words_of(texts):
    """Words and pairs of neighbouring words of each text."""
    return [Counter([*words, *map(" ".join, pairwise(words))]) for words in map(str.split, texts)]


def blind_accuracy(train, test):
    """Share of cases that the words and pairs of words of the captions decide, after training on other cases."""
    bags = DictVectorizer().fit([bag for side in train for bag in words_of(side)])
    difference = bags.transform(words_of(train[0])) - bags.transform(words_of(train[1]))
    sign = np.where(np.arange(len(train[0])) % 2, 1, -1)
    model = LogisticRegression(C=0.1, fit_intercept=False).fit(difference.multiply(sign[:, None]).tocsr(), sign)
    return float((model.predict(bags.transform(words_of(test[0])) - bags.transform(words_of(test[1]))) == 1).mean())


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_alone_say_nothing(kind, held_out):
    train, test = (
        [caption(side) for side in scene_pairs(kind, n, np.random.default_rng(seed), held_out)]
        for n, seed in ((400, 1), (1600, 2))
    )
    assert blind_accuracy(train, test) == pytest.approx(0.5, abs=0.03)


def test_a_blind_scorer_would_notice():
    scenes, rng = draw(1500, 8), np.random.default_rng(0)
    sides = [caption(scenes), caption(edit(scenes, "add_obj", rng))]
    assert blind_accuracy([side[:500] for side in sides], [side[500:] for side in sides]) == 1


def test_cases_match_their_pictures():
    cases = composition_cases(12, (0, 2))
    assert set(cases) == {
        f"{name}{suffix}"
        for name in (*KINDS, "winoground_swap_att", "winoground_swap_obj")
        for suffix in ("", "_unseen")
    }
    for name, (images, captions) in cases.items():
        assert images.shape == (12, 2 if name.startswith("winoground") else 1, 3, 32, 32)
        assert all(len(texts) == 2 and picture(texts[0]) != picture(texts[1]) for texts in captions)
    one, two = cases["swap_att"], cases["winoground_swap_att"]
    assert np.array_equal(one.images, two.images[:, :1]) and one.captions == two.captions
    assert len(Counter(len(texts[0].split()) > len(texts[1].split()) for texts in cases["add_obj"].captions)) == 2
    again = composition_cases(12, (0, 2))
    assert all(np.array_equal(cases[name].images, again[name].images) for name in cases)


def test_files_have_the_layout_of_the_benchmarks(tmp_path):
    write_layouts(tmp_path, 8, seed=3)
    for name, keys in (("relation", {"relation_name"}), ("attribution", {"attributes"})):
        rows = json.loads((tmp_path / "aro" / f"visual_genome_{name}.json").read_text())
        boxes = {"bbox_x", "bbox_y", "bbox_w", "bbox_h"}
        assert len(rows) == 8 and set(rows[0]) == {"image_path", "true_caption", "false_caption", *boxes, *keys}
        with Image.open(tmp_path / "aro" / "images" / rows[0]["image_path"]) as image:
            assert image.size == (rows[0]["bbox_w"], rows[0]["bbox_h"])
    for kind in KINDS:
        cases = json.loads((tmp_path / "sugarcrepe" / f"{kind}.json").read_text())
        assert list(cases) == [str(i) for i in range(8)]
        true, false = scene_pairs(kind, 8, np.random.default_rng([3, KINDS.index(kind)]), held_out=False)
        assert [case["caption"] for case in cases.values()] == caption(true)
        assert [case["negative_caption"] for case in cases.values()] == caption(false)
        read = [np.array(Image.open(tmp_path / "sugarcrepe/val2017" / case["filename"])) for case in cases.values()]
        assert np.array_equal(np.stack(read).transpose(0, 3, 1, 2), render(true, 3))
    lines = [json.loads(line) for line in (tmp_path / "winoground/examples.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(16))
    for line in lines:
        sides = [np.array(Image.open(tmp_path / "winoground/images" / f"{line[f'image_{i}']}.png")) for i in (0, 1)]
        assert (sides[0] != sides[1]).any() and Counter(line["caption_0"].split()) == Counter(line["caption_1"].split())
    with (tmp_path / "negclip/train_neg_clip.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["", "title", "filepath", "neg_caption", "neg_image"] and len(rows) == 8
    for i, row in enumerate(rows):
        assert (tmp_path / "negclip" / row["filepath"]).exists()
        assert all(picture(text) != picture(row["title"]) for text in ast.literal_eval(row["neg_caption"]))
        near = ast.literal_eval(row["neg_image"])
        assert len(set(near)) == 3 and i not in near and set(near) <= set(range(8))
