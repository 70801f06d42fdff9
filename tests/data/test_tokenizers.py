"""Byte-pair encoding of code."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.collections import OneSide
from zoo.data.pairs import PairSource
from zoo.data.text import TextPairs, TextSource
from zoo.data.tokenizers import CodeBPE, cache_folder, words
from zoo.errors import ZooError

CODE = [
    "def parseHTTPHeader(raw_line):\n    if raw_line is None:\n        return 404\n    return raw_line.split(':')",
    "def read(self, size=-1):  # all of it\n    return self.raw.read(size) + 'x'",
]
QUERIES = ["Parse one header line.", "Read everything from the raw stream."]


class Source(TextSource):
    def __init__(self, name="tiny", pairs=None, queries=QUERIES):
        self.name = name
        self.pairs = pairs or TextPairs(queries, CODE, np.arange(2), np.arange(2))

    def prepare(self, root):
        pass

    def split(self, split, root):
        assert split == "train"
        return self.pairs

    def retrieval(self, split, root):
        raise NotImplementedError


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    tokenizer = CodeBPE(vocab_size=300)
    tokenizer.prepare(Source(), tmp_path_factory.mktemp("bpe"))
    return tokenizer


def test_words_split_identifiers_and_signs():
    assert words("parseHTTPHeader(raw_line2)") == "parse http header ( raw line 2 )"
    assert words("  x==1,\n'Ab'") == "x = = 1 , ' ab '"


@given(st.text())
def test_words_lose_nothing_but_blanks_underscores_and_case(text):
    kept = [c for c in text if not c.isspace() and c != "_"]
    found = [c for c in words(text) if not c.isspace()]
    if text.isascii():
        assert found == [c.lower() for c in kept]
    assert words(words(text)) == words(words(words(text)))


def test_frequent_words_are_one_token_and_specials_are_first(bpe):
    vocabulary = bpe._bpe.get_vocab()
    assert [vocabulary[t] for t in ("[PAD]", "[UNK]", "[MASK]")] == [CodeBPE.PAD, CodeBPE.UNKNOWN, CodeBPE.MASK]
    assert [vocabulary[f"[{kind.upper()}]"] for kind in CodeBPE.TYPES] == list(range(3, CodeBPE.FIRST))
    (row,) = bpe.encode(["rawLine"], 9)
    assert row.tolist() == [vocabulary["raw"], vocabulary["line"]]
    assert bpe.encode(["RAW_line"], 9)[0].tolist() == row.tolist()
    assert bpe.encode(["\u0416"], 9)[0].tolist() == [CodeBPE.UNKNOWN]


def test_types(bpe):
    types, vocabulary = bpe.types(), bpe._bpe.get_vocab()
    assert types.shape == (300,) and (types[: CodeBPE.FIRST] == -1).all()
    assert (types[len(vocabulary) :] == -1).all()
    expected = {
        "keyword": ["def", "if", "return", "is", "none"],
        "identifier": ["raw", "line", "size", "self"],
        "number": ["1", "404"],
        "separator": ["(", ")", ":", "."],
        "operator": ["+", "=", "-"],
        "quote": ["'"],
        "comment": ["#"],
    }
    assert tuple(expected) == CodeBPE.TYPES
    for kind, known in expected.items():
        for token in known:
            assert CodeBPE.TYPES[types[vocabulary[token]]] == kind, token
    used = {number for row in bpe.encode(CODE, 99) for number in row.tolist()}
    assert all(types[number] >= 0 for number in used)


def test_texts_are_cut_whatever_was_encoded_before(bpe):
    whole = bpe.encode(CODE, 1000)
    for length in (1, 3, 10):
        for row, full in zip(bpe.encode(CODE, length), whole, strict=True):
            assert row.tolist() == full[:length].tolist()
    assert [len(row) for row in bpe.encode(CODE, 1000)] == [len(row) for row in whole]
    assert bpe.encode(["", *CODE], 4)[0].tolist() == []
    tokens = bpe([CODE[0], ""], "document")
    assert tokens.ids[0, tokens.mask[0]].tolist() == whole[0][:128].tolist() and tokens.mask[1].sum() == 1


def test_the_prefix_of_a_side_is_not_pooled(bpe, tmp_path):
    prefixed = CodeBPE(vocab_size=300, query_prefix="read line: ")
    prefixed.prepare(Source(), tmp_path)
    query, plain = prefixed(QUERIES, "query"), bpe(QUERIES, "query")
    for row in range(2):
        assert query.ids[row, query.pool[row]].tolist() == plain.ids[row, plain.mask[row]].tolist()
        assert (query.mask[row] & ~query.pool[row]).sum() == 3
    assert torch.equal(prefixed(CODE, "document").ids, bpe(CODE, "document").ids)


def test_training_is_repeatable_and_cached_by_content(tmp_path, monkeypatch):
    def prepared(folder, queries=QUERIES, size=300):
        tokenizer = CodeBPE(vocab_size=size)
        tokenizer.prepare(Source(queries=queries), folder)
        return tokenizer

    first = prepared(tmp_path / "a")
    again = prepared(tmp_path / "b")
    assert first._bpe.to_str() == again._bpe.to_str()
    (name,) = [p.name for p in (tmp_path / "a").iterdir()]
    assert [p.name for p in (tmp_path / "b").iterdir()] == [name] and re.fullmatch(r"bpe-tiny-\w{12}\.json", name)
    monkeypatch.setattr(CodeBPE, "_train", lambda *_: 1 / 0)
    assert prepared(tmp_path / "a")._bpe.to_str() == first._bpe.to_str()
    for changed in ({"size": 200}, {"queries": ["Another text.", QUERIES[1]]}):
        with pytest.raises(ZeroDivisionError):
            prepared(tmp_path / "a", **changed)


def test_only_texts_are_read(tmp_path):
    class Images(PairSource):
        name = "shapes"

        def prepare(self, root):
            pass

        def split(self, split, root):
            return OneSide([], "query")

    with pytest.raises(ZooError, match="shapes has none"):
        CodeBPE().prepare(Images(), tmp_path)


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    assert cache_folder(None) == tmp_path / "cache" and (tmp_path / "cache").is_dir()
    assert cache_folder(tmp_path / "root") == tmp_path / "root"
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="ZOO_CACHE"):
        cache_folder(tmp_path / "file" / "below")
