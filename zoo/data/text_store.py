"""Texts in memory-mapped files."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import SupportsIndex, overload

import numpy as np

from zoo.data.cache import cache_folder
from zoo.errors import ZooError

_VERSION = 1  # of what is taken from a file, and of the layout of the cache


class TextStore(Sequence[str]):
    """Texts read from disk one by one: `<name>.bin` holds them in UTF-8, `<name>.npy` where each starts and ends `[N, 2]`.

    A pickled store carries the file's place, not the texts, so loader processes share one copy.

    Args:
        folder: where a TextWriter wrote.
        name: of the files there.
        rows: numbers of the texts that this store shows, in its order; None shows all.
    """

    def __init__(self, folder: Path, name: str, rows: np.ndarray | None = None) -> None:
        self.folder, self.name, self.rows = folder, name, rows
        self._spans = _map(folder / f"{name}.npy")
        blob = folder / f"{name}.bin"
        # An empty file cannot be mapped.
        self._blob = np.memmap(blob, mode="r").view(np.ndarray) if blob.stat().st_size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._spans if self.rows is None else self.rows)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = operator.index(index)
        start, end = self._spans[row if self.rows is None else self.rows[row]]
        return self._blob[start:end].tobytes().decode()

    def __reduce__(self) -> tuple:
        return TextStore, (self.folder, self.name, self.rows)

    def take(self, numbers: np.ndarray) -> TextStore:
        """The texts with these numbers, in this order."""
        return TextStore(self.folder, self.name, numbers if self.rows is None else self.rows[numbers])


class TextWriter:
    """Writes a TextStore, text by text; as a context manager it closes its file when the writing fails."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._file = (folder / f"{name}.bin").open("wb")
        self._ends = array("q", [0])

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, text: str) -> None:
        encoded = text.encode()
        self._file.write(encoded)
        self._ends.append(self._ends[-1] + len(encoded))

    def close(self, kept: np.ndarray | None = None) -> TextStore:
        """The store, of all texts or of those that `kept` selects."""
        self._file.close()
        ends = np.frombuffer(self._ends, np.int64)
        spans = np.stack([ends[:-1], ends[1:]], 1)
        np.save(self.folder / f"{self.name}.npy", spans if kept is None else spans[kept])
        return TextStore(self.folder, self.name)


class IdIndex:
    """Numbers of ids, without a dictionary in memory: 64-bit hashes, sorted, beside the ids themselves.

    Args:
        folder: where `IdIndex.write` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.ids = TextStore(folder, "ids")
        self._hashes, self._numbers = (_map(folder / f"{name}.npy") for name in ("hashes", "numbers"))

    @staticmethod
    def write(folder: Path, writer: TextWriter) -> np.ndarray:
        """Index the ids in `writer` (a store named "ids"), of which repeated ones lose all but their first place.

        Returns:
            Which of the ids stayed, bool `[N]`.
        """
        ids = writer.close()
        hashes = _hashes(ids)
        order = np.argsort(hashes, kind="stable")
        equal = hashes[order[1:]] == hashes[order[:-1]]
        kept = np.ones(len(ids), bool)
        seen = set()
        for number in np.unique(np.concatenate([order[1:][equal], order[:-1][equal]])).tolist():
            kept[number] = (text := ids[number]) not in seen
            seen.add(text)
        writer.close(kept)
        hashes = hashes[kept]
        order = np.argsort(hashes, kind="stable")
        np.save(folder / "hashes.npy", hashes[order])
        np.save(folder / "numbers.npy", order)
        return kept

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """The number of each id, -1 where it is unknown."""
        found = np.full(len(ids), -1, np.int64)
        hashes = _hashes(ids)
        starts = np.searchsorted(self._hashes, hashes)
        for i, (name, key, at) in enumerate(zip(ids, hashes, starts, strict=True)):
            while at < len(self._hashes) and self._hashes[at] == key:  # more than one step is a collision
                if self.ids[int(self._numbers[at])] == name:
                    found[i] = self._numbers[at]
                    break
                at += 1
        return found


def text_digest(text: str, size: int) -> bytes:
    """`size` bytes that name a text."""
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r").view(np.ndarray)  # one number of a plain view is read faster


def _hashes(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer(b"".join(text_digest(text, 8) for text in texts), np.int64)


def cached(name: str, stamp: object, write: Callable[[Path], Counter[str]]) -> tuple[Path, Counter[str]]:
    """A folder of the cache, written when it is first asked for.

    Args:
        name: start of the folder's name.
        stamp: everything that the contents depend on; its `repr` names the folder.
        write: fills a folder and returns counts of what was read.

    Returns:
        The folder, and the counts.

    Raises:
        ZooError: the cache cannot be written.
    """
    digest = hashlib.sha256(repr((_VERSION, stamp)).encode()).hexdigest()[:12]
    folder = cache_folder(None) / f"{name}-{digest}"
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir(exist_ok=True)
            (part / "counts.json").write_text(json.dumps(write(part)))
            part.rename(folder)
        except OSError as error:
            if not folder.exists():  # else another process was faster
                raise ZooError(f"cannot write the cache {folder} ({error}): set ZOO_CACHE") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder, Counter(json.loads((folder / "counts.json").read_text()))


def file_stamp(path: Path) -> tuple[str, int, int]:
    """Place, size and time of change of a file: what a cache of its contents is named after."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns
