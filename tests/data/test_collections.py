import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import CollectionPairs, ImageArray, ImageFiles, NegativesDataModule, OneSide, PairBatch, PairSource
from zoo.data.samplers import BatchPlan, RandomBatches
from zoo.errors import ZooError
from zoo.negatives.generators import Generated, NegativeGenerator, content_keys
from zoo.negatives.table import NegativeTable


def noise(n, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), np.uint8)


def pairs():
    """Three captions of two images each."""
    captions = [f"caption {i}" for i in range(6)]
    return CollectionPairs(ImageArray(noise(2)), captions, np.repeat([0, 1], 3), np.arange(6))


def test_pairs_of_images_and_texts():
    data = pairs()
    images, captions = data.fetch([4, 0])
    assert torch.equal(images, torch.as_tensor(noise(2)[[1, 0]])) and captions == ["caption 4", "caption 0"]
    image, caption = data[4]
    assert torch.equal(image, images[0]) and caption == "caption 4"
    assert data.columns["known"].tolist() == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3


@pytest.mark.parametrize("side", ["query", "document"])
def test_one_side_leaves_the_other_empty(side):
    one = OneSide(ImageArray(noise(3)), side)
    batch = one.fetch([2, 1])
    assert batch[side == "query"] is None and torch.equal(batch[side != "query"], torch.as_tensor(noise(3)[[2, 1]]))


@pytest.mark.parametrize("resize", ["crop", "fit"])
def test_image_files_have_one_size(tmp_path, resize):
    for number, (width, height) in enumerate([(40, 20), (16, 50)]):
        Image.new("RGB", (width, height), (10, 200, 30)).save(tmp_path / f"{number}.png")
    files = ImageFiles(sorted(tmp_path.glob("*.png")), (12, 24), resize)
    images = files.fetch([0, 1])
    assert images.shape == (2, 3, 12, 24) and images.dtype == torch.uint8
    assert (images == torch.tensor([10, 200, 30], dtype=torch.uint8)[:, None, None]).all()


def test_crop_cuts_the_centre_and_fit_keeps_the_borders(tmp_path):
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    means = {kind: ImageFiles([tmp_path / "a.png"], 10, kind)[0].float().mean() for kind in ("crop", "fit")}
    assert means["crop"] > 230 and 60 < means["fit"] < 110


def test_an_unreadable_image_is_named(tmp_path):
    Image.fromarray(noise(1, 64)[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    for name in ("a.png", "missing.png"):
        with pytest.raises(ZooError, match=name):
            ImageFiles([tmp_path / name], 32).fetch([0])


class Doubled(NegativeGenerator):
    def generate(self, pairs, indices, rng):
        texts = [f"not {pairs.documents[d]} {rng.integers(9)}" for d in pairs.document_of[indices] for _ in range(2)]
        keys = content_keys(texts).reshape(-1, 2)
        mask = np.ones(keys.shape, bool)
        mask[0, 1] = False
        return Generated(texts, np.where(mask, keys, -1), mask)


class Source(PairSource):
    name = "captions"

    def prepare(self, root):
        pass

    def split(self, split, root):
        return pairs()


def served(**kwargs) -> NegativesDataModule:
    data = NegativesDataModule(Source(), batch_size=2, seed=0, **kwargs)
    data.setup("fit")
    return data


def batch_of(data, epoch, number=0) -> PairBatch:
    return data.train_dataloader().dataset[BatchPlan(epoch, number, np.array([3, 1]))]


def test_made_negatives_start_with_their_epoch_and_are_drawn_afresh():
    data = served(generator=Doubled(start_epoch=1))
    assert batch_of(data, 0).negatives is None
    first, again, later = batch_of(data, 1), batch_of(data, 1), batch_of(data, 2)
    assert first.negatives == again.negatives != later.negatives
    assert all(text.startswith(f"not caption {n}") for text, n in zip(first.negatives, (3, 3, 1, 1), strict=True))
    assert (first.negative_key[~first.negative_mask] == -1).all() and (
        first.negative_key[first.negative_mask] > 6
    ).all()


def test_content_keys_tell_texts_apart_and_lie_above_numbers():
    texts = [f"text {i}" for i in range(10_000)]
    keys = content_keys(texts)
    assert (keys == content_keys(texts)).all() and len(set(keys.tolist())) == len(texts) and keys.min() >= 2**40


class Reader(RandomBatches):
    reads_table = True
    table = None

    def set_table(self, table):
        self.table = table


def test_a_sampler_that_reads_the_table_gets_each_table():
    table, other = (NegativeTable(np.full((6, 1), i), np.zeros((6, 1))) for i in (0, 1))
    data = served(sampler=Reader(), table=table)
    assert data.sampler.table is table
    data.set_table(other)
    assert data.sampler.table is other
    assert batch_of(data, 0).negatives is None


def test_mistakes_are_one_line():
    table = NegativeTable(np.zeros((6, 1), int), np.zeros((6, 1)))
    with pytest.raises(ZooError, match="remove one of the two"):
        served(generator=Doubled(), table=table, n_negatives=1)
    with pytest.raises(ZooError, match=r"--data\.n_negatives"):
        served(table=table)
