"""Training on classes of unequal size.

Sources: Zheng et al. 2023 (arXiv 2105.03746), whose CIFAR experiments keep a part of each class, "linear" or
"exponential" (the official code has the formulas); long tail: Cui et al. 2019 (arXiv 1901.05555), section 5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from zoo.data.pairs import PairDataset, PairSource, Split, labels_of
from zoo.errors import ZooError

Profile = Literal["linear", "exponential", "longtail"]


def class_fractions(n_classes: int, profile: Profile, ratio: float = 100.0) -> Float[np.ndarray, " C"]:
    r"""Part of each class that is kept, by the class's number c of C.

    "linear" keeps $(c + 1) / C$, "exponential" $e^{c + 1 - C}$, "longtail" $r^{-c / (C - 1)}$: there, unlike in the other
    two, the first class is the one that stays whole.

    Args:
        n_classes: C.
        profile: which of the three.
        ratio: $r$ of the long tail, between its largest and its smallest class.
    """
    c = np.arange(n_classes)
    if profile == "linear":
        return (c + 1) / n_classes
    if profile == "exponential":
        return np.exp(c + 1.0 - n_classes)
    return ratio ** -(c / max(n_classes - 1, 1))


def thin(labels: Int[np.ndarray, " N"], fractions: Float[np.ndarray, " C"], seed: int) -> Int[np.ndarray, " K"]:
    """Rows that are kept, ascending: of each class a random part, rounded down. The more is kept, the more of the same."""
    kept = []
    for label, fraction in zip(np.unique(labels), fractions, strict=True):
        rows = np.flatnonzero(labels == label)
        # What the fraction is in exact arithmetic must not fall below a whole number in floating point.
        kept.append(np.random.default_rng([seed, int(label)]).permutation(rows)[: int(fraction * len(rows) + 1e-9)])
    return np.sort(np.concatenate(kept))


class PairSubset(PairDataset):
    """Some pairs of a data set, with the identity keys that they have there.

    Args:
        pairs: the whole.
        rows: which of its pairs, in order.
    """

    def __init__(self, pairs: PairDataset, rows: Int[np.ndarray, " K"]) -> None:
        self.pairs, self.rows = pairs, rows
        keys = {f"{side}_key": pairs.keys(side, rows).numpy() for side in ("anchor", "positive")}
        self.columns = {name: np.asarray(column)[rows] for name, column in pairs.columns.items()} | keys

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.pairs[int(self.rows[index])]

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[Any, Any]:
        return self.pairs.fetch(self.rows[np.asarray(indices)])


class Imbalanced(PairSource):
    """Another source whose training pairs are thinned out, class by class.

    Evaluation, its labelled reference set included, stays what it is: a probe tells what was learnt, not what was seen.

    Args:
        source: a source of labelled pairs.
        profile: how much of each class is kept, as in `class_fractions`.
        ratio: of the long tail.
        seed: of the choice within each class, which is the same for every run.

    Raises:
        ZooError: the ratio is below 1; or, when training pairs are read, they have no labels.
    """

    def __init__(self, source: PairSource, profile: Profile = "linear", ratio: float = 100.0, seed: int = 2021) -> None:
        if ratio < 1:
            raise ZooError(f"a ratio of {ratio} between largest and smallest class is below 1: invert it")
        self.profile: Profile = profile
        self.source, self.ratio, self.seed = source, ratio, seed
        self.name = f"{source.name}-{profile}"

    def prepare(self, root: Path | None) -> None:
        self.source.prepare(root)

    def split(self, split: Split, root: Path | None) -> PairDataset:
        pairs = self.source.split(split, root)
        if split != "train":
            return pairs
        labels = labels_of(pairs.columns)
        if labels is None or not len(labels) or labels.min() < 0:
            raise ZooError(
                f"{self.source.name} has no labels for its training pairs, by which they could be thinned out"
            )
        fractions = class_fractions(len(np.unique(labels)), self.profile, self.ratio)
        return PairSubset(pairs, thin(labels, fractions, self.seed))

    def evaluation(self, split: Split, root: Path | None) -> list[PairDataset]:
        return self.source.evaluation(split, root)
