"""The arena with domains, and domain folders on disk: who is trained on what, and whether styles are real."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.domain_files import DomainFolders
from zoo.data.shapes import Shapes
from zoo.data.styled_shapes import STYLES, StyledShapes
from zoo.errors import ZooError


@pytest.fixture(scope="module")
def shapes():
    return StyledShapes(n_train=300, n_val=60, n_test=60)


@pytest.fixture(scope="module")
def images(shapes):
    return {split: shapes.render(split) for split in ("train", "val", "test")}


def test_draws_and_pixels_are_the_same_on_every_machine(shapes, images):
    draws = np.round(shapes.draws("val"), 9)  # sums and products of exact draws
    assert hashlib.sha256(draws.tobytes()).hexdigest()[:16] == "d0cc60903d6a4ea0"
    np.testing.assert_allclose(images["val"].mean((0, 2, 3)), [54.156, 74.645, 121.188], atol=0.05)


def test_validation_and_test_styles_are_never_trained_on(shapes):
    seen, val, test = (set(shapes.domains(split)) for split in ("train", "val", "test"))
    assert len(seen) == 3 and len(val) == len(test) == 1 and not (seen & val | seen & test | val & test)
    assert np.bincount(shapes.domains("train"))[list(seen)].tolist() == [100] * 3
    other = StyledShapes(unseen=("moss", "clay"))
    assert [list(STYLES)[other.domains(split)[0]] for split in ("val", "test")] == ["moss", "clay"]


def test_content_is_that_of_shapes_whatever_the_style(shapes):
    plain = Shapes(n_train=300)
    assert np.array_equal(shapes.labels("train"), plain.labels("train"))
    assert np.array_equal(shapes.draws("train")[:, :48], plain.draws("train")[:, :48])  # all objects
    longer = StyledShapes(n_train=450)
    assert np.array_equal(longer.draws("train")[:300], shapes.draws("train"))


@pytest.mark.parametrize("unseen", [("moss", "moss"), ("moss", "velvet")])
def test_unseen_names_two_styles(unseen):
    with pytest.raises(ZooError, match="unseen"):
        StyledShapes(unseen=unseen)


def test_objects_are_brighter_than_the_background_in_every_style():
    for style in STYLES:
        others = [name for name in STYLES if name != style]
        clean = StyledShapes(n_val=48, unseen=(style, others[0]), distractors=0)
        scenes = torch.from_numpy(clean.render("val")).double().mean(1)
        draws = torch.from_numpy(clean.draws("val"))
        axis = (torch.arange(32, dtype=torch.float64) + 0.5) / 16 - 1
        cover = clean._cover(axis[None, None], axis[None, :, None], draws[:, :5], small=False)
        inside = (scenes * cover).sum((1, 2)) / cover.sum((1, 2))
        outside = (scenes * (1 - cover)).sum((1, 2)) / (1 - cover).sum((1, 2))
        assert (inside - outside).min() > 12


def test_pixels_tell_styles_apart_but_not_silhouettes(shapes, images):
    features = torch.from_numpy(images["train"]).double().flatten(1)
    features = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(1).numpy()
    domains, labels = shapes.domains("train"), shapes.labels("train")
    assert (domains[nearest] == domains).mean() > 0.8
    assert (labels[nearest] == labels).mean() < 0.4


def test_cache_has_a_file_per_split_and_arguments(tmp_path):
    tiny: dict[str, Any] = {"n_train": 9, "n_val": 4, "n_test": 4, "size": 8}
    pairs = StyledShapes(**tiny).split("train", tmp_path)
    assert isinstance(pairs.images, np.memmap) and pairs.columns["domain"].tolist() == [0, 1, 2] * 3
    StyledShapes(**tiny).split("train", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    StyledShapes(**tiny, unseen=("clay", "moss")).split("train", tmp_path)
    Shapes(**tiny).split("train", tmp_path)
    assert sorted(path.name.rsplit("-", 2)[0] for path in tmp_path.iterdir()) == ["shapes"] + ["styled-shapes"] * 2


@pytest.fixture
def pacs(tmp_path):
    rng = np.random.default_rng(0)
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        for kind in ("dog", "elephant", "guitar"):
            (tmp_path / domain / kind).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(
                    tmp_path / domain / kind / f"pic_{i:03}.jpg"
                )
    return tmp_path


def test_domain_folders_train_on_sources_and_test_on_the_target(pacs):
    source = DomainFolders("photo", decode_size=16, val_fraction=0.25)
    source.prepare(pacs)
    train, val, test = (source.split(split, pacs) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (27, 9, 12)
    assert set(train.columns["domain"]) == {0, 1, 3} and set(test.columns["domain"]) == {2}
    assert not set(train.paths) & set(val.paths) and {p.split("/")[-3] for p in test.paths} == {"photo"}
    for pairs in (train, val, test):
        folders = [path.split("/")[-2] for path in pairs.paths]
        assert [sorted({"dog", "elephant", "guitar"})[i] for i in pairs.columns["label"]] == folders
    assert train.fetch([0, 5])[0].shape == (2, 3, 16, 16)
    assert source.arena == "pacs-photo" and source.evaluation("test", pacs)[0][3][0].equal(train[3][0])


def test_domain_folders_take_some_sources_and_classes(pacs):
    source = DomainFolders("photo", sources=["sketch"], classes=["guitar", "dog"], val_fraction=0.25)
    train, test = (source.split(split, pacs) for split in ("train", "test"))
    assert (
        (len(train), len(test)) == (6, 8) and set(train.columns["domain"]) == {1} and set(test.columns["domain"]) == {0}
    )
    assert {p.split("/")[-2]: int(n) for p, n in zip(train.paths, train.columns["label"], strict=True)} == {
        "dog": 0,
        "guitar": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "photos"}, "no domain 'photos'"),
        ({"target": "photo", "sources": ["clipart"]}, "no domain 'clipart'"),
        ({"target": "photo", "classes": ["cat"]}, "class 'cat'"),
    ],
)
def test_domain_folders_say_what_is_missing(pacs, arguments, message):
    with pytest.raises(ZooError, match=message):
        DomainFolders(**arguments).prepare(pacs)


def test_domain_folders_refuse_what_is_no_domain_generalisation(pacs):
    with pytest.raises(ZooError, match="source and target"):
        DomainFolders("photo", sources=["photo", "sketch"])
    with pytest.raises(ZooError, match="--data.root"):
        DomainFolders("photo").prepare(None)
    (pacs / "photo" / "horse").mkdir()
    Image.new("RGB", (8, 8)).save(pacs / "photo" / "horse" / "pic.jpg")
    with pytest.raises(ZooError, match="'horse', which no source domain has"):
        DomainFolders("photo").prepare(pacs)
