"""Noise of known extent, planted into training pairs: for the claims that are about noise."""

from __future__ import annotations

import keyword
import re

import numpy as np

_IDENTIFIER = re.compile(r"\b[A-Za-z_][A-Za-z_0-9]*\b")


def plant_duplicates(
    pairs: list[tuple[str, str]], share: float, copies: int, seed: int
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Adds variants of some pairs, each with a query and a document of its own: every one answers the others' queries.

    A variant's query lacks a fifth of its words (at least one), in its code a third of the identifiers have other names (at
    least one).

    Args:
        pairs: (query, code).
        share: part of the pairs that get variants.
        copies: variants of each.
        seed: of the choice.

    Returns:
        The pairs with the variants after them, and the number of the original of each, `[N]`.
    """
    rng = np.random.default_rng([seed, 1])
    chosen = np.sort(rng.permutation(len(pairs))[: round(share * len(pairs))])
    variants, group = list(pairs), list(range(len(pairs)))
    for index in chosen.tolist():
        query, code = pairs[index]
        order = rng.permutation(len(query.split()))
        for number in range(copies):
            variants.append((_drop_words(query, order, number), _rename(code, rng, number)))
            group.append(index)
    return variants, np.array(group)


def corrupt_pairs(pairs: list[tuple[str, str]], share: float, seed: int) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Gives some pairs the document of another of them.

    Args:
        pairs: (query, document).
        share: part of the pairs that are wrong afterwards (up to chance agreement of equal documents).
        seed: of the choice.

    Returns:
        The pairs, and which were corrupted, bool `[N]`.
    """
    rng = np.random.default_rng([seed, 2])
    chosen = rng.permutation(len(pairs))[: round(share * len(pairs))]
    corrupted = np.zeros(len(pairs), bool)
    if len(chosen) < 2:
        return pairs, corrupted
    corrupted[chosen] = True
    wrong = list(pairs)
    for to, from_ in zip(chosen.tolist(), np.roll(chosen, 1).tolist(), strict=True):  # a cycle leaves none in place
        wrong[to] = (pairs[to][0], pairs[from_][1])
    return wrong, corrupted


def _drop_words(query: str, order: np.ndarray, number: int) -> str:
    parts = query.split()
    n = max(1, round(len(parts) / 5))
    gone = set(order[(number * n + np.arange(n)) % len(parts)].tolist())  # of each variant others
    return " ".join(word for i, word in enumerate(parts) if i not in gone or len(parts) < 2)


def _rename(code: str, rng: np.random.Generator, number: int) -> str:
    names = [n for n in dict.fromkeys(_IDENTIFIER.findall(code)) if not keyword.iskeyword(n) and n != "function"]
    chosen = rng.permutation(len(names))[: max(1, round(len(names) / 3))].tolist()
    renamed = {names[i]: f"v{number}_{i}" for i in chosen}
    return _IDENTIFIER.sub(lambda m: renamed.get(m[0], m[0]), code)
