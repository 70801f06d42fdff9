"""Which candidates are known positives."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def known_positives(known: Int[Tensor, "B P"], keys: Int[Tensor, " M"]) -> Bool[Tensor, "B M"]:
    """True where a candidate is among a row's known positives, by identity key; one column of `known` at a time.

    Args:
        known: keys of each row's known positives, -1 padded.
        keys: keys of the candidates; -1 matches nothing.
    """
    found = torch.zeros(len(known), len(keys), dtype=torch.bool, device=keys.device)
    for column in known.unbind(1):
        found |= (column[:, None] == keys) & (column >= 0)[:, None]
    return found


def all_distinct(known: Int[Tensor, "Q P"], keys: Int[Tensor, " M"]) -> bool:
    """Is no candidate a known positive of any query but the one that brought it, and none padding?

    Then nothing needs a mask. Only asked on the CPU: elsewhere the answer would have to be waited for.

    Args:
        known: keys of the known positives of all queries, -1 padded; each has one among the candidates.
        keys: keys of the candidates; -1 is padding.
    """
    if keys.device.type != "cpu" or (keys < 0).any() or len(keys.unique()) < len(keys):
        return False
    return int(torch.isin(known, keys).sum()) == len(known)
