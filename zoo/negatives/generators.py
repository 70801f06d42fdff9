"""Negatives that are made, not found."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from zoo.data.collections import CollectionPairs

_FIRST = 2**40  # keys of made documents lie above all numbers of documents


class Generated(NamedTuple):
    """Made negatives of B anchors: B * K documents, their identity keys `[B, K]` (-1 pads) and mask `[B, K]`."""

    documents: Any
    keys: np.ndarray
    mask: np.ndarray


class NegativeGenerator(ABC):
    """Makes explicit hard negatives in the loader's workers, afresh each epoch.

    Args:
        start_epoch: first epoch (from 0) with negatives.
    """

    def __init__(self, start_epoch: int = 0) -> None:
        self.start_epoch = start_epoch

    @abstractmethod
    def generate(self, pairs: CollectionPairs, indices: np.ndarray, rng: np.random.Generator) -> Generated:
        """Negatives of the pairs `indices`; the same for the same state of `rng`."""


def content_keys(texts: Iterable[str]) -> np.ndarray:
    """Identity keys of made documents by what they say: equal texts, and as good as only they, have equal keys."""
    hashes = (int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts)
    return np.fromiter((_FIRST + h % (2**62 - _FIRST) for h in hashes), np.int64)
