"""Rows of text files, good and bad."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.data.pairs import Split
from zoo.errors import ZooError

OnError = Literal["fail", "skip"]
_SPLIT_SEED, _VAL_FRACTION = 0, 0.05


class RowErrors:
    """What happens at a bad row: it ends the run, or is skipped and counted by kind.

    Attributes:
        counts: `skipped_<kind>` to the number of rows.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error: OnError = on_error
        self.counts: Counter[str] = Counter()

    def bad(self, where: object, line: int, kind: str, what: str) -> None:
        """Reports a row.

        Raises:
            ZooError: rows are not to be skipped.
        """
        if self.on_error == "fail":
            do = "correct it, or pass --data.source.init_args.on_error skip to leave such rows out"
            raise ZooError(f"{where}:{line}: {what}; {do}")
        self.counts[f"skipped_{kind}"] += 1

    def text(self, where: object, line: int, name: str, value: Any) -> str | None:
        """A field that must be a text with something in it; None if it is not, which is reported."""
        if value is None:
            self.bad(where, line, "missing", f"the field {name!r} is missing")
        elif not isinstance(value, str) or not _encodable(value):
            self.bad(where, line, "malformed", f"the field {name!r} is no text in valid Unicode")
        elif not value.strip():
            self.bad(where, line, "empty", f"the field {name!r} is empty")
        else:
            return value
        return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, at which tokenizers stumble
        return False
    return True


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines of a file, which may be gzipped, with their numbers.

    Raises:
        ZooError: the file cannot be read to its end.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ZooError(f"{path}:{number + 1}: cannot be read ({error}); get an intact copy of the file") from error


def read_jsonl(path: Path, errors: RowErrors) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON-lines file with the numbers of their lines; empty lines are passed over."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            errors.bad(path, number, "malformed", f"the line is no JSON ({error})")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            errors.bad(path, number, "malformed", "the line is no JSON object")


def cut_validation(queries: np.ndarray, split: Split) -> np.ndarray:
    """The 5 % of training queries that are the validation split, or the rest; by a permutation that never changes.

    Raises:
        ZooError: there are fewer than two.
    """
    if len(queries) < 2:
        raise ZooError(f"{len(queries)} training queries cannot be divided: provide a validation split")
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(queries))
    n_val = max(1, round(len(queries) * _VAL_FRACTION))
    return np.sort(queries[order[:n_val] if split == "val" else order[n_val:]])
