"""The embedded text arena: docstrings and functions of the running Python's standard library."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.cache import cache_folder, save_text
from zoo.data.collections import RetrievalSet
from zoo.data.pairs import Split
from zoo.data.planting import corrupt_pairs, plant_duplicates
from zoo.data.text import TextPairs, TextSource
from zoo.errors import ZooError

_SKIPPED = {"test", "tests", "idlelib", "idle_test", "lib2to3", "site-packages", "__pycache__", "ensurepip"}
_SHARES = {"test": 0.15, "val": 0.1}
_VERSION = 1  # of what is taken from a file


class StdlibCode(TextSource):
    """Code search on real text: first paragraphs of docstrings are queries, the functions they describe documents.

    Functions and methods are read with `ast`; the docstring is taken out of the code and the function's own name is
    masked there, as it would often give the answer away. Splits are by top-level module, so evaluation sees modules of
    which training saw nothing. Queries of a split search its own functions and all training functions. Equal docstrings
    make several documents relevant; equal code is one document.

    With `documents: details` the documents are what else the docstrings say, after their first paragraphs: a second task
    on the same queries.

    The collection follows the Python version; `manifest` names it, and only results of equal manifests are compared.

    Args:
        min_words: fewest words of a query.
        min_lines: fewest lines of a function.
        documents: the functions, or the further paragraphs of their docstrings (of `min_words` or more).
        corrupt: share of training pairs that get another pair's document (noise, for methods that claim robustness).
        duplicates: share of training pairs of which there are further variants, unknown to each other (false
            negatives); their column `group` tells.
        copies: variants of each such pair.
        seed: of the planting, which is the same for every run.
        limit: keep the first pairs of each split only, for a quick look; None keeps all.

    Raises:
        ZooError: when prepared: these limits leave nothing of a split.
    """

    name = "stdlib-code"

    def __init__(
        self,
        min_words: int = 3,
        min_lines: int = 2,
        corrupt: float = 0.0,
        duplicates: float = 0.0,
        copies: int = 3,
        seed: int = 0,
        limit: int | None = None,
        documents: Literal["code", "details"] = "code",
    ) -> None:
        self.limit = limit
        self.documents: Literal["code", "details"] = documents
        self.min_words, self.min_lines, self.corrupt = min_words, min_lines, corrupt
        self.duplicates, self.copies, self.seed = duplicates, copies, seed
        self._loaded: dict[str, list[tuple[str, str, str]]] | None = None

    def prepare(self, root: Path | None) -> None:
        self._pairs(root)

    @property
    def arena(self) -> str:
        """The collection's name with the first digits of its manifest."""
        return f"{self.name}-{self.manifest[:6]}"

    @property
    def manifest(self) -> str:
        """Twelve digits that name the collection."""
        text = json.dumps(self._pairs(None), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def split(self, split: Split, root: Path | None) -> TextPairs:
        pairs = [(query, code) for _, query, code in self._pairs(root)[split]]
        group = np.arange(len(pairs))
        if split != "train":
            return _text_pairs(pairs, group, np.zeros(len(pairs), bool))
        pairs, group = plant_duplicates(pairs, self.duplicates, self.copies, self.seed)
        pairs, corrupted = corrupt_pairs(pairs, self.corrupt, self.seed)
        return _text_pairs(pairs, group, corrupted)

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        """Queries of a split against its functions and all (unplanted) training functions."""
        pairs = self._pairs(root)
        own = [(q, c) for _, q, c in pairs[split]]
        known = own if split == "train" else [*own, *((q, c) for _, q, c in pairs["train"])]
        documents = {code: number for number, code in enumerate(dict.fromkeys(code for _, code in known))}
        relevance: dict[str, dict[int, int]] = {query: {} for query, _ in own}
        for query, code in known:
            if query in relevance:
                relevance[query][documents[code]] = 1
        return RetrievalSet(list(relevance), list(documents), list(relevance.values()))

    def _pairs(self, root: Path | None) -> dict[str, list[tuple[str, str, str]]]:
        """(module, query, code) of each split; read once per Python and cached."""
        if self._loaded is None:
            stamp = f"{_VERSION} {sys.version} {self.min_words} {self.min_lines}"
            if self.documents != "code":
                stamp += f" {self.documents}"
            path = cache_folder(root) / f"stdlib-code-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}.json"
            if not path.exists():
                found = _divide(list(self._read()))
                save_text(path, json.dumps(found))
            found = json.loads(path.read_text())
            self._loaded = {split: [tuple(row) for row in rows[: self.limit]] for split, rows in found.items()}
            for split, rows in self._loaded.items():
                if not rows:
                    limits = f"min_words {self.min_words}, min_lines {self.min_lines} and limit {self.limit}"
                    raise ZooError(f"{self.name} has no {split} pairs within {limits} of --data.source: relax them")
        return self._loaded  # type: ignore[return-value]

    def _read(self) -> Iterator[tuple[str, str, str]]:
        root = Path(sysconfig.get_paths()["stdlib"])
        seen = set()
        for path in _sources(root):
            try:
                text = path.read_text("utf-8")
                tree = ast.parse(text)
            except (OSError, SyntaxError, ValueError):
                continue
            for query, details, code in _functions(tree, text.split("\n")):
                document = code if self.documents == "code" else details
                if len(query.split()) < self.min_words or code.count("\n") + 1 < self.min_lines:
                    continue
                if self.documents == "details" and len(details.split()) < self.min_words:
                    continue
                if (query, document) not in seen:
                    seen.add((query, document))
                    yield Path(path.relative_to(root).parts[0]).stem, query, document


def _sources(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED and not n.startswith("config-"))
        yield from (Path(folder, file) for file in sorted(files) if file.endswith(".py"))


def _divide(found: list[tuple[str, str, str]]) -> dict[str, list[tuple[str, str, str]]]:
    """Whole modules, in the order of their names' hashes, to test and validation until these are full."""
    sizes = Counter(module for module, _, _ in found)
    split_of, filled = {}, Counter()
    for module in sorted(sizes, key=lambda m: hashlib.sha256(m.encode()).digest()):
        room = (s for s, share in _SHARES.items() if filled[s] + sizes[module] <= share * len(found))
        split_of[module] = next(room, "train")
        filled[split_of[module]] += sizes[module]
    return {s: [row for row in found if split_of[row[0]] == s] for s in ("train", *_SHARES)}


def _functions(tree: ast.Module, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Of each function the docstring's first paragraph, the others, and the code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2:
            continue
        described, first = node.body[:2]
        if node.lineno == described.lineno or described.end_lineno == first.lineno:  # in a line with code
            continue
        query, details = (" ".join(part.split()) for part in docstring.partition("\n\n")[::2])
        head = lines[node.lineno - 1 : described.lineno - 1]
        body = lines[first.lineno - 1 : node.end_lineno]
        code = "\n".join([*head, *body])
        yield query, details, _mask_name(code, node.name)


def _mask_name(code: str, name: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "function", code)


def _text_pairs(
    pairs: list[tuple[str, str]], group: np.ndarray | None = None, corrupted: np.ndarray | None = None
) -> TextPairs:
    queries = {q: i for i, q in enumerate(dict.fromkeys(q for q, _ in pairs))}
    documents = {d: i for i, d in enumerate(dict.fromkeys(d for _, d in pairs))}
    columns = {} if group is None else {"group": group, "corrupted": corrupted}
    query_of, document_of = (np.array(x) for x in zip(*((queries[q], documents[d]) for q, d in pairs), strict=True))
    return TextPairs(list(queries), list(documents), query_of, document_of, columns=columns)  # type: ignore[arg-type]
