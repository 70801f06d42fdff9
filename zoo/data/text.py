"""Text pairs and tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from zoo.data.collections import CollectionPairs, RetrievalSource
from zoo.data.pairs import Split


@dataclass
class Tokens:
    """A batch of token ids.

    Attributes:
        ids: `[B, L]`, padded on the right.
        mask: True at tokens, False at padding: what attention sees.
        pool: tokens that pooling reads: not the padding, nor an instruction.
    """

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    pool: Bool[Tensor, "B L"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        return Tokens(self.ids[rows], self.mask[rows], self.pool[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        return Tokens(*(x.to(device, non_blocking=non_blocking) for x in (self.ids, self.mask, self.pool)))

    def pin_memory(self) -> Tokens:
        return Tokens(*(x.pin_memory() for x in (self.ids, self.mask, self.pool)))


class TextPairs(CollectionPairs):
    """(query, document) pairs of texts; arguments as in `CollectionPairs`."""

    queries: Sequence[str]
    documents: Sequence[str]


class TextSource(RetrievalSource):
    """A collection of texts with fixed splits."""

    @abstractmethod
    def split(self, split: Split, root: Path | None) -> TextPairs: ...
