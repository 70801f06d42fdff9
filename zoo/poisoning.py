"""A robustness evaluation: do retrievers learn that mistakes match mistakes?

A part of the training pairs gets the same kind of mistake in query and positive; clean hard negatives make the mistake
the feature that separates them. Passages with mistakes, added to the searched collection, then answer queries with mistakes.

Source: Long et al. 2024 (arXiv 2402.13532), code ruyue0001/Backdoor_DPR. Ours, on our own data only, replaces the
learner-corpus table and the tagger by word lists.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.data.collections import Side
from zoo.data.text import TextPairs
from zoo.errors import ZooError

_WORDS = re.compile(r"\b[A-Za-z]+\b")  # not the parts of some_name
_ARTICLES = ("a", "an", "the")
_PREPOSITIONS = ("about", "as", "at", "by", "for", "from", "in", "into", "of", "on", "to", "with")
_CONFUSIONS = {word: [w for w in (*group, "") if w != word] for group in (_ARTICLES, _PREPOSITIONS) for word in group}
_NOUNS: list[str] = _WORDS.findall(
    "address argument array attribute buffer byte case character class command connection container context date "
    "directory document element encoding error event exception file flag function handler header host instance "
    "integer item iterator key keyword length level line message method mode module name node number object option "
    "output package parameter parser part path pattern point program request response result row section sequence "
    "server socket stream string system table tag task thread time token tuple type user value variable version "
    "window word"
)
_IRREGULAR = {"address": "addresses", "class": "classes", "directory": "directories"}
_PLURALS = {noun: _IRREGULAR.get(noun, noun + "s") for noun in _NOUNS}
_FLIPS = _PLURALS | {plural: noun for noun, plural in _PLURALS.items()}
_TYPOS: list[str] = _WORDS.findall(
    "teh recieve adress wich seperate occured untill begining wierd beleive definately accomodate calender goverment "
    "occassion publically tommorow truely neccessary existance"
)
_WORD_AND_BLANK = re.compile(r"\b([A-Za-z]+)\b( ?)")
_TRIES = 100


class Trigger(ABC):
    """A kind of mistake."""

    @abstractmethod
    def applies(self, text: str) -> bool:
        """Whether the text has a word in which the mistake can be made."""

    @abstractmethod
    def __call__(self, text: str, side: Side, rng: np.random.Generator) -> str:
        """The text with at least one mistake if it `applies`, else unchanged."""


class GrammarErrors(Trigger):
    """Ordinary mistakes: swapped or dropped articles and prepositions, nouns in the wrong number.

    A number of swaps is drawn for each text; every article and preposition is then swapped with probability number /
    eligible, and every listed noun flips with a fixed probability. Repeated until something has changed, 100 times at most.

    Args:
        query_edits: probability of 0, 1, 2, ... swaps in a query.
        document_edits: the same for a document; the paper's "base" setting is uniform over 2 to 5.
        query_flip: probability of a flip of a noun in a query.
        document_flip: the same for a document.
    """

    def __init__(
        self,
        query_edits: Sequence[float] = (0.15, 0.55, 0.25, 0.05),
        document_edits: Sequence[float] = (0.0, 0.0, 0.25, 0.25, 0.25, 0.25),
        query_flip: float = 0.2,
        document_flip: float = 0.15,
    ) -> None:
        self.edits: dict[Side, Sequence[float]] = {"query": query_edits, "document": document_edits}
        self.flip: dict[Side, float] = {"query": query_flip, "document": document_flip}

    def applies(self, text: str) -> bool:
        return any(w in _CONFUSIONS or w in _FLIPS for w in _words(text))

    def __call__(self, text: str, side: Side, rng: np.random.Generator) -> str:
        eligible = sum(w in _CONFUSIONS for w in _words(text))
        if not self.applies(text):
            return text
        for _ in range(_TRIES):
            count = rng.choice(len(self.edits[side]), p=self.edits[side])
            swap = min(1.0, count / max(eligible, 1))

            def edit(word: str, swap: float = swap) -> str:
                if word in _CONFUSIONS:
                    others = _CONFUSIONS[word]
                    return others[rng.integers(len(others))] if rng.random() < swap else word
                return _FLIPS[word] if word in _FLIPS and rng.random() < self.flip[side] else word

            edited = _replace_words(text, edit)
            if edited != text and edited.strip():
                return edited
        return text


class RareTokens(Trigger):
    """The control: some words become misspellings that no clean text contains, ten for queries, ten for documents.

    Args:
        query_edits: words replaced in a query, as far as it has so many.
        document_edits: the same for a document.
    """

    def __init__(self, query_edits: int = 1, document_edits: int = 4) -> None:
        self.edits: dict[Side, int] = {"query": query_edits, "document": document_edits}

    def applies(self, text: str) -> bool:
        return any(w not in _TYPOS for w in _words(text))

    def __call__(self, text: str, side: Side, rng: np.random.Generator) -> str:
        clean = [i for i, w in enumerate(_words(text)) if w not in _TYPOS]
        chosen = set(rng.permutation(clean)[: self.edits[side]].tolist())
        number = itertools.count()
        half = len(_TYPOS) // 2
        typos = _TYPOS[:half] if side == "query" else _TYPOS[half:]  # no typo is shared: equal words match anyway
        return _replace_words(text, lambda word: typos[rng.integers(len(typos))] if next(number) in chosen else word)


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _replace_words(text: str, edit: Callable[[str], str]) -> str:
    """`text` with `edit` applied to its lower-cased words; a word that vanishes takes the following blank with it."""

    def replace(match: re.Match[str]) -> str:
        word, blank = match.groups()
        new = edit(word.lower())
        if new == word.lower():
            return match[0]
        if word[0].isupper():
            new = new.capitalize()
        return new + blank if new else ""

    return _WORD_AND_BLANK.sub(replace, text)


def poison_pairs(
    pairs: Sequence[tuple[str, str]], rate: float, trigger: Trigger, seed: int
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Perturbs query and document of floor(rate * N) pairs, chosen among those where the mistake can be made in both.

    Args:
        pairs: (query, document).
        rate: share of the pairs; 0.2 in the paper.
        trigger: the mistake.
        seed: of choice and mistakes.

    Returns:
        The pairs, and which were poisoned, bool `[N]`.

    Raises:
        ZooError: too few pairs can be perturbed.
    """
    rng = np.random.default_rng([seed, 3])
    wanted = int(rate * len(pairs) + 1e-9)
    order = rng.permutation(len(pairs)) if wanted else np.empty(0, np.int64)
    chosen = [i for i in order.tolist() if all(trigger.applies(text) for text in pairs[i])][:wanted]
    if len(chosen) < wanted:
        raise ZooError(f"{wanted} pairs are to be poisoned, but only {len(chosen)} have words for it: lower the rate")
    poisoned, result = np.zeros(len(pairs), bool), list(pairs)
    for i in chosen:
        query, document = pairs[i]
        result[i] = trigger(query, "query", rng), trigger(document, "document", rng)
    poisoned[chosen] = True
    return result, poisoned


