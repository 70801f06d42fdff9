"""Image data sets, read from tiny copies of their authentic layouts."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from zoo.data.images import ImageFolder, ImagePairs, TorchvisionImages, read_image
from zoo.errors import ZooError


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """50 training and 10 test images in the published files; their checksums stand in for the published ones."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, entry):
        (folder / name).write_bytes(pickle.dumps(entry))
        return [name, _md5(folder / name)]

    def batch(name):
        return write(name, {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))})

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(kind, "test_list", [batch("test_batch")])
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    kind = torchvision.datasets.STL10

    def write(name, array):
        (folder / name).write_bytes(array.astype(np.uint8).tobytes())
        return [name, _md5(folder / name)]

    def images(n):
        return rng.integers(0, 256, (n, 3, 96, 96))

    listed = [
        write("train_X.bin", images(20)),
        write("train_y.bin", np.arange(20) % 10 + 1),
        write("unlabeled_X.bin", images(7)),
    ]
    monkeypatch.setattr(kind, "train_list", listed)
    monkeypatch.setattr(kind, "test_list", [write("test_X.bin", images(4)), write("test_y.bin", np.arange(4) + 1)])
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 10), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{name}_{i}.JPEG")
    return tmp_path


def test_pairs_read_a_batch_at_once():
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 4), dtype=np.uint8)
    pairs = ImagePairs(images, np.arange(9))
    anchor, positive = pairs.fetch([7, 2, 2])
    assert anchor is positive and anchor.dtype == torch.uint8
    assert np.array_equal(anchor.numpy(), images[[7, 2, 2]])
    assert torch.equal(pairs[7][0], anchor[0]) and torch.equal(pairs[7][1], anchor[0])
    assert pairs.columns["label"][[7, 2]].tolist() == [7, 2]
    assert set(ImagePairs(images, np.arange(9), {"coords": np.ones(9)}).columns) == {"label", "coords"}
    anchor[0] = 0  # a copy: the data set is not written through
    assert images[7].any()


def test_cifar_splits_are_fixed_disjoint_and_complete(cifar10):
    source = TorchvisionImages("cifar10", val_fraction=0.2)
    source.prepare(cifar10)
    train, val, test = (source.split(s, cifar10) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (40, 10, 10)
    rows = np.concatenate([train.images, val.images]).reshape(50, -1)
    original = np.asarray(torchvision.datasets.CIFAR10(cifar10).data).transpose(0, 3, 1, 2).reshape(50, -1)
    assert {r.tobytes() for r in rows} == {r.tobytes() for r in original}
    again = TorchvisionImages("cifar10", val_fraction=0.2).split("val", cifar10)
    assert np.array_equal(again.images, val.images)
    assert test.columns["label"].tolist() == list(range(10))
    reference, queries = source.evaluation("test", cifar10)
    assert len(reference) == 40 and len(queries) == 10


def test_stl10_trains_on_unlabelled_images_and_evaluates_on_labelled_ones(stl10):
    source = TorchvisionImages("stl10", val_fraction=0.25, unlabeled=True)
    assert len(source.split("train", stl10)) == 7
    assert set(source.split("train", stl10).columns["label"]) == {-1}
    reference, queries = source.evaluation("val", stl10)
    assert len(reference) == 15 and len(queries) == 5
    assert set(reference.columns["label"]) <= set(range(10))
    assert reference.fetch([0])[0].shape == (1, 3, 96, 96)
    assert len(TorchvisionImages("stl10", val_fraction=0.25).split("train", stl10)) == 15


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"), ("stl10", "stl10_binary")],
)
def test_missing_data_says_what_is_expected(tmp_path, name, expected):
    with pytest.raises(ZooError, match=expected):
        TorchvisionImages(name).prepare(tmp_path)
    with pytest.raises(ZooError, match="--data.root"):
        TorchvisionImages(name).prepare(None)


def test_unlabelled_is_for_stl10():
    with pytest.raises(ZooError, match="stl10"):
        TorchvisionImages("cifar10", unlabeled=True)


def test_damaged_data_is_refused(cifar10):
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(b"nothing")
    with pytest.raises(ZooError, match="intact"):
        TorchvisionImages("cifar10").prepare(cifar10)


def test_folder_splits(folder):
    source = ImageFolder("tiny", decode_size=32, val_fraction=0.25)
    source.prepare(folder)
    assert source.arena == "tiny"
    train, val, test = (source.split(s, folder) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (15, 5, 6)
    assert not set(train.paths) & set(val.paths)
    assert sorted(test.columns["label"]) == [0, 0, 0, 1, 1, 1]
    anchor, positive = test.fetch(np.array([0, 5]))
    assert anchor is positive and anchor.shape == (2, 3, 32, 32) and anchor.dtype == torch.uint8
    assert torch.equal(test[5][0], anchor[1])


def test_decoding_keeps_the_centre(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    out = read_image(str(tmp_path / "wide.png"), 40)
    assert out.shape == (3, 40, 40)
    assert (out == np.array([200, 100, 50], np.uint8)[:, None, None]).all()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert read_image(str(tmp_path / "grey.png"), 16).shape == (3, 16, 16)


def test_folder_errors_name_path_and_layout(folder):
    with pytest.raises(ZooError, match="<class>"):
        ImageFolder().prepare(folder / "nowhere")
    with pytest.raises(ZooError, match="--data.root"):
        ImageFolder().prepare(None)
    path = folder / "val" / "n01440764" / "n01440764_0.JPEG"
    path.write_bytes(path.read_bytes()[:500])
    (folder / "val" / "n01443537" / "n01443537_0.JPEG").write_bytes(b"no image")
    with pytest.raises(ZooError, match="n01443537_0.JPEG"):
        ImageFolder(decode_size=32).split("test", folder).fetch([3])
    with pytest.raises(ZooError, match="n01440764_0.JPEG"):
        ImageFolder(decode_size=32).split("test", folder).fetch([0])
    (folder / "val" / "n01443537").rename(folder / "val" / "n99")
    with pytest.raises(ZooError, match="n99"):
        ImageFolder().prepare(folder)


def test_a_folder_without_classes_is_refused(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    with pytest.raises(ZooError, match="train.*<class>"):
        ImageFolder().prepare(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ZooError, match="empty.*<class>"):
        ImageFolder().prepare(tmp_path)


@pytest.mark.parametrize("memory_mapped", [False, True])
def test_reads_memory_mapped_images(tmp_path, memory_mapped):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    read = np.load(tmp_path / "images.npy", mmap_mode="r" if memory_mapped else None)
    anchor, _ = ImagePairs(read, np.zeros(5)).fetch(np.array([4, 0]))
    assert np.array_equal(anchor.numpy(), images[[4, 0]])


def test_stl10_images_are_upright(stl10):
    """The published files store columns first; an image read from them is its transpose."""
    stored = np.fromfile(stl10 / "stl10_binary" / "test_X.bin", np.uint8).reshape(4, 3, 96, 96)
    test = TorchvisionImages("stl10").split("test", stl10)
    assert np.array_equal(test.fetch([2])[0][0].numpy(), stored[2].transpose(0, 2, 1))


@pytest.mark.parametrize(("fraction", "purpose"), [(0.0, "validate"), (1.0, "train")])
def test_a_fraction_that_leaves_nothing_is_an_error(folder, fraction, purpose):
    with pytest.raises(ZooError, match=f"leaves none to {purpose} on"):
        ImageFolder(decode_size=32, val_fraction=fraction).split("train", folder)
