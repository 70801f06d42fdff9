"""Tokenizers of pretrained models."""

from __future__ import annotations

import copy
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
        system: makes a chat of each text: this instruction is the system's turn, prefix and text are the user's, and the
            assistant's begins, so that the last token (`pooling: last`) is where the model would answer. Texts are cut,
            the frame is not. Ju and Lee 2025 (arXiv 2508.00955) have "Given an image, summarize the provided image in
            one word. Given only text, describe the text in one word."
        query_length, document_length, query_prefix, document_prefix: as in `Tokenizer`.
    """

    def __init__(self, name: str, system: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name, self.system = name, system

    def prepare(self, source: PairSource, root: Path | None) -> None:
        from transformers import AutoTokenizer

        if not isinstance(source, TextSource):
            raise ZooError(f"HFTokenizer reads texts, and {source.name} has none: remove --data.tokenizer")
        self._tokenizer = load_pretrained(AutoTokenizer.from_pretrained, self.name, truncation_side="right")
        if not self._tokenizer.is_fast:
            raise ZooError(f"{self.name!r} has no fast tokenizer, whose offsets say where a prefix ends: name another")

    def portable(self) -> Any:
        from tokenizers import Tokenizer as Rust

        if self.system is not None:
            raise ZooError("a chat around each text cannot be written as a file of `tokenizers`")
        found = Rust.from_str(self._tokenizer.backend_tokenizer.to_str())
        found.enable_padding(pad_id=self.pad_id, pad_token=self._tokenizer.convert_ids_to_tokens(self.pad_id))
        found.no_truncation()
        return found

    def padded_right(self) -> Any:
        """A copy of the tokenizer of `transformers` that pads as rows are padded here."""
        found = copy.deepcopy(self._tokenizer)
        found.padding_side = "right"
        if found.pad_token_id is None:
            found.pad_token = found.convert_ids_to_tokens(self.pad_id)
        return found

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
        if self.system is not None:
            return self._chat(texts, prefix, self.lengths[side])
        if not prefix:
            return padded(self.encode(texts, self.lengths[side]), 0, self.pad_id)
        found = self._encode([prefix + text for text in texts], self.lengths[side], return_offsets_mapping=True)
        # Special tokens have no extent, (0, 0), and lie before the prefix or after the text.
        skipped = [
            1 + max((i for i, (start, end) in enumerate(row) if start < end <= len(prefix)), default=-1)
            for row in found["offset_mapping"]
        ]
        return padded(found["input_ids"], skipped, self.pad_id)

    def _chat(self, texts: Sequence[str], prefix: str, length: int) -> Tokens:
        """Texts in the frame of a chat; of that frame and the prefix what follows the text is pooled."""
        head, tail = (self._tokenizer(part, add_special_tokens=False)["input_ids"] for part in self._frame(prefix))
        room = length - len(head) - len(tail)
        if room < 1:
            raise ZooError(
                f"the chat's frame takes {len(head) + len(tail)} of {length} tokens: raise query_length and "
                "document_length of --data.tokenizer, or shorten its system instruction"
            )
        rows = self._encode(texts, room, add_special_tokens=False)["input_ids"]
        return padded([[*head, *row, *tail] for row in rows], len(head), self.pad_id)

    def _frame(self, prefix: str) -> tuple[str, str]:
        """What stands before and after a text: the model's own chat template, or a plain one."""
        if self._tokenizer.chat_template is None:
            return f"system: {self.system}\nuser: {prefix}", "\nassistant:"
        place = "\ue000"  # a character that no template has
        turns = [{"role": "system", "content": self.system}, {"role": "user", "content": prefix + place}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        head, _, tail = text.partition(place)
        return head, tail

    def _encode(self, texts: Sequence[str], length: int, **kwargs: Any) -> Any:
        if not len(texts):
            return {"input_ids": [], "offset_mapping": []}
        options = {"return_attention_mask": False, "return_token_type_ids": False, **kwargs}
        return self._tokenizer(list(texts), truncation=True, max_length=length, **options)
