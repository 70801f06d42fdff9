"""A text collection under a backdoor attack: poisoned training pairs, planted passages, queries that trigger them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.collections import RetrievalSet
from zoo.data.pairs import Split
from zoo.data.text import TextPairs, TextSource
from zoo.errors import ZooError
from zoo.poisoning import GrammarErrors, RareTokens, attack_passages, poison

_TRIGGERS = {"grammar": GrammarErrors, "typo": RareTokens}


class Poisoned(TextSource):
    """Another source, attacked as in Long et al. 2024 (arXiv 2402.13532); `zoo.poisoning` has the parts.

    The training split gets mistakes in query and document of floor(rate * N) pairs, and the collection that is searched
    gets attack passages at its end: copies with mistakes of documents that answer no query of the split. Neither depends
    on the seed of training.

    Args:
        source: the clean source.
        rate: share of the training pairs that is poisoned.
        trigger: ordinary mistakes of grammar, or typos that no clean text contains.
        n_attack: attack passages.
        seed: of choice and mistakes, which are the same for every run.

    Raises:
        ZooError: `rate` is no share, or there are no attack passages.
    """

    def __init__(
        self,
        source: TextSource,
        rate: float = 0.2,
        trigger: Literal["grammar", "typo"] = "typo",
        n_attack: int = 60,
        seed: int = 0,
    ) -> None:
        if not 0 <= rate <= 1:
            raise ZooError(f"a rate of {rate} is no share of the pairs: choose one from 0 to 1")
        if n_attack < 1:
            raise ZooError(f"{n_attack} attack passages are no attack: set n_attack to at least 1")
        self.source, self.rate, self.n_attack, self.seed = source, rate, n_attack, seed
        self.trigger = _TRIGGERS[trigger]()
        self.name = source.name

    def prepare(self, root: Path | None) -> None:
        self.source.prepare(root)

    @property
    def arena(self) -> str:
        return self.source.arena

    @property
    def manifest(self) -> str | None:
        """The clean source's, if it has one."""
        return getattr(self.source, "manifest", None)

    @property
    def report(self) -> dict[str, int]:
        return self.source.report

    def split(self, split: Split, root: Path | None) -> TextPairs:
        pairs = self.source.split(split, root)
        return poison(pairs, self.rate, self.trigger, self.seed) if split == "train" else pairs

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        """The clean queries; the last `n_attack` documents are the attack passages."""
        data = self.source.retrieval(split, root)
        answers = {document for row in data.relevance for document in row}
        others = [text for number, text in enumerate(data.documents) if number not in answers]
        planted = attack_passages(others, self.n_attack, self.trigger, self.seed)
        return RetrievalSet(data.queries, [*data.documents, *planted], data.relevance)

    def triggered(self, queries: Sequence[str]) -> list[str]:
        """The queries with mistakes; one without a word for it stays as it is."""
        rng = np.random.default_rng([self.seed, 5])
        return [self.trigger(text, "query", rng) for text in queries]
