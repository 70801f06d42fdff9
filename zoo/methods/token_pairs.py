"""Two texts in one row of token ids, as models of pairs read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from zoo.data.text import Tokens
from zoo.errors import ZooError

Part = tuple[Tensor, Tensor] | list[int]  # ids [B, L] and which of them are kept, or ids that stand in every row


class TokenPairs:
    """How a tokenizer surrounds texts and pairs of texts with special tokens.

    Args:
        tokenizer: a fast one of `transformers`, with which the texts were tokenized.

    Raises:
        ZooError: the tokenizer is slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise ZooError(
                f"{tokenizer.name_or_path!r} has no fast tokenizer, which says where texts begin: name another"
            )
        self.before, self.after = (len(part) for part in _specials(tokenizer("a"), 1))
        self.start, self.middle, self.end = _specials(tokenizer("a", "a"), 2)
        longest = tokenizer.model_max_length
        self.max_length: int | None = longest if longest < 10**9 else None  # where unknown, a number without meaning

    def content(self, tokens: Tokens) -> Bool[Tensor, "B L"]:
        """Tokens of the text itself: not the special ones around it, nor padding."""
        at = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
        return (at >= self.before) & (at < tokens.mask.sum(1, keepdim=True) - self.after)


def _specials(encoding: Any, texts: int) -> list[list[int]]:
    """Ids of the special tokens before, between and after the texts."""
    found: list[list[int]] = [[] for _ in range(texts + 1)]
    place = 0
    for token, text in zip(encoding["input_ids"], encoding.sequence_ids(0), strict=True):
        if text is None:
            found[place].append(token)
        else:
            place = text + 1
    return found


def first(kept: Bool[Tensor, "B L"], n: Int[Tensor, "B 1"] | int) -> Bool[Tensor, "B L"]:
    """The first `n` of the tokens that are kept."""
    return kept & (kept.cumsum(1) <= n)


def side_by_side(
    parts: Sequence[Part], rows: int, pad_id: int
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"], Int[Tensor, "B N"]]:
    """One row of ids for each of several texts in a row, padded on the right.

    Args:
        parts: of each row.
        rows: number of rows.
        pad_id: id of the padding.

    Returns:
        The ids, which of them are no padding, and of each the number of its part.
    """
    device = next(part[0].device for part in parts if isinstance(part, tuple))
    ids, kept, part_of = [], [], []
    for number, part in enumerate(parts):
        if isinstance(part, list):
            constant = torch.tensor(part, dtype=torch.int64, device=device).expand(rows, -1)
            part = (constant, torch.ones_like(constant, dtype=torch.bool))
        for found, value in zip((ids, kept, part_of), (*part, torch.full_like(part[0], number)), strict=True):
            found.append(value)
    there = torch.cat(kept, 1)
    order = (~there).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(there.sum(1).max()))]
    there = there.gather(1, order)
    return torch.cat(ids, 1).gather(1, order).masked_fill(~there, pad_id), there, torch.cat(part_of, 1).gather(1, order)
