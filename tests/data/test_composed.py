"""Composed retrieval: triplets, queries of image and text, the arena, generated positives, and files."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.composition_layouts import write_image, write_json
from tests.data.test_scene_tasks import apply
from zoo.callbacks.composed import ComposedRecall, subset_ranks
from zoo.data.clip_tokenizer import WordTokenizer
from zoo.data.collections import ImageArray
from zoo.data.composed import ComposedPairs, Selected, composed_set
from zoo.data.composed_files import CIRR, FashionIQ
from zoo.data.composed_positives import TEMPLATES, generate_triplets
from zoo.data.composed_scenes import ComposedScenes
from zoo.data.datamodule import NegativesDataModule
from zoo.data.pixels import Pixels
from zoo.data.scene_edits import caption, meaning
from zoo.data.text import Tokens
from zoo.errors import ZooError

IMAGES = np.random.default_rng(0).integers(256, size=(5, 3, 4, 4), dtype=np.uint8)


def pairs():
    return ComposedPairs(ImageArray(IMAGES), np.array([0, 0, 1, 0]), ["a", "b", "a", "a"], np.array([1, 2, 3, 4]))


def test_queries_are_distinct_in_image_and_text():
    data = pairs()
    asked = [(int(q.image_key), q.text) for q in (data.queries[i] for i in range(len(data.queries)))]
    assert asked == [(0, "a"), (0, "b"), (1, "a")] and data.query_of.tolist() == [0, 1, 2, 0]
    assert data.columns["known"].tolist() == [[1, 4], [2, -1], [3, -1], [1, 4]]  # one query, two answers
    assert data.used.tolist() == [0, 1, 2, 3, 4]
    query, target = data.fetch([1, 3])
    assert query.text == ["b", "a"] and torch.equal(query.image, torch.from_numpy(IMAGES[[0, 0]]))
    assert query.text_key.tolist() == [1, 0] and torch.equal(target, torch.from_numpy(IMAGES[[2, 4]]))
    data.load_images = False
    query, target = data.fetch([1, 3])
    assert query.image is None and target is None and query.image_key.tolist() == [0, 0]
    assert query.to("cpu")[:1].text == ["b"] and str(data.queries[1]) == "b"


def test_evaluation_leaves_the_reference_out_and_knows_the_subset():
    found = composed_set(pairs(), {0: [0, 2, 3]})
    assert found.relevance == [{1: 1, 4: 1}, {2: 1}, {3: 1}] and found.ignored == [{0}, {0}, {1}]
    assert found.subsets == [[1, 2, 3, 4], [2, 3], [3]] and composed_set(pairs()).subsets is None


def test_recall_without_the_reference_and_in_the_subset():
    data = composed_set(ComposedPairs(ImageArray(IMAGES), np.array([0, 1]), ["a", "b"], np.array([2, 3])), {0: [1, 4]})
    queries = torch.tensor([[1.0, 0.5, 0.2, 0.9, 0.1], [0.1, 0.9, 0.5, 0.4, 0.3]])  # scores, as documents are the axes
    sides = (data, queries, torch.eye(5))
    found = ComposedRecall((1, 2, 3))._metrics({"x": sides, "y": (data, queries.flip(0), torch.eye(5))})
    assert [found[f"r@{k}_x"] for k in (1, 2, 3)] == [0, 0.5, 1]  # ranks 2 and 1
    assert [found[f"r_s@{k}_x"] for k in (1, 2, 3)] == [0.5, 1, 1]
    assert all(found[f"r@{k}"] == (found[f"r@{k}_x"] + found[f"r@{k}_y"]) / 2 for k in (1, 2, 3))
    plain = ComposedRecall((1,))._metrics({"": (composed_set(pairs()), torch.eye(5)[[1, 2, 3]], torch.eye(5))})
    assert plain == {"r@1": 1.0}
    assert subset_ranks(queries, torch.eye(5), [{2: 1}, {3: 1}], [[2, 4], []]).tolist() == [0, -1]


def test_some_items_of_a_collection():
    found = Selected(ImageArray(IMAGES), np.array([4, 1]))
    assert len(found) == 2 and torch.equal(found.fetch([1, 0]), torch.from_numpy(IMAGES[[1, 4]]))
    assert Selected(["a", "b", "c"], np.array([2]))[0] == "c"


@pytest.fixture(scope="module")
def scenes():
    return ComposedScenes(n_train=60, n_val=5, n_test=30, siblings=3)


def test_targets_of_scenes_are_what_the_texts_ask_for(scenes):
    data, drawn = scenes._pairs("train")
    assert len(set(meaning(drawn.scenes).tolist())) == len(drawn.scenes) == len(data.documents)  # no duplicates
    captions = caption(drawn.scenes)
    for (query, _), target in zip((data[i] for i in range(60)), data.document_of, strict=True):
        assert apply(query.text, drawn.scenes[int(query.image_key)]) == captions[target]
    again = ComposedScenes(n_train=60, n_val=5, n_test=30, siblings=3).split("train", None)
    assert np.array_equal(again.documents.images, data.documents.images)
    assert len(data.documents) > len(data.used)  # siblings are unlabelled


def test_a_subset_of_scenes_is_the_target_and_the_references_siblings(scenes):
    data, drawn = scenes._pairs("test")
    found = scenes.retrieval("test", None)
    for number in range(30):
        query = int(data.query_of[number])
        reference, target = int(drawn.reference[number]), int(drawn.target[number])
        assert set(found.subsets[query]) == {target, *drawn.siblings[number].tolist()} - {reference}
        assert found.ignored[query] == {reference} and found.relevance[query] == {target: 1}


def test_batches_hold_tokens_and_prepared_images(scenes):
    data = NegativesDataModule(
        scenes, batch_size=6, transform=Pixels(), tokenizer=WordTokenizer(query_length=9), seed=0
    )
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch.anchor.text, Tokens) and (batch.anchor.text.ids != WordTokenizer.UNKNOWN).all()
    assert batch.anchor.image.dtype == torch.uint8 and batch.positive.shape == (6, 3, 32, 32)
    prepared = data.prepare_inputs(batch)
    assert torch.equal(prepared.anchor.image, Pixels().evaluate(batch.anchor.image))
    assert torch.equal(prepared.anchor.image_key, batch.anchor.image_key)


def test_generated_targets_lie_in_the_window():
    features = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(0, 1.5, 12)])  # neighbours in order
    captions = [f"c{i}" for i in range(12)]
    found = generate_triplets(features, captions, (4, 7), np.random.default_rng(0), per_reference=2)
    assert len(found.texts) == 24 and np.bincount(found.references).tolist() == [2] * 12
    for reference, target, text in zip(*(found.references, found.targets, found.texts), strict=True):
        nearer = sorted((i for i in range(12) if i != reference), key=lambda i: abs(i - reference))
        assert target in {i for i in range(12) if abs(i - reference) in {abs(nearer[r] - reference) for r in (4, 5, 6)}}
        assert text in {t.format(f"c{reference}", f"c{target}") for t in TEMPLATES}
    assert all(len(set(two)) == 2 for two in found.targets.reshape(-1, 2).tolist())
    few = generate_triplets(
        features,
        captions,
        (0, 3),
        np.random.default_rng(0),
        references=np.array([2, 5]),
        limit=1,
        fits=lambda t: len(t) < 4,
    )
    assert len(few.texts) == 1 and few.references[0] in (2, 5) and few.texts == [captions[few.targets[0]]]
    with pytest.raises(ZooError, match="move the window"):
        generate_triplets(features, captions, (11, 14), np.random.default_rng(0))


def test_scenes_with_generated_triplets():
    plain, more = (ComposedScenes(n_train=40, n_val=5, n_test=5, generated=n, window=(50, 90)) for n in (0, 25))
    plain, more = plain.split("train", None), more.split("train", None)
    assert len(more) == len(plain) + 25 and len(more.documents) == len(plain.documents)
    assert set(more.queries.image_of) == set(plain.queries.image_of)  # references that there are


def fashion(root):
    for number, category in enumerate(("dress", "shirt")):
        for part, n in (("train", 6), ("val", 3)):
            names = [f"{category}{part}{i}" for i in range(n)]
            for i, name in enumerate(names):
                write_image(root / "images" / f"{name}.png", 100 * number + i + 10 * (part == "val"))
            rows = [
                {"candidate": a, "target": b, "captions": [f"is {i}.", "has dots"]}
                for i, (a, b) in enumerate(pairwise(names))
            ]
            write_json(root / "captions" / f"cap.{category}.{part}.json", rows)
            write_json(root / "image_splits" / f"split.{category}.{part}.json", names)
    (root / "images" / "dresstrain5.png").write_bytes((root / "images" / "dresstrain0.png").read_bytes())
    return root


def test_fashion_iq(tmp_path):
    source = FashionIQ(("dress", "shirt"), size=8, val_fraction=0.2)
    source.prepare(fashion(tmp_path))
    train, val, test = (source.split(s, tmp_path) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (8, 2, 4)
    assert len(train.documents) == 11  # two files are the same
    assert test[0][0].text == "is 0 and has dots" and test[0][0].image.shape == (3, 8, 8)
    sets = source.retrievals("test", tmp_path)
    assert list(sets) == ["dress", "shirt"] and [len(s.documents) for s in sets.values()] == [3, 3]
    assert sets["dress"].relevance == [{1: 1}, {2: 1}] and sets["dress"].subsets is None
    with Image.open(tmp_path / "images" / "dressval0.png") as file:
        assert file.size == (40, 30)
    (tmp_path / "images" / "dressval0.png").unlink()
    with pytest.raises(ZooError, match=r"dressval0\.png is missing"):
        source.prepare(tmp_path)


def cirr(root):
    for part, n in (("train", 12), ("val", 6)):
        names = [f"{part}-{i}" for i in range(n)]
        for i, name in enumerate(names):
            write_image(root / part / f"{name}.png", i + 50 * (part == "val"))
        write_json(root / "image_splits" / f"split.rc2.{part}.json", {x: f"./{part}/{x}.png" for x in names})
        rows = [
            {
                "pairid": i, "reference": names[i], "target_hard": names[i + 1], "target_soft": {names[i + 1]: 1.0},
                "caption": f"more of {i}", "img_set": {"id": i, "members": names[i - i % 6 : i - i % 6 + 6]},
            }
            for i in range(n - 1)
        ]  # fmt: skip
        write_json(root / "captions" / f"cap.rc2.{part}.json", rows)
    return root


def test_cirr(tmp_path):
    source = CIRR(size=8, val_fraction=0.2)
    source.prepare(cirr(tmp_path))
    assert [len(source.split(s, tmp_path)) for s in ("train", "val", "test")] == [9, 2, 5]
    found = source.retrievals("test", tmp_path)[""]
    assert found.relevance[2] == {3: 1} and found.ignored[2] == {2} and found.subsets[2] == [0, 1, 3, 4, 5]
    path = tmp_path / "captions" / "cap.rc2.val.json"
    rows = json.loads(path.read_text())
    rows[0]["target_hard"] = "nowhere"
    path.write_text(json.dumps(rows))
    with pytest.raises(ZooError, match="'nowhere', which the image split lacks"):
        CIRR().prepare(tmp_path)
    with pytest.raises(ZooError, match=r"--data\.root"):
        CIRR().prepare(None)