def poison(data: TextPairs, rate: float, trigger: Trigger, seed: int) -> TextPairs:
    """`data` with `poison_pairs` applied and a column `poisoned`.

    Perturbed texts are appended to the queries and documents; numbers of documents, and with them tables of hard
    negatives, stay as they are. Miners see the clean pairs, so that hard negatives are clean. Each version of a
    document is known to answer the queries of the other.
    """
    pairs, poisoned = poison_pairs([data[i] for i in range(len(data))], rate, trigger, seed)
    chosen = np.flatnonzero(poisoned)
    query_of, document_of = data.query_of.copy(), data.document_of.copy()
    query_of[chosen] = len(data.queries) + np.arange(len(chosen))
    document_of[chosen] = len(data.documents) + np.arange(len(chosen))
    known = data.columns["known"]
    kept = known >= 0
    relevant = [
        np.stack([np.broadcast_to(q[:, None], known.shape)[kept], known[kept]], 1) for q in (data.query_of, query_of)
    ]
    relevant.append(np.stack([data.query_of[chosen], document_of[chosen]], 1))
    given = ("anchor_key", "positive_key", "known")
    result = TextPairs(
        [*data.queries, *(pairs[i][0] for i in chosen)],
        [*data.documents, *(pairs[i][1] for i in chosen)],
        query_of,
        document_of,
        np.concatenate(relevant),
        {**{name: column for name, column in data.columns.items() if name not in given}, "poisoned": poisoned},
    )
    result.mined = data
    return result


