"""Soft data augmentation of code and queries: tokens are masked, or replaced by their type.

Source: CoCoSoDa, Shi et al., ICSE 2023 (arXiv 2204.03293), section 3.2, code DeepSoftwareAnalytics/CoCoSoDa. Everywhere a
token is chosen with probability p, and 80 % of the chosen ones change; padding, special tokens and the first places (the
special prefix of the paper's encoder) never do. NOTE: the released training loop leaves the code as it is in dynamic
replacement, as its types are a copy of the ids, and looks for the type's own token, not for tokens of that type, in the
other two; here they are done as the paper means them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Ids = Int[Tensor, "B L"]
Types = Int[Tensor, "B L"]
Special = Bool[Tensor, "B L"]


class SoftTokens(NamedTuple):
    """Ids that augmentation writes.

    Attributes:
        mask: id of the mask token.
        types: id of each type's token `[T]`.
        ordinary: first id, and the end, of those that random tokens are drawn from.
    """

    mask: int
    types: Int[Tensor, " T"]
    ordinary: tuple[int, int]


def dynamic_masking(
    ids: Ids,
    special: Special,
    tokens: SoftTokens,
    p: float = 0.1,
    generator: torch.Generator | None = None,
    prefix: int = 3,
) -> Ids:
    """DM: of the chosen tokens 80 % become the mask, 10 % a random token, 10 % stay.

    Args:
        ids: token ids.
        special: True at padding and special tokens.
        tokens: what is written.
        p: share of tokens that are chosen.
        generator: of the choices.
        prefix: places at the front that stay.
    """
    chosen = _draw(ids, generator) < p
    kind = _draw(ids, generator)
    random = torch.randint(*tokens.ordinary, ids.shape, generator=generator, device=ids.device)
    written = random.masked_fill(kind < 0.8, tokens.mask)
    return torch.where(_open(special, prefix) & chosen & (kind < 0.9), written, ids)


def dynamic_replacement(
    ids: Ids,
    types: Types,
    special: Special,
    tokens: SoftTokens,
    p: float = 0.1,
    generator: torch.Generator | None = None,
    prefix: int = 3,
) -> Ids:
    """DR: of the chosen tokens 80 % become the token of their type.

    Args:
        ids: token ids.
        types: type of each token, from 0, -1 where it has none and therefore stays.
        special, tokens, p, generator, prefix: as in `dynamic_masking`.
    """
    changed = _open(special, prefix) & (types >= 0) & _changed(ids, p, generator)
    return torch.where(changed, tokens.types.to(ids.device)[types.clamp_min(0)], ids)


def type_replacement(
    ids: Ids,
    types: Types,
    special: Special,
    tokens: SoftTokens,
    p: float = 0.1,
    generator: torch.Generator | None = None,
    prefix: int = 3,
) -> Ids:
    """DRST: `dynamic_replacement` of one type only, drawn anew at each call. Arguments as there."""
    only = torch.where(types == _a_type(tokens, ids, generator), types, -1)
    return dynamic_replacement(ids, only, special, tokens, p, generator, prefix)


def type_masking(
    ids: Ids,
    types: Types,
    special: Special,
    tokens: SoftTokens,
    p: float = 0.1,
    generator: torch.Generator | None = None,
    prefix: int = 3,
) -> Ids:
    """DMST: as `type_replacement`, but the mask is written."""
    of_type = types == _a_type(tokens, ids, generator)
    return torch.where(_open(special, prefix) & of_type & _changed(ids, p, generator), tokens.mask, ids)


def soft_augment(
    ids: Ids,
    types: Types | None,
    special: Special,
    tokens: SoftTokens,
    step: int,
    p: float = 0.1,
    generator: torch.Generator | None = None,
    prefix: int = 3,
) -> Ids:
    """The variant of a training step: DM, DR, DRST, DMST in turn.

    Args:
        ids: token ids.
        types: of code; None for queries, which are masked at every fourth step and stay otherwise.
        special, tokens, p, generator, prefix: as in `dynamic_masking`.
        step: training step, from 0.
    """
    if step % 4 == 0:
        return dynamic_masking(ids, special, tokens, p, generator, prefix)
    if types is None:
        return ids
    variant = (dynamic_replacement, type_replacement, type_masking)[step % 4 - 1]
    return variant(ids, types, special, tokens, p, generator, prefix)


def _open(special: Tensor, prefix: int) -> Tensor:
    """Places that may change."""
    return ~special & (torch.arange(special.shape[1], device=special.device) >= prefix)


def _changed(ids: Tensor, p: float, generator: torch.Generator | None) -> Tensor:
    return _draw(ids, generator) < 0.8 * p  # chosen, and among the 80 % of those


def _draw(ids: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(ids.shape, generator=generator, device=ids.device)


def _a_type(tokens: SoftTokens, ids: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randint(len(tokens.types), (), generator=generator, device=ids.device)
