"""Negative captions by swaps: the words of the caption in an arrangement that the image does not show.

Source: NegCLIP, Yuksekgonul et al. 2023 (arXiv 2210.01936), section 4 and appendix.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool

from zoo.data.collections import CollectionPairs
from zoo.errors import ZooError
from zoo.negatives.generators import Generated, NegativeGenerator, content_keys
from zoo.negatives.pos_tags import Tagged, TaggerName, is_auxiliary, tagger

Kind = Literal["phrases", "nouns", "adjectives", "adverbs", "verbs"]
Span = tuple[int, int]

_TAG: dict[Kind, str] = {"nouns": "NN", "adjectives": "JJ", "adverbs": "RB", "verbs": "VB"}
_QUANTIFIERS = ("several", "many", "few", "more", "most", "other", "own", "same", "not", "n't")  # never exchanged
_ARTICLES = ("a", "an", "the")
_SYMMETRIC = re.compile(r"(near|beside|alongside|and|or|&|,|next to|close to|together with|, and|, or)$")
_AN = re.compile(r"(?!eu|ewe|one\b|once\b|uni(?![nmd])|u[st][aeiou]|ukulele)[aeiou]|hour|honest|hono|heir|8|11\b|18\b")
_AN_LETTER = re.compile(r"[AEFHILMNORSX](?:[A-Z]|\b)")  # said letter by letter: an SUV


class CaptionEdits(NegativeGenerator):
    """NegCLIP's negatives: a caption with two distinct elements of one kind exchanged.

    Of each kind a caption has at most one negative, chosen by its text and `seed` alone, as in a file that is made once;
    every epoch draws anew among them. Adjacent nouns are one (`tennis racket`), auxiliary verbs are none, and a/an
    follow the word that they now precede. No swap is made that a true caption reads the same as, up to articles, to
    the order of coordinated words or phrases ("a cat and a dog") and of adjectives in a row, and to the sides of
    near, beside, next to. That a negative is false in another way cannot be known from the texts.

    Args:
        n_negatives: K, drawn without replacement; a caption with fewer edits has the rest masked.
        kinds: what is exchanged.
        tagger: "rules" needs nothing; "spacy" needs the extra of that name and en_core_web_sm, and is slower.
        seed: of the choice among a kind's swaps.
        start_epoch: as in NegativeGenerator.
    """

    def __init__(
        self,
        n_negatives: int = 1,
        kinds: Sequence[Kind] = get_args(Kind),
        tagger: TaggerName = "rules",
        seed: int = 0,
        start_epoch: int = 0,
    ) -> None:
        super().__init__(start_epoch)
        if n_negatives < 1:
            raise ZooError("CaptionEdits makes at least one negative per caption: set n_negatives 1 or more")
        self.n_negatives, self.kinds, self.tagger, self.seed = n_negatives, tuple(kinds), tagger, seed

    def edits(self, caption: str, known: Sequence[str] = ()) -> list[str]:
        """Negatives of a caption, at most one of each kind.

        Args:
            caption: a true caption.
            known: further true captions of its image.

        Raises:
            ZooError: spaCy was asked for and is not installed.
        """
        return list(_edits(caption, tuple(known), self.kinds, self.tagger, self.seed))

    def editable(self, pairs: CollectionPairs) -> Bool[np.ndarray, " N"]:
        """Which pairs have a caption with at least one negative; NegCLIP trains on no others."""
        return np.array([bool(self._of(pairs, index)) for index in range(len(pairs))], bool)

    def generate(self, pairs: CollectionPairs, indices: np.ndarray, rng: np.random.Generator) -> Generated:
        found = [self._of(pairs, int(index)) for index in indices]
        return draw_captions(found, pairs.fetch_documents(pairs.document_of[indices]), self.n_negatives, rng)

    def _of(self, pairs: CollectionPairs, index: int) -> list[str]:
        own = int(pairs.document_of[index])
        caption = pairs.documents[own]
        if not isinstance(caption, str):
            raise ZooError("CaptionEdits edits captions, and the documents of this data set are no texts: remove it")
        known = pairs.columns["known"][index]
        return self.edits(caption, [pairs.documents[int(n)] for n in known if n >= 0 and n != own])


def draw_captions(found: Sequence[list[str]], padding: Sequence[str], n: int, rng: np.random.Generator) -> Generated:
    """`n` of each row's captions, uniformly without replacement.

    Args:
        found: for each of B rows its negative captions.
        padding: what stands, masked, where a row has fewer.
        n: K.
        rng: of the draws.
    """
    documents: list[str] = []
    mask = np.zeros((len(found), n), bool)
    for row, (captions, filler) in enumerate(zip(found, padding, strict=True)):
        drawn: list[str] = [captions[i] for i in rng.permutation(len(captions))[:n]]
        mask[row, : len(drawn)] = True
        documents += drawn + [filler] * (n - len(drawn))
    return Generated(documents, np.where(mask, content_keys(documents).reshape(mask.shape), -1), mask)


@lru_cache(2**16)
def _edits(
    caption: str, known: tuple[str, ...], kinds: tuple[Kind, ...], name: TaggerName, seed: int
) -> tuple[str, ...]:
    tagged = _read(caption, name)[0]
    plain, meaning = set[str](), set[tuple[str, ...]]()
    for text in (caption, *known):
        _, words, forms = _read(text, name)
        plain.add(words)
        meaning |= forms
    found: dict[str, str] = {}
    rng = np.random.default_rng([seed, zlib.crc32(caption.encode())])
    for kind in kinds:
        swaps = [pair for pair in combinations(elements(tagged, kind), 2) if _differ(tagged, *pair)]
        for i in rng.permutation(len(swaps)):
            edited = swap(tagged, *swaps[i])
            text = _plain(edited.words)
            if text not in plain and text not in found and meaning.isdisjoint(canonical(edited)):
                found[text] = edited.text
                break
    return tuple(found.values())


@lru_cache(2**12)  # captions of one image are each other's true captions
def _read(caption: str, name: TaggerName) -> tuple[Tagged, str, set[tuple[str, ...]]]:
    tagged = tagger(name)(caption)
    return tagged, _plain(tagged.words), canonical(tagged)


def elements(tagged: Tagged, kind: Kind) -> list[Span]:
    """What can be exchanged of a kind, as [start, stop) of words."""
    if kind == "phrases":
        return list(tagged.chunks)
    places = [
        i
        for i, (word, tag) in enumerate(zip(tagged.words, tagged.tags, strict=True))
        if tag == _TAG[kind] and not is_auxiliary(word) and word.lower() not in _QUANTIFIERS
    ]
    spans: list[Span] = []
    for i in places:
        if kind == "nouns" and spans and spans[-1][1] == i and i not in dict(tagged.chunks):
            spans[-1] = (spans[-1][0], i + 1)
        else:
            spans.append((i, i + 1))
    return spans


def swap(tagged: Tagged, first: Span, second: Span) -> Tagged:
    """The caption with two spans exchanged; capitals and articles are put right.

    Args:
        tagged: a caption.
        first: span of words.
        second: a later one, apart from it.
    """
    (a, b), (c, d) = first, second
    order = [*range(a), *range(c, d), *range(b, c), *range(a, b), *range(d, len(tagged.words))]
    words = [tagged.words[i] for i in order]
    opening = tagged.words[0]
    if a == 0 and opening[0].isupper() and opening[1:] == opening[1:].lower():
        words[0] = words[0][0].upper() + words[0][1:]
        moved = order.index(0)
        words[moved] = opening.lower()
    for i in (a, d - (b - a)):  # where the two begin now
        if i and words[i - 1].lower() in ("a", "an"):
            words[i - 1] = words[i - 1][0] + ("n" if _takes_an(words[i]) else "")
    gaps = [tagged.gaps[i] for i in order]
    gaps[a], gaps[d - (b - a)] = tagged.gaps[a], tagged.gaps[c]
    shift = (d - c) - (b - a)
    # A phrase's edge lies in neither span: those between the two move.
    chunks = [(x + shift * (a < x <= c), y + shift * (b <= y <= c)) for x, y in tagged.chunks]
    return Tagged(tuple(words), tuple(tagged.tags[i] for i in order), tuple(chunks), tuple(gaps))


def canonical(tagged: Tagged) -> set[tuple[str, ...]]:
    """What a caption says, the order of what may stand in any order fixed: captions that share a form mean the same.

    There are two forms, as "salt and pepper shakers" are shakers of both or salt beside shakers.
    """
    words, tags = [word.lower() for word in tagged.words], list(tagged.tags)
    for tag in ("JJ", "RB", "VB"):
        _sort_coordinated(words, tags, tag)
    phrases = _form(words, tagged.chunks)
    _sort_coordinated(words, tags, "NN")
    return {phrases, _form(words, tagged.chunks)}


def _form(words: list[str], chunks: tuple[Span, ...]) -> tuple[str, ...]:
    starts = dict(chunks)
    units: list[tuple[bool, str]] = []  # (is it a noun phrase?, its words)
    i = 0
    while i < len(words):
        stop = starts.get(i, i + 1)
        kept = [word for word in words[i:stop] if word not in _ARTICLES and word not in (".", "!", "?")]
        if kept:
            units.append((i in starts, " ".join(kept)))
        i = stop
    return tuple(_merge(units))


def _merge(units: list[tuple[bool, str]]) -> list[str]:
    """Runs of noun phrases that symmetric words join, each in one order."""
    merged: list[str] = []
    i = 0
    while i < len(units):
        run, joints, stop = [units[i][1]], [], i + 1
        while units[i][0]:
            ahead = next((j for j in range(stop, len(units)) if units[j][0]), None)
            joint = "" if ahead is None else " ".join(text for _, text in units[stop:ahead])
            if ahead is None or not _SYMMETRIC.match(joint):
                break
            run.append(units[ahead][1])
            joints.append(joint)
            stop = ahead + 1
        merged += [*sorted(run), *joints]
        i = stop
    return merged


def _sort_coordinated(words: list[str], tags: list[str], tag: str) -> None:
    """Sort, in place, words of one tag that stand in a coordination: "black and white"; adjectives without one too."""
    joints = "|".join([f"{x}(?={tag})" for x in (r"(?:\. )?CC ", r"\. ", *([""] if tag == "JJ" else []))])
    line = " ".join(t if t != "." or word == "," else "-" for t, word in zip(tags, words, strict=True)) + " "
    for run in re.finditer(rf"(?<!\S){tag} (?:(?:{joints}){tag} )+", line):
        start = line[: run.start()].count(" ")
        places = [start + i for i, t in enumerate(run.group().split()) if t == tag]
        for place, word in zip(places, sorted(words[i] for i in places), strict=True):
            words[place] = word


def _differ(tagged: Tagged, first: Span, second: Span) -> bool:
    return _plain(tagged.words[slice(*first)]) != _plain(tagged.words[slice(*second)])


def _plain(words: Sequence[str]) -> str:
    return " ".join(word.lower() for word in words if word[0].isalnum())


def _takes_an(word: str) -> bool:
    if len(word) > 1 and word.isupper():
        return bool(_AN_LETTER.match(word))
    return bool(_AN.match(word.lower()))
