"""Tokenizers of pretrained models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.collections import Side
from zoo.data.pairs import PairSource
from zoo.data.text import TextSource, Tokens
from zoo.data.tokenizers import Row, Tokenizer, padded
from zoo.errors import ZooError
from zoo.pretrained import load_pretrained


class HFTokenizer(Tokenizer):
    """A tokenizer of `transformers`, with the special tokens that its model was trained with.

    Rows are padded on the right, whatever the tokenizer's own habit. Everything up to the end of the prefix stays out of
    pooling, special tokens in front of it included; a token in which prefix and text have merged counts as text.

    Args:
        name: folder or hub id of the model.
        query_length, document_length, query_prefix, document_prefix: as in `Tokenizer`.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name

    def prepare(self, source: PairSource, root: Path | None) -> None:
        from transformers import AutoTokenizer

        if not isinstance(source, TextSource):
            raise ZooError(f"HFTokenizer reads texts, and {source.name} has none: remove --data.tokenizer")
        self._tokenizer = load_pretrained(AutoTokenizer.from_pretrained, self.name, truncation_side="right")
        if not self._tokenizer.is_fast:
            raise ZooError(f"{self.name!r} has no fast tokenizer, whose offsets say where a prefix ends: name another")

    @property
    def pad_id(self) -> int:
        """What rows are padded with: a padding token or, in decoders that have none, the end of a text.

        That it can be a token of the text as well does no harm: masks are made from lengths.
        """
        ids = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None)

    def encode(self, texts: Sequence[str], length: int) -> list[Row]:
        return self._encode(texts, length)["input_ids"]

    def __call__(self, texts: Sequence[str], side: Side) -> Tokens:
        prefix = self.prefixes[side]
        if not prefix:
            return padded(self.encode(texts, self.lengths[side]), 0, self.pad_id)
        found = self._encode([prefix + text for text in texts], self.lengths[side], return_offsets_mapping=True)
        # Special tokens have no extent, (0, 0), and lie before the prefix or after the text.
        skipped = [
            1 + max((i for i, (start, end) in enumerate(row) if start < end <= len(prefix)), default=-1)
            for row in found["offset_mapping"]
        ]
        return padded(found["input_ids"], skipped, self.pad_id)

    def _encode(self, texts: Sequence[str], length: int, **kwargs: Any) -> Any:
        if not len(texts):
            return {"input_ids": [], "offset_mapping": []}
        options = {"return_attention_mask": False, "return_token_type_ids": False, **kwargs}
        return self._tokenizer(list(texts), truncation=True, max_length=length, **options)
