"""Compositional image-text evaluation: one interface to ARO, SugarCrepe, Winoground and k by k groups.

A case has K images and L captions; a scorer gives it `[K, L]` scores, and all metrics look at their order inside a case
only. Sources: Yuksekgonul et al. 2023 (arXiv 2210.01936), Hsieh et al. 2023 (arXiv 2306.14610), Thrush et al. 2022 (arXiv
2204.03162).

What ties count for differs, and a scorer that always says the same shows it: ARO takes the first maximum (`first_best`),
so that scorer has 0 where the false caption comes first (relation, attribution) and 1 where the true one does (order);
SugarCrepe and Winoground want the true one above all others (`strictly_best`), so it has 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.losses.scores import normalize

FAMILIES = ("swap", "replace", "add")
UNSEEN = "_unseen"


def case_scores(
    images: Float[Tensor, "C K D"], captions: Float[Tensor, "C L D"], chunk: int = 2048
) -> Float[Tensor, "C K L"]:
    """Cosines of each case's images and captions; equal embeddings have exactly equal scores."""
    # Sums of products rather than a matrix product, whose rounding may differ between columns: ties matter here.
    return torch.cat(
        [
            (normalize(i)[:, :, None] * normalize(c)[:, None]).sum(3)
            for i, c in zip(images.split(chunk), captions.split(chunk), strict=True)
        ]
    )


def first_best(scores: Float[Tensor, "C L"], truth: int) -> Bool[Tensor, " C"]:
    """Is the first maximum option `truth`? Never where a score is NaN."""
    return (scores.argmax(1) == truth) & ~scores.isnan().any(1)


def strictly_best(scores: Float[Tensor, "C L"], truth: int) -> Bool[Tensor, " C"]:
    """Is option `truth` above all others?"""
    others = [i for i in range(scores.shape[1]) if i != truth]
    return (scores[:, [truth]] > scores[:, others]).all(1)


class GroupAccuracy(NamedTuple):
    """Accuracy in each of G groups, in ascending order: the groups `[G]`, accuracy `[G]`, number of cases `[G]`."""

    group: np.ndarray
    accuracy: np.ndarray
    size: np.ndarray

    @property
    def macro(self) -> float:
        """Unweighted mean over the groups; NaN without any."""
        return float(self.accuracy.mean()) if len(self.accuracy) else float("nan")


def accuracy_by_group(
    correct: Bool[Tensor, " C"],
    groups: Sequence[str] | np.ndarray,
    min_count: int = 1,
    exclude: Collection[str] = (),
) -> GroupAccuracy:
    """Accuracy per relation or pair of attributes, whose macro mean ARO reports.

    Args:
        correct: which cases are right.
        groups: name or number of each case's group.
        min_count: leave out groups with fewer cases (VG-Attribution: 25).
        exclude: leave out these groups (VG-Relation: symmetric relations, `zoo.data.aro_relations.UNUSABLE`).
    """
    names, group_of, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    right = np.bincount(group_of, weights=correct.cpu().numpy(), minlength=len(names))
    kept = (counts >= min_count) & ~np.isin(names, sorted(exclude))
    return GroupAccuracy(names[kept], right[kept] / counts[kept], counts[kept])


class SquareScores(NamedTuple):
    """Which cases (or members of them) are right by their captions, by their images, and by both."""

    text: Tensor
    image: Tensor
    group: Tensor

    def means(self) -> dict[str, float]:
        return {name: float(x.double().mean()) for name, x in self._asdict().items()}


def winoground(scores: Float[Tensor, "C 2 2"]) -> SquareScores:
    """Winoground's text, image and group score of each case `[C]`, all strict.

    Text: each image prefers its caption. Image: each caption prefers its image. Chance is 1/4, 1/4 and 1/6.
    """
    text = strictly_best(scores[:, 0], 0) & strictly_best(scores[:, 1], 1)
    image = strictly_best(scores[:, :, 0], 0) & strictly_best(scores[:, :, 1], 1)
    return SquareScores(text, image, text & image)


def grouped(scores: Float[Tensor, "C K K"]) -> SquareScores:
    """Is each of the K members of a case found `[C, K]`, its caption by its image and the other way round?

    Means over all are `text_1`, `image_1` and `group_1` of generative negative mining; `.all(1)` asks for every member of
    a case, as its `text_all`, `image_all` and `group_all` do.
    """
    k = scores.shape[1]
    text = torch.stack([first_best(scores[:, n], n) for n in range(k)], 1)
    image = torch.stack([first_best(scores[:, :, n], n) for n in range(k)], 1)
    return SquareScores(text, image, text & image)