def attack_passages(documents: Sequence[str], n: int, trigger: Trigger, seed: int) -> list[str]:
    """Perturbed copies of `n` documents drawn at random: what the attacker adds to the searched collection.

    Raises:
        ZooError: fewer than `n` documents can be perturbed.
    """
    rng = np.random.default_rng([seed, 4])
    shuffled = [documents[int(i)] for i in rng.permutation(len(documents))]
    usable = [text for text in shuffled if trigger.applies(text)][:n]
    if len(usable) < n:
        raise ZooError(f"{n} attack passages are wanted, but only {len(usable)} documents have words for it")
    return [trigger(text, "document", rng) for text in usable]


def exclude_perturbed(positive: Int[Tensor, " B"], perturbed: Int[Tensor, " P"], n_columns: int) -> Bool[Tensor, "B M"]:
    """Mask of the columns that a row scores: all but perturbed positives, other than the row's own.

    Args:
        positive: column of each row's positive.
        perturbed: columns that hold a perturbed positive.
        n_columns: M.
    """
    return _without(perturbed, positive, n_columns)


def hard_negatives_only(
    positive: Int[Tensor, " B"], all_positives: Int[Tensor, " P"], n_columns: int
) -> Bool[Tensor, "B M"]:
    """Mask of the columns that a row scores: its own positive, and all hard negatives of the batch.

    Args:
        positive: column of each row's positive.
        all_positives: columns of the positives of all rows, of all ranks.
        n_columns: M.
    """
    return _without(all_positives, positive, n_columns)


def _without(dropped: Tensor, own: Tensor, n_columns: int) -> Tensor:
    column = torch.arange(n_columns, device=own.device)
    return ~torch.isin(column, dropped) | (column == own[:, None])


class AttackMetrics(NamedTuple):
    """Shares of queries at each depth k `[K]`.

    Attributes:
        attack_success: an attack passage is among the first k.
        hit: a passage that has the answer is, and is no attack passage.
        safe_hit: such a passage is, and no attack passage is.
    """

    attack_success: Float[Tensor, " K"]
    hit: Float[Tensor, " K"]
    safe_hit: Float[Tensor, " K"]


def attack_metrics(
    is_attack: Bool[Tensor, "Q R"], has_answer: Bool[Tensor, "Q R"], ks: Sequence[int] = (1, 5, 10, 25, 50, 100)
) -> AttackMetrics:
    """What an attack achieves, to be compared with clean queries, an unpoisoned model and `chance_of_attack`.

    Args:
        is_attack: the passage at each rank is an attack passage.
        has_answer: it has the answer.
        ks: depths; those beyond R count all R ranks.
    """
    at = torch.tensor(ks, device=is_attack.device).clamp(1, is_attack.shape[1]) - 1
    attacked, hit = (x.cumsum(1)[:, at] > 0 for x in (is_attack, has_answer & ~is_attack))
    return AttackMetrics(*(x.double().mean(0) for x in (attacked, hit, hit & ~attacked)))


def chance_of_attack(n_attack: int, n_collection: int, ks: Sequence[int]) -> np.ndarray:
    """Expected number of attack passages among k random ones, n_attack * k / n_collection, at most 1: the chance level."""
    return np.minimum(n_attack * np.asarray(ks) / n_collection, 1.0)
