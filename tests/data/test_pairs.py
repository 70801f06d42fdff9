"""The batch that every method reads, and what data sets need not write themselves."""

import numpy as np
import torch

from zoo.data.pairs import PairBatch, PairDataset


class Words(PairDataset):
    """Items that nobody reads in bulk."""

    def __init__(self):
        self.columns = {"group": np.array([4, 5, 6]), "positive_key": np.array([7, 7, 9])}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.tensor(index), {"tokens": torch.full((2,), index), "text": f"word {index}"}


class Moved:
    """Counts how often it is moved."""

    def __init__(self, count=0):
        self.count = count

    def to(self, device, non_blocking):
        return Moved(self.count + 1)


def make_batch(**kwargs):
    index = torch.arange(2)
    return PairBatch(
        **{"anchor": index, "positive": index, "anchor_key": index, "positive_key": index} | kwargs, index=index
    )


def test_keys_fall_back_on_the_index_and_other_columns_on_none():
    words = Words()
    assert words.keys("positive", [2, 0]).tolist() == [9, 7] and words.keys("anchor", [2, 0]).tolist() == [2, 0]
    assert words.column("group", np.array([2, 0])).tolist() == [6, 4] and words.column("coords", [2, 0]) is None


def test_items_are_collated():
    anchors, positives = Words().fetch([2, 1])
    assert anchors.tolist() == [2, 1] and positives["tokens"].tolist() == [[2, 2], [1, 1]]
    assert positives["text"] == ["word 2", "word 1"] == Words().fetch_documents([2, 1])["text"]


def test_what_two_fields_share_moves_once():
    shared = Moved()
    batch = make_batch(anchor=shared, positive=shared).to("cpu")
    assert batch.anchor is batch.positive and batch.anchor.count == 1 and shared.count == 0
    apart = make_batch(anchor=Moved(), positive=Moved()).to("cpu")
    assert apart.anchor is not apart.positive and apart.anchor.count == apart.positive.count == 1


def test_moving_keeps_every_field():
    mask = torch.tensor([[True, False], [True, True]])
    batch = make_batch(
        negatives=["a", "b", "c", "d"], negative_mask=mask, group=torch.tensor([3, 4]), epoch=5, number=6
    )
    moved = batch.to(torch.device("cpu"), non_blocking=True)
    assert moved.negatives == ["a", "b", "c", "d"] and torch.equal(moved.negative_mask, mask)
    assert (moved.group.tolist(), moved.epoch, moved.number, len(moved)) == ([3, 4], 5, 6, 2)
    assert batch.to("meta").index.device.type == "meta"
