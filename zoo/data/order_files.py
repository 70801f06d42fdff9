"""COCO-Order and Flickr30k-Order of ARO: captions against their own words in other orders."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.composition import CompositionCases
from zoo.data.cache import cache_folder, save_text
from zoo.data.case_files import CaseImages, CompositionSuite, read_rows
from zoo.negatives.pos_tags import Tagged, TaggerName, tagger

_FILES = {"coco": "coco_karpathy_{split}.json", "flickr30k": "flickr30k_{split}.json"}
_REMOVED = re.compile(r'[.!"()*#:;~]')


def pre_caption(text: str, max_words: int = 30) -> str:
    """Lower case, no punctuation but commas and apostrophes, single blanks, at most `max_words` words."""
    return " ".join(_REMOVED.sub(" ", text.lower()).split()[:max_words])


def perturbed(caption: Tagged, rng: np.random.Generator) -> list[str]:
    """ARO's four perturbations of a caption, in its order.

    (1) nouns among themselves and adjectives among themselves are permuted, (2) all other tokens, (3) words within
    consecutive trigrams, (4) the trigrams.
    """
    words = np.array(caption.words, dtype=object)
    tags = np.array(caption.tags)
    noun, adjective = np.char.startswith(tags, "NN"), np.char.startswith(tags, "JJ")
    content, others = words.copy(), words.copy()
    for chosen in (noun, adjective):
        content[chosen] = rng.permutation(content[chosen])
    others[~(noun | adjective)] = rng.permutation(others[~(noun | adjective)])
    trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]
    within = [word for trigram in trigrams for word in rng.permutation(trigram)]
    among = [word for i in rng.permutation(len(trigrams)) for word in trigrams[i]]
    return [" ".join(tokens) for tokens in (content, others, within, among)]


class OrderSet(CompositionSuite):
    """COCO-Order or Flickr30k-Order of ARO (Yuksekgonul et al. 2023, arXiv 2210.01936); metrics `coco_order`, `flickr30k_order`.

    Below the root: `coco_karpathy_{val,test}.json` or `flickr30k_{val,test}.json`, and the images by the paths that these
    name. One case per caption; the true one is first among five, so perturbations that change nothing count as right
    (`report` counts them as `unchanged`). Perturbed captions are drawn once per seed and kept in the cache. They are not
    those of the original benchmark, which had no seed; its numbers differ by that much, and by the tagger.

    Args:
        root, name, size, on_error: as in `CompositionSuite`; the name is `coco_order` or `flickr30k_order` by default.
        dataset: whose captions.
        split: which of them.
        seed: of the perturbations.
        tagger: who finds nouns and adjectives; "spacy" is ARO's.
        max_words: words that are kept of each caption.
    """

    def __init__(
        self,
        root: Path | None = None,
        dataset: Literal["coco", "flickr30k"] = "coco",
        split: Literal["val", "test"] = "test",
        seed: int = 0,
        tagger: TaggerName = "rules",
        max_words: int = 30,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, name or f"{dataset}_order", **kwargs)
        self.dataset, self.split, self.seed, self.max_words = dataset, split, seed, max_words
        self.tagger: TaggerName = tagger
        self._unchanged = 0

    @property
    def report(self) -> dict[str, int]:
        return {**super().report, "unchanged": self._unchanged}

    def _read(self) -> dict[str, CompositionCases]:
        path = self.root / _FILES[self.dataset].format(split=self.split)
        images, image_of = CaseImages(self.size, self.errors), []
        texts: list[str] = []
        for index, row in read_rows(path, self.errors):
            file, listed = row.get("image"), row.get("caption")
            if not isinstance(file, str) or not isinstance(listed, list) or not listed:
                self.errors.bad(path, index, "malformed", "it needs image (a path) and caption (a list of texts)")
                continue
            if (number := images.add(self.root / file, path, index)) is None:
                continue
            for value in listed:
                if (text := self.errors.text(path, index, "caption", value)) is not None:
                    texts.append(text)
                    image_of.append([number])
        captions = self._options(texts)
        self._unchanged = sum(text == row[0] for row in captions for text in row[1:])
        return {"": self._made(path, images, image_of, captions, strict=False)}

    def _options(self, texts: list[str]) -> list[list[str]]:
        """The five options of each caption, from the cache or drawn."""
        digest = hashlib.sha256(repr((self.seed, self.tagger, self.max_words, texts)).encode()).hexdigest()[:16]
        path = cache_folder(None) / f"order-{self.dataset}-{self.split}-{digest}.json"
        if not path.exists():
            tag = tagger(self.tagger)
            options = [[text, *perturbed(tag(text), self._rng(text))] for text in texts]
            save_text(path, json.dumps([[pre_caption(text, self.max_words) for text in row] for row in options]))
        return json.loads(path.read_text())

    def _rng(self, text: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(text.encode())])
