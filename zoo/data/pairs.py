"""Pairs, and the batch that every method reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import Dataset, default_collate

Split = Literal["train", "val", "test"]


@dataclass
class PairBatch:
    """B (anchor, positive) pairs and what is known about them.

    Identity keys name *content*: two items with one key are the same thing, wherever they came from (batch, queue,
    table, another GPU), and never each other's negatives. Lightning moves every tensor field to the device.

    Attributes:
        anchor: B anchors; a tensor `[B, ...]` or whatever the encoder reads.
        positive: B positives, row i belonging to anchor i.
        index: indices of the pairs in their dataset.
        anchor_key: identity keys of the anchors.
        positive_key: identity keys of the positives.
        negatives: B * K explicit hard negatives, flattened (row i * K + j is the j-th of anchor i), or None.
        negative_key: their identity keys, -1 where a row has fewer than K.
        negative_mask: False where a row has fewer than K.
        known: identity keys of all documents known to be positives of each anchor `[B, P]`, -1 padded; None where that
            is the positive alone.
        group: group of each pair (class, topic, place), or None.
        teacher: scores of the positive and of the explicit negatives `[B, 1 + K]` that the table of the negatives has from
            a teacher, -inf where a row has fewer; or None.
        views: further views of each pair beyond anchor and positive, each B rows; they may differ in size (multi-crop).
        epoch: epoch that the batch belongs to.
        number: its number within the epoch; with the seed, all randomness of a step derives from these two.
    """

    anchor: Any
    positive: Any
    index: Int[Tensor, " B"]
    anchor_key: Int[Tensor, " B"]
    positive_key: Int[Tensor, " B"]
    negatives: Any = None
    negative_key: Int[Tensor, "B K"] | None = None
    negative_mask: Bool[Tensor, "B K"] | None = None
    known: Int[Tensor, "B P"] | None = None
    group: Int[Tensor, " B"] | None = None
    teacher: Tensor | None = None
    views: tuple[Any, ...] = ()
    epoch: int = 0
    number: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def replace(self, **changes: Any) -> PairBatch:
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """Move every tensor to `device` (Lightning calls this)."""
        moved = {}  # by identity: images whose views are made on the device are anchor and positive at once
        return PairBatch(
            **{
                f.name: _once(moved, getattr(self, f.name), "to", device, non_blocking=non_blocking)
                for f in fields(self)
            }
        )

    def pin_memory(self) -> PairBatch:
        """Page-lock every tensor (the data loader calls this when its `pin_memory` is set)."""
        pinned = {}
        return PairBatch(**{f.name: _once(pinned, getattr(self, f.name), "pin_memory") for f in fields(self)})


def _once(done: dict[int, Any], value: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    if not hasattr(value, method):
        return value
    if id(value) not in done:
        done[id(value)] = getattr(value, method)(*args, **kwargs)
    return done[id(value)]


class PairDataset(Dataset, ABC):
    """Map-style data set whose item *i* is an (anchor, positive) pair.

    Attributes:
        columns: arrays of length N that miners, samplers and evaluation read without loading an item. Known names:
            `label` or `group`, `anchor_key` and `positive_key` (identity keys; the index where missing), `known`,
            `task`, `coords`.
    """

    columns: Mapping[str, np.ndarray]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """The (anchor, positive) pair number `index`."""

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[Any, Any]:
        """Anchors and positives of many pairs, collated. Override where a batch can be read faster than its items."""
        return tuple(default_collate([self[i] for i in indices]))  # type: ignore[return-value]

    @property
    def n_documents(self) -> int:
        """How many documents there are to mine from; without a collection of its own, each pair's positive is one."""
        return len(self)

    def fetch_documents(self, numbers: Sequence[int] | np.ndarray) -> Any:
        """Documents, collated: what a NegativeTable's ids point at."""
        return self.fetch(numbers)[1]

    def document_keys(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """Identity keys of documents."""
        return self.keys("positive", numbers)

    def column(self, name: str, indices: Sequence[int] | np.ndarray) -> Tensor | None:
        """Rows of a column as a tensor; None where there is no such column."""
        if name not in self.columns:
            return None
        return torch.as_tensor(np.asarray(self.columns[name])[np.asarray(indices)])

    def keys(self, side: Literal["anchor", "positive"], indices: Sequence[int] | np.ndarray) -> Tensor:
        """Identity keys of anchors or positives: their column, or the indices where the data set has none."""
        keys = self.column(f"{side}_key", indices)
        return torch.as_tensor(np.asarray(indices)) if keys is None else keys


def labels_of(columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Of a data set's columns the group of each pair, or else its class; None where there is neither."""
    return columns.get("group", columns.get("label"))


class PairSource(ABC):
    """A named data set with fixed splits: what a recipe's `data.source` is.

    Attributes:
        name: the name under which results are recorded.
    """

    name: str

    @abstractmethod
    def prepare(self, root: Path | None) -> None:
        """Render, or check the layout under `root`. Runs once per machine, before any split is read.

        Raises:
            ZooError: `root` is missing or not laid out as the data set's authors publish it.
        """

    @abstractmethod
    def split(self, split: Split, root: Path | None) -> PairDataset:
        """The pairs of one split, which the source fixes and training code never changes."""

    def evaluation(self, split: Split, root: Path | None) -> list[PairDataset]:
        """What is encoded to evaluate `split`: the reference set (gallery, or labelled training set), then the queries."""
        return [self.split("train", root), self.split(split, root)]