def family_means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Unweighted means over SugarCrepe's files: per family, and `composition` over all of them.

    Args:
        accuracies: by name: `swap_att`, `replace_rel`, ...; names that end in `_unseen` have means of their own.
    """
    means = {}
    for suffix in ("", UNSEEN):
        found = {
            name.removesuffix(UNSEEN): x for name, x in accuracies.items() if name.endswith(UNSEEN) == bool(suffix)
        }
        of = {family: [x for name, x in found.items() if name.startswith(f"{family}_")] for family in FAMILIES}
        means |= {f"{family}{suffix}": float(np.mean(x)) for family, x in of.items() if x}
        if everything := [x for values in of.values() for x in values]:
            means[f"composition{suffix}"] = float(np.mean(everything))
    return means


TextScorer = Callable[[Sequence[str]], Sequence[float]]


def shorter(captions: Sequence[str]) -> list[float]:
    """Scores of the blind rule "the shorter caption wins", in words."""
    return [-float(len(text.split())) for text in captions]


def blind_scores(
    captions: Sequence[Sequence[str]], scorer: TextScorer = shorter, n_images: int = 1, seed: int = 0
) -> Float[Tensor, "C K L"]:
    """Scores that have not seen the images: what the captions alone give away.

    Ties are broken by a seeded draw. Counted as ties, they would say how the protocol treats them and nothing about the
    captions.

    Args:
        captions: L captions of each case.
        scorer: plausibility of texts: their length, a language model's likelihood, ...
        n_images: K.
        seed: of the draw.
    """
    scores = np.array(scorer([text for row in captions for text in row]), np.float64).reshape(len(captions), -1)
    chance = np.random.default_rng(seed).random(scores.shape)
    ranks = np.lexsort((chance, scores), axis=1).argsort(1)
    return torch.from_numpy(ranks.astype(np.float64))[:, None].repeat(1, n_images, 1)


@dataclass
class CompositionCases:
    """C cases of one kind over collections of distinct images and captions, each of which is encoded once.

    Attributes:
        images: collection of images.
        image_of: numbers of each case's K images.
        captions: distinct captions.
        caption_of: numbers of each case's L captions; where K > 1, caption k belongs to image k.
        truth: place of the true caption where K = 1.
        strict: ties are wrong, else the first maximum wins; where K = L = 2 they are always wrong, in larger groups never.
        groups: name of each case's group, over which accuracy is a macro mean; None takes the plain mean.
        min_count: groups with fewer cases are left out.
        exclude: groups that are left out.
    """

    images: Any = field(repr=False)
    image_of: Int[np.ndarray, "C K"] = field(repr=False)
    captions: list[str] = field(repr=False)
    caption_of: Int[np.ndarray, "C L"] = field(repr=False)
    truth: int = 0
    strict: bool = True
    groups: list[str] | None = field(default=None, repr=False)
    min_count: int = 1
    exclude: Set[str] = field(default=frozenset(), repr=False)

    def __len__(self) -> int:
        return len(self.image_of)

    @classmethod
    def of_texts(
        cls, images: Any, image_of: np.ndarray, captions: Sequence[Sequence[str]], **kwargs: Any
    ) -> CompositionCases:
        """Cases from L texts for each; the other arguments are attributes."""
        numbers = {text: i for i, text in enumerate(dict.fromkeys(text for row in captions for text in row))}
        caption_of = np.array([[numbers[text] for text in row] for row in captions], np.int64)
        return cls(images, np.asarray(image_of, np.int64), list(numbers), caption_of, **kwargs)

    def texts(self) -> list[list[str]]:
        """The captions of each case."""
        return [[self.captions[i] for i in row] for row in self.caption_of.tolist()]

    def take(self, n: int) -> CompositionCases:
        """The same `n` cases each time, drawn at random; all, if there are no more."""
        if n >= len(self):
            return self
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:n])
        captions, caption_of = np.unique(self.caption_of[rows], return_inverse=True)
        groups = None if self.groups is None else [self.groups[i] for i in rows]
        texts = [self.captions[i] for i in captions]
        shape = (n, self.caption_of.shape[1])
        return CompositionCases(
            self.images, self.image_of[rows], texts, caption_of.reshape(shape), self.truth, self.strict, groups,
            self.min_count, self.exclude,
        )  # fmt: skip

    def truths(self) -> Int[np.ndarray, " K"]:
        """Place of the true caption of each image."""
        k = self.image_of.shape[1]
        return np.array([self.truth]) if k == 1 else np.arange(k)

    def correct(self, scores: Float[Tensor, "C 1 L"]) -> Bool[Tensor, " C"]:
        """Which cases of one image are right."""
        return (strictly_best if self.strict else first_best)(scores[:, 0], self.truth)

    def table(self, scores: Float[Tensor, "C 1 L"]) -> GroupAccuracy:
        """Accuracy in every group, those included that metrics leave out."""
        return accuracy_by_group(self.correct(scores), self.groups or [""] * len(self))

    def metrics(self, scores: Float[Tensor, "C K L"]) -> dict[str, float]:
        """By suffix: "" is the accuracy, with groups their macro mean (if any is large enough) beside "micro"; pairs of
        images have "text", "image" and "group", larger groups those with `_1` and `_all`."""
        k = scores.shape[1]
        if k == 1:
            correct = self.correct(scores)
            plain = float(correct.double().mean())
            if self.groups is None:
                return {"": plain}
            found = accuracy_by_group(correct, self.groups, self.min_count, self.exclude)
            return {**({"": found.macro} if len(found.group) else {}), "micro": plain}
        if k == 2:
            return winoground(scores).means()
        members = grouped(scores)
        every = SquareScores(*(x.all(1) for x in members))
        return {f"{n}_1": x for n, x in members.means().items()} | {f"{n}_all": x for n, x in every.means().items()}
