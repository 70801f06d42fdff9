"""Texts to token ids."""

from __future__ import annotations

import hashlib
import keyword
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from zoo.data.cache import cache_folder, save_text
from zoo.data.collections import Side
from zoo.data.pairs import PairSource
from zoo.data.text import TextPairs, Tokens
from zoo.errors import ZooError

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\sA-Za-z\d_]")
_MEMO = 200_000  # texts

Row = Sequence[int] | np.ndarray  # ids of a text


class Tokenizer(ABC):
    """Texts of one side to `Tokens`; a prefix of that side stands in front of each text.

    Args:
        query_length: longest query in tokens, prefix included.
        document_length: longest document in tokens.
        query_prefix: instruction before each query; attended to, but not pooled.
        document_prefix: the same for documents.
    """

    def __init__(
        self,
        query_length: int = 32,
        document_length: int = 128,
        query_prefix: str = "",
        document_prefix: str = "",
    ) -> None:
        self.lengths: dict[Side, int] = {"query": query_length, "document": document_length}
        self.prefixes: dict[Side, str] = {"query": query_prefix, "document": document_prefix}

    @abstractmethod
    def prepare(self, source: PairSource, root: Path | None) -> None:
        """Train or load; runs after the source's own `prepare`, in every process."""

    @abstractmethod
    def encode(self, texts: Sequence[str], length: int) -> list[Row]:
        """Ids of each text, at most `length` of them, special tokens included; id 0 is the padding."""

    def portable(self) -> Any:
        """The same as a new `tokenizers.Tokenizer`, whose JSON file is read without zoo; prefixes and lengths aside.

        Raises:
            ZooError: there is none.
        """
        raise ZooError(f"{type(self).__name__} cannot be written as a file of `tokenizers`")

    def __call__(self, texts: Sequence[str], side: Side) -> Tokens:
        prefix = self.prefixes[side]
        rows = self.encode([prefix + text for text in texts] if prefix else texts, self.lengths[side])
        skipped = len(self.encode([prefix], self.lengths[side])[0]) if prefix else 0
        return padded(rows, skipped)


def padded(rows: Sequence[Row], skipped: int | Sequence[int], pad_id: int = 0) -> Tokens:
    """Rows of ids, padded on the right; an empty text is one padding token, which is pooled, not NaN.

    Args:
        rows: ids of each text.
        skipped: how many tokens in front are not pooled, of all rows or of each; where that leaves none, all are.
        pad_id: id of the padding.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))[:, None]
    at = np.arange(max(lengths.max(initial=0), 1))
    ids, mask = np.full((len(rows), len(at)), pad_id, np.int64), at < lengths
    if len(rows):
        ids[mask] = np.concatenate(rows)
    mask[:, 0] = True
    pool = mask
    if np.any(skipped):
        pool = mask & (at >= np.reshape(skipped, (-1, 1)))
        pool = np.where(pool.any(1, keepdims=True), pool, mask)
    return Tokens(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(pool))


def portable_words() -> tuple[Any, Any]:
    """Normaliser and pre-tokenizer of `tokenizers` that read texts as `words` does (but for letters like the Kelvin sign)."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    # A blank where case says that a word begins; digits and signs are told apart after lower-casing.
    starts = (
        normalizers.Replace(Regex(f"(?<=[a-z]){c}|(?<=[A-Z]){c}(?=[a-z])"), f" {c}") for c in string.ascii_uppercase
    )
    normalizer = normalizers.Sequence([*starts, normalizers.Lowercase()])
    return normalizer, pre_tokenizers.Split(Regex(r"[a-z]+|\d+|[^\sa-z\d_]"), "removed", invert=True)


def _kind(token: str) -> str:
    if keyword.iskeyword(token) or token in ("none", "true", "false"):  # texts are lower-cased
        return "keyword"
    if token.isdigit():
        return "number"
    signs = {"separator": "()[]{},:;.", "quote": "\"'`", "comment": "#"}
    for kind, known in signs.items():
        if token in known:
            return kind
    return "identifier" if token.isalpha() or token == "_" else "operator"


def words(text: str) -> str:
    """Text with its identifiers split (camelCase, snake_case) and lower-cased, words and signs apart by blanks."""
    return " ".join(_WORD.findall(text)).lower()


class CodeBPE(Tokenizer):
    """Byte-pair encoding of identifiers' parts, trained on the source's training texts and cached.

    The first ids are special: padding, unknown, the mask, and one for each kind of token in Python code (`TYPES`).

    Args:
        vocab_size: entries of the vocabulary.
        query_length, document_length, query_prefix, document_prefix: as in `Tokenizer`.
    """

    PAD, UNKNOWN, MASK = 0, 1, 2
    TYPES = ("keyword", "identifier", "number", "separator", "operator", "quote", "comment")
    FIRST = 3 + len(TYPES)  # ordinary token

    def __init__(self, vocab_size: int = 8192, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self._memo: dict[tuple[str, int], np.ndarray] = {}

    def prepare(self, source: PairSource, root: Path | None) -> None:
        from tokenizers import Tokenizer as Rust

        pairs = source.split("train", root)
        if not isinstance(pairs, TextPairs):
            raise ZooError(f"CodeBPE reads texts, and {source.name} has none: remove --data.tokenizer")
        digest = hashlib.sha256(f"{self.vocab_size} {_WORD.pattern}".encode())
        for text in (*pairs.queries, *pairs.documents):
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        path = cache_folder(root) / f"bpe-{source.name}-{digest.hexdigest()[:12]}.json"
        if not path.exists():
            save_text(path, self._train(words(t) for t in (*pairs.queries, *pairs.documents)))
        self._bpe = Rust.from_file(str(path))
        self._memo.clear()

    def _train(self, texts: Iterable[str]) -> str:
        from tokenizers import Tokenizer as Rust
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from tokenizers.trainers import BpeTrainer

        bpe: Any = Rust(BPE(unk_token="[UNK]"))
        bpe.pre_tokenizer = WhitespaceSplit()
        special = ["[PAD]", "[UNK]", "[MASK]", *(f"[{kind.upper()}]" for kind in self.TYPES)]
        bpe.train_from_iterator(
            texts, BpeTrainer(vocab_size=self.vocab_size, special_tokens=special, show_progress=False)
        )
        return bpe.to_str()

    def types(self) -> Int[Tensor, " V"]:
        """For each id the number of its kind in `TYPES`, -1 for special ids."""
        found = torch.full((self.vocab_size,), -1)
        for token, number in self._bpe.get_vocab().items():
            if number >= self.FIRST:
                found[number] = self.TYPES.index(_kind(token))
        return found

    def portable(self) -> Any:
        from tokenizers import Tokenizer as Rust

        found = Rust.from_str(self._bpe.to_str())
        found.normalizer, found.pre_tokenizer = portable_words()
        found.enable_padding(pad_id=self.PAD, pad_token="[PAD]")
        return found

    def encode(self, texts: Sequence[str], length: int) -> list[Row]:
        missing = [text for text in dict.fromkeys(texts) if (text, length) not in self._memo]
        if len(self._memo) + len(missing) > _MEMO:
            self._memo.clear()
        # The text is cut before it is read: no token is shorter than a character, few are longer than forty.
        for text, row in zip(missing, self._bpe.encode_batch([words(t[: 40 * length]) for t in missing]), strict=True):
            self._memo[text, length] = np.array(row.ids[:length], np.int64)
        return [self._memo[text, length] for text in texts]
