"""Training pairs thinned out by class."""

import numpy as np
import pytest
import torch

from zoo.data import Imbalanced, NegativesDataModule, PairSource
from zoo.data.images import ImagePairs
from zoo.data.imbalance import PairSubset, class_fractions, thin
from zoo.errors import ZooError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 20))


class Source(PairSource):
    """100 images of one grey value each, their number; five classes."""

    name = "greys"

    def __init__(self, labels=LABELS):
        self.labels = labels

    def prepare(self, root):
        pass

    def split(self, split, root):
        images = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 3, 4, 4))
        return ImagePairs(images, self.labels)


def counts(pairs):
    return np.bincount(pairs.columns["label"], minlength=5).tolist()


@pytest.mark.parametrize(
    ("profile", "want"),
    [
        ("linear", [4, 8, 12, 16, 20]),
        ("exponential", [int(20 * np.exp(c - 4)) for c in range(5)]),
        ("longtail", [20, int(20 * 16**-0.25), 5, int(20 * 16**-0.75), 1]),
    ],
)
def test_classes_keep_their_parts(profile, want):
    source = Imbalanced(Source(), profile, ratio=16)
    pairs = source.split("train", None)
    assert counts(pairs) == want and len(pairs) == sum(want)
    assert source.name == f"greys-{profile}"


def test_fractions_of_the_papers():
    np.testing.assert_allclose(class_fractions(10, "linear"), np.arange(1, 11) / 10)
    np.testing.assert_allclose(class_fractions(10, "exponential"), np.exp(np.arange(1, 11)) / np.exp(10))
    tail = class_fractions(10, "longtail", 100)
    assert tail[0] == 1 and tail[-1] == pytest.approx(0.01) and np.ptp(np.diff(np.log(tail))) < 1e-9
    assert class_fractions(1, "longtail").tolist() == [1]


def test_evaluation_stays_balanced():
    source = Imbalanced(Source(), "linear")
    reference, queries = source.evaluation("test", None)
    assert counts(reference) == counts(queries) == counts(source.split("val", None)) == [20] * 5


def test_choice_is_of_the_data_set_not_of_the_run():
    one, two, other = (Imbalanced(Source(), "linear", seed=s).split("train", None) for s in (3, 3, 4))
    assert one.rows.tolist() == two.rows.tolist() != other.rows.tolist()
    few, more = (thin(LABELS, np.full(5, part), 0) for part in (0.3, 0.6))
    assert set(few) < set(more)
    assert thin(np.repeat([3], 10), np.array([0.29 / 0.29 * 0.7]), 0).shape == (7,)


def test_subset_keeps_pairs_labels_and_identity_keys():
    pairs = Imbalanced(Source(), "linear").split("train", None)
    anchors, positives = pairs.fetch([0, 5])
    numbers = pairs.rows[[0, 5]]
    assert anchors[:, 0, 0, 0].tolist() == positives[:, 0, 0, 0].tolist() == numbers.tolist()
    assert pairs[5][0].equal(anchors[1])
    assert pairs.column("label", [0, 5]).tolist() == LABELS[numbers].tolist()
    assert pairs.keys("anchor", [0, 5]).tolist() == pairs.keys("positive", [0, 5]).tolist() == numbers.tolist()
    again = PairSubset(pairs, np.array([5]))
    assert again.keys("anchor", [0]).tolist() == [numbers[1]]


def test_training_batches_come_from_what_is_kept():
    module = NegativesDataModule(Imbalanced(Source(), "linear"), batch_size=8, eval_batch_size=50, seed=0)
    module.setup("fit")
    seen = torch.cat([batch.anchor[:, 0, 0, 0] for batch in module.train_dataloader()])
    assert len(seen) == 56 and set(seen.tolist()) <= set(module.train_pairs.rows.tolist())
    reference, _ = module.val_dataloader()
    assert sum(len(batch) for batch in reference) == 100


@pytest.mark.parametrize("labels", [np.full(100, -1), np.where(np.arange(100) == 7, -1, 2)])
def test_unlabelled_pairs_cannot_be_thinned_out(labels):
    with pytest.raises(ZooError, match="greys has no labels"):
        Imbalanced(Source(labels)).split("train", None)


def test_ratio_below_one_is_refused():
    with pytest.raises(ZooError, match="invert it"):
        Imbalanced(Source(), "longtail", ratio=0.01)
