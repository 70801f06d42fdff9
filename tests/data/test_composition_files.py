"""ARO, SugarCrepe, Winoground and the order sets, read from tiny copies of their layouts."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data import composition_layouts as layouts
from zoo.composition import first_best
from zoo.data.aro_relations import UNUSABLE
from zoo.data.collections import fetch
from zoo.data.composition_files import SUGARCREPE, Aro, SugarCrepe, Winoground
from zoo.data.order_files import OrderSet, perturbed, pre_caption
from zoo.errors import ZooError
from zoo.negatives.pos_tags import Tagged, tag_by_rules


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    return folder


def suite(kind, root, **kwargs):
    """A suite of tiny files below `root`."""
    if kind == "aro":
        return Aro(layouts.aro(root), size=8, **kwargs)
    if kind == "sugarcrepe":
        return SugarCrepe(layouts.sugarcrepe(root, root / "val2017"), root / "val2017", size=8, **kwargs)
    if kind == "winoground":
        return Winoground(layouts.winoground(root), size=8, **kwargs)
    return OrderSet(layouts.coco_order(root), size=8, **kwargs)


FILES = {
    "aro": "visual_genome_relation.json",
    "sugarcrepe": "swap_att.json",
    "winoground": "examples.jsonl",
    "order": "coco_karpathy_test.json",
}


def rows_of(path):
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def change(path, index, row):
    """Puts another row in place `index`."""
    rows = rows_of(path)
    rows[str(index) if isinstance(rows, dict) else index] = row
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))


def test_aro_puts_the_false_caption_first_and_takes_macro_means(tmp_path):
    found = suite("aro", tmp_path).cases
    relation, attribution = found["relation"], found["attribution"]
    assert relation.texts()[1] == ["the desk is on the cup 1", "the cup 1 is on the desk"]
    assert attribution.texts()[2] == ["the open cup and the red door 2", "the red cup and the open door 2"]
    scores = torch.zeros(6, 1, 2)
    scores[[0, 1, 2, 4], 0, 1] = 1.0  # "on": 1 of 2, "near" (unusable): 2 of 2, "in": 1 of 2
    assert relation.metrics(scores) == pytest.approx({"": 0.5, "micro": 4 / 6})
    scores = torch.zeros(29, 1, 2)
    scores[:13, 0, 1] = 1.0  # "red_tall" has three cases only
    assert attribution.metrics(scores) == pytest.approx({"": 0.5, "micro": 13 / 29})
    assert list(attribution.table(scores).group) == ["red_open", "red_tall"]


def test_what_counts_in_aro_is_an_argument(tmp_path):
    found = suite("aro", tmp_path, exclude=[], min_count=3).cases
    scores = torch.zeros(6, 1, 2)
    scores[[1, 4], 0, 1] = 1.0
    assert found["relation"].metrics(scores)[""] == pytest.approx(1 / 3)
    scores = torch.zeros(29, 1, 2)
    scores[26:, 0, 1] = 1.0
    assert found["attribution"].metrics(scores)[""] == 0.5
    assert list(Aro(tmp_path, sets=["relation"]).cases) == ["relation"]


def test_the_published_number_leaves_out_157_relations():
    assert len(UNUSABLE) == 157
    assert {"next to", "near", "with", "by", "beside", "of", "around", "sitting next to", "standing behind"} <= UNUSABLE
    assert not {"on", "to the left of", "to the right of", "in", "holding"} & UNUSABLE


def test_boxes_are_cut_out_before_the_image_is_scaled(tmp_path):
    root = layouts.aro(tmp_path)
    row = {**rows_of(root / FILES["aro"])[0], "bbox_x": 5, "bbox_y": 3, "bbox_w": 8, "bbox_h": 8}
    change(root / FILES["aro"], 0, row)
    cases = Aro(root, size=8).cases["relation"]
    pixels = layouts.write_image(tmp_path / "again.png", 0)
    image = fetch(cases.images, cases.image_of[0])[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0), pixels[3:11, 5:13])
    assert len(cases.images) == 4 and fetch(cases.images, [0, 1, 2, 3]).shape == (4, 3, 8, 8)


def test_a_box_beyond_the_image_is_refused_when_it_is_read(tmp_path):
    root = layouts.aro(tmp_path)
    change(root / FILES["aro"], 1, {**rows_of(root / FILES["aro"])[1], "bbox_x": 400})
    images = Aro(root).cases["relation"].images
    with pytest.raises(ZooError, match=r"relation.json, case 1: its box lies outside the image .*1.png, 40 by 30"):
        fetch(images, [0, 1])


def test_sugarcrepe(tmp_path):
    found = suite("sugarcrepe", tmp_path).cases
    assert tuple(found) == SUGARCREPE
    cases = found["swap_obj"]
    assert cases.texts()[1] == ["swap_obj true 1", "swap_obj false 1"] and cases.strict and cases.truth == 0
    assert cases.images is found["add_att"].images and len(cases.images) == 2
    assert cases.image_of[:, 0].tolist() == [0, 1, 0]
    assert fetch(cases.images, cases.image_of[:, 0]).shape == (3, 3, 8, 8)
    only = SugarCrepe(tmp_path, tmp_path / "val2017", files=["add_obj"])
    assert list(only.cases) == ["add_obj"]


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("suffix", ["", ".png"])
def test_winoground(tmp_path, lines, suffix):
    cases = Winoground(layouts.winoground(tmp_path, lines, suffix), size=8).cases[""]
    assert len(cases) == 4 and cases.image_of.shape == cases.caption_of.shape == (4, 2)
    assert cases.texts()[3][1] == "a lightbulb surrounding some plants 3"
    assert [path.name for path in cases.images.paths[2:4]] == ["ex_1_img_0.png", "ex_1_img_1.png"]


def test_order_sets_have_one_case_per_caption_with_the_true_one_first(tmp_path):
    found = suite("order", tmp_path)
    cases = found.cases[""]
    assert found.name == "coco_order" and len(cases) == 4 and cases.caption_of.shape == (4, 5)
    assert [row[0] for row in cases.texts()] == [pre_caption(t) for t in (*layouts.CAPTIONS, layouts.CAPTIONS[0])]
    assert cases.image_of[:, 0].tolist() == [0, 0, 0, 1]
    assert cases.texts()[0] == cases.texts()[3]  # one caption, one set of perturbations
    assert cases.texts()[2] == ["dogs"] * 5 and found.report == {"unchanged": 4}
    for row in cases.texts():
        assert all(Counter(text.split()) == Counter(row[0].split()) for text in row[1:])
    scores = torch.zeros(4, 1, 5)
    scores[0, 0, 3] = 1.0
    assert cases.metrics(scores) == {"": 0.75} and first_best(scores[:, 0], 0).sum() == 3


def test_perturbed_captions_are_made_once(tmp_path, cache, monkeypatch):
    first = suite("order", tmp_path).cases[""].texts()
    assert OrderSet(tmp_path, seed=1).cases[""].texts() != first
    monkeypatch.setattr("zoo.data.order_files.perturbed", lambda *_: pytest.fail("drawn again"))
    assert OrderSet(tmp_path).cases[""].texts() == first and len(list(cache.iterdir())) == 2
    for path in cache.iterdir():
        path.unlink()
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    assert OrderSet(tmp_path).cases[""].texts() == first


def test_pre_caption():
    assert pre_caption('A "Big" dog.  (with: a; hat*) #1~, it\'s!') == "a big dog with a hat 1 , it's"
    assert pre_caption("word " * 40) == " ".join(["word"] * 30) and pre_caption("a b c", 2) == "a b"


words = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["NN", "JJ", "VB", "DT"])), min_size=1, max_size=11
)


@given(words, st.integers(0, 99))
def test_perturbations_keep_what_they_should(found, seed):
    tokens = [f"{word}{i}" for i, (word, _) in enumerate(found)]
    tags = [tag for _, tag in found]
    gaps = tuple(" " for _ in tokens)
    made = perturbed(Tagged(tuple(tokens), tuple(tags), (), gaps), np.random.default_rng(seed))
    content, others, within, among = (text.split() for text in made)
    place = {token: i for i, token in enumerate(tokens)}
    for shuffled, moves in ((content, ("NN", "JJ")), (others, ("VB", "DT"))):
        assert sorted(shuffled) == sorted(tokens)
        for old, new, tag in zip(tokens, shuffled, tags, strict=True):
            assert old == new or tag in moves
    assert [tags[place[token]] for token in content] == tags
    assert [sorted(within[i : i + 3]) for i in range(0, len(tokens), 3)] == [
        sorted(tokens[i : i + 3]) for i in range(0, len(tokens), 3)
    ]
    assert sorted(among) == sorted(tokens)
    for old, new in pairwise(among):
        assert place[new] == place[old] + 1 or (place[old] % 3 == 2 or place[old] == len(tokens) - 1)


def test_perturbations_move_something():
    made = [perturbed(tag_by_rules(layouts.CAPTIONS[0]), np.random.default_rng(seed)) for seed in range(20)]
    original = " ".join(tag_by_rules(layouts.CAPTIONS[0]).words)
    assert all(sum(row[i] != original for row in made) > 10 for i in range(4))


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_image_is_named_or_skipped_and_counted(tmp_path, kind):
    first = suite(kind, tmp_path)
    cases = first.cases[{"aro": "relation", "sugarcrepe": "swap_att"}.get(kind, "")]
    path = cases.images.paths[cases.image_of[1, 0]]
    path.unlink()
    again = {"aro": Aro, "winoground": Winoground, "order": OrderSet}.get(kind)
    more = {} if again else {"images": tmp_path / "val2017"}
    with pytest.raises(ZooError) as error:
        _ = (again or SugarCrepe)(tmp_path, **more).cases
    message = str(error.value)
    assert str(path.with_suffix("")) in message and "is missing" in message and "\n" not in message
    assert f", case {1 if kind in ('aro', 'winoground') else 0 if kind == 'order' else 2}: " in message
    left = (again or SugarCrepe)(tmp_path, **more, on_error="skip")
    assert 0 < sum(map(len, left.cases.values())) < sum(map(len, first.cases.values()))
    lost = {"order": 1, "winoground": 1, "sugarcrepe": 7, "aro": 2 + 10}[kind]
    assert left.report["skipped_image"] == lost


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0"])
def test_a_damaged_image_is_named_with_its_case(tmp_path, content):
    cases = suite("sugarcrepe", tmp_path).cases["add_att"]
    cases.images.paths[1].write_bytes(content)
    with pytest.raises(ZooError) as error:
        fetch(cases.images, [0, 1])
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'add_att.json'}, case 2: cannot read the image {cases.images.paths[1]}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "change_to", "what", "counted"),
    [
        ("aro", ["a", "list"], "the row is no JSON object", "malformed"),
        ("aro", {"true_caption": None}, "'true_caption' is missing", "missing"),
        ("aro", {"false_caption": 3}, "'false_caption' is no text", "malformed"),
        ("aro", {"bbox_w": 0}, "it needs image_path, bbox_x", "malformed"),
        ("aro", {"bbox_x": "4"}, "it needs image_path, bbox_x", "malformed"),
        ("aro", {"bbox_y": float("nan")}, "it needs image_path, bbox_x", "malformed"),
        ("aro", {"image_path": 7}, "it needs image_path", "malformed"),
        ("aro", {"relation_name": ""}, "and relation_name", "malformed"),
        ("sugarcrepe", "text", "the row is no JSON object", "malformed"),
        ("sugarcrepe", {"negative_caption": " "}, "'negative_caption' is empty", "empty"),
        ("sugarcrepe", {"filename": None}, "'filename' is missing", "missing"),
        ("winoground", None, "the row is no JSON object", "malformed"),
        ("winoground", {"caption_1": "\ud83d"}, "'caption_1' is no text in valid Unicode", "malformed"),
        ("winoground", {"image_1": 5}, "'image_1' is no text", "malformed"),
        ("order", {"caption": "text"}, "caption (a list of texts)", "malformed"),
        ("order", {"caption": []}, "caption (a list of texts)", "malformed"),
        ("order", {"caption": ["", "a dog"]}, "'caption' is empty", "empty"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, kind, change_to, what, counted):
    found = suite(kind, tmp_path)
    path, index = tmp_path / FILES[kind], 0
    row = rows_of(path)["0" if kind == "sugarcrepe" else 0]
    change(path, index, {**row, **change_to} if isinstance(change_to, dict) else change_to)
    with pytest.raises(ZooError) as error:
        _ = found.cases
    message = str(error.value)
    assert message.startswith(f"{path}, case 0: ") and what in message and "\n" not in message and "on_error" in message
    found.errors.on_error = "skip"
    assert sum(map(len, found.cases.values())) and found.report[f"skipped_{counted}"] == 1


def test_attributes_are_two_names(tmp_path):
    root = layouts.aro(tmp_path)
    path = root / "visual_genome_attribution.json"
    change(path, 3, {**rows_of(path)[3], "attributes": ["red"]})
    with pytest.raises(ZooError, match=r"attribution.json, case 3: .*attributes \(two texts\)"):
        _ = Aro(root).cases


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_or_broken_file_is_named(tmp_path, kind):
    found = suite(kind, tmp_path)
    path = tmp_path / FILES[kind]
    path.write_text("[1, 2" if path.suffix == ".json" else "{")
    with pytest.raises(ZooError, match="is no JSON") as error:
        _ = found.cases
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ZooError, match="no JSON"):
        _ = found.cases
    path.write_text('"text"' if path.suffix == ".json" else "")
    with pytest.raises(ZooError, match="no JSON list or object|no usable case"):
        _ = found.cases
    path.unlink()
    with pytest.raises(ZooError, match="put the published file there|export Winoground from the Hub"):
        _ = found.cases


def test_nothing_left_is_an_error_even_when_cases_may_be_skipped(tmp_path):
    root = layouts.aro(tmp_path)
    for image in (root / "images").iterdir():
        image.unlink()
    with pytest.raises(ZooError, match=r"visual_genome_relation.json has no usable case"):
        _ = Aro(root, on_error="skip").cases


def test_what_is_left_open_comes_from_the_data_set_and_the_model(tmp_path):
    layouts.aro(tmp_path / "aro")
    layouts.sugarcrepe(tmp_path / "sugarcrepe", tmp_path / "val2017")
    for suite in (Aro(), SugarCrepe()):
        with pytest.raises(ZooError, match="pass --data.root"):
            _ = suite.cases
        suite.default(tmp_path, 8)
        assert {x.images.fetch([0]).shape for x in suite.cases.values()} == {(1, 3, 8, 8)}
    named = Aro(tmp_path / "aro", size=6)
    named.default(tmp_path / "elsewhere", 8)
    assert named.cases["relation"].images.fetch([0]).shape == (1, 3, 6, 6)
