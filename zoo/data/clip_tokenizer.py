"""Tokenizers of image-text models: `open_clip`'s own, and whole words for small vocabularies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.collections import CollectionPairs, Side
from zoo.data.pairs import PairSource
from zoo.data.text import Tokens
from zoo.data.tokenizers import Row, Tokenizer, padded, portable_words, words
from zoo.errors import ZooError


class OpenClipTokenizer(Tokenizer):
    """The tokenizer that an `open_clip` model was trained with; every row fills the model's context.

    CLIP's byte-pair encoding comes with `open_clip`, other models name a tokenizer on the hub. Such a model finds the
    token that it reads itself, so a prefix is text as any other.

    Args:
        model: as in `zoo.methods.OpenClip`.
        query_prefix: stands before each query.
        document_prefix: before each document ("a photo of ").
    """

    def __init__(self, model: str, query_prefix: str = "", document_prefix: str = "") -> None:
        super().__init__(query_prefix=query_prefix, document_prefix=document_prefix)
        self.model = model

    def prepare(self, source: PairSource, root: Path | None) -> None:
        """Load.

        Raises:
            ZooError: no such model or tokenizer, or the model's vocabulary is a smaller one.
        """
        import open_clip

        from zoo.methods.open_clip import find_model

        name, config = find_model(self.model)
        try:
            self._tokenizer: Any = open_clip.get_tokenizer(name)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ZooError(f"cannot load the tokenizer of {name} ({reason}): check the network") from error
        room = config["text_cfg"].get("vocab_size", 0)
        if 0 < room < getattr(self._tokenizer, "vocab_size", 0):
            raise ZooError(
                f"{name} has a vocabulary of {room}, too small for CLIP's: set --data.tokenizer WordTokenizer"
            )
        self.lengths = {"query": self._tokenizer.context_length, "document": self._tokenizer.context_length}

    def encode(self, texts: Sequence[str], length: int) -> list[Row]:
        found = self._read(texts, length)
        return [ids[mask].numpy() for ids, mask in zip(found.ids, found.mask, strict=True)]

    def __call__(self, texts: Sequence[str], side: Side) -> Tokens:
        return self._read([self.prefixes[side] + text for text in texts], self.lengths[side])

    def _read(self, texts: Sequence[str], length: int) -> Tokens:
        if not len(texts):
            return padded([], 0)
        ids = self._tokenizer(list(texts), context_length=length).long()
        pad_id = getattr(getattr(self._tokenizer, "tokenizer", None), "pad_token_id", 0)  # of a hub's tokenizer
        mask = (ids != pad_id).int().flip(1).cummax(1).values.flip(1).bool()  # up to the last that is no padding
        return Tokens(ids, mask, mask)


class WordTokenizer(Tokenizer):
    """Words, each with a number of its own, between a start and an end; for captions with few distinct words.

    The vocabulary holds the most frequent words of the source's training texts. The first ids are padding, start, end
    and the unknown word, in this order.

    Args:
        vocab_size: entries of the vocabulary, those four included.
        document_length: longest text in tokens, start and end included.
        query_length, query_prefix, document_prefix: as in `Tokenizer`.
    """

    PAD, START, END, UNKNOWN = range(4)

    def __init__(self, vocab_size: int = 64, document_length: int = 20, **kwargs: Any) -> None:
        super().__init__(document_length=document_length, **kwargs)
        if vocab_size < 5:
            raise ZooError("WordTokenizer needs room for words: set --data.tokenizer.vocab_size to 5 or more")
        self.vocab_size = vocab_size

    def prepare(self, source: PairSource, root: Path | None) -> None:
        """Count the words of the training texts.

        Raises:
            ZooError: the source has no texts.
        """
        pairs = source.split("train", root)
        sides = (pairs.queries, pairs.documents) if isinstance(pairs, CollectionPairs) else ()
        listed = [getattr(side, "texts", side) for side in sides]  # of queries that are an image and a text, the texts
        texts = [side for side in listed if len(side) and isinstance(side[0], str)]
        if not texts:
            raise ZooError(f"WordTokenizer reads texts, and {source.name} has none: remove --data.tokenizer")
        counts = Counter(word for side in texts for text in side for word in words(text).split())
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        instructions = " ".join(words(prefix) for prefix in self.prefixes.values()).split()  # known in any case
        numbered = dict.fromkeys([*instructions, *ranked])
        self.vocabulary = {word: i for i, word in enumerate(list(numbered)[: self.vocab_size - 4], start=4)}

    def portable(self) -> Any:
        from tokenizers import Tokenizer as Rust
        from tokenizers.models import WordLevel
        from tokenizers.processors import TemplateProcessing

        special = {"[PAD]": self.PAD, "[START]": self.START, "[END]": self.END, "[UNK]": self.UNKNOWN}
        found: Any = Rust(WordLevel({**special, **self.vocabulary}, unk_token="[UNK]"))
        found.normalizer, found.pre_tokenizer = portable_words()
        found.post_processor = TemplateProcessing(
            single="[START] $A [END]", special_tokens=[("[START]", self.START), ("[END]", self.END)]
        )
        found.enable_padding(pad_id=self.PAD, pad_token="[PAD]")
        return found

    def encode(self, texts: Sequence[str], length: int) -> list[Row]:
        found = []
        for text in texts:
            ids = [self.vocabulary.get(word, self.UNKNOWN) for word in words(text).split()]
            found.append([self.START, *ids[: length - 2], self.END])
        return found
