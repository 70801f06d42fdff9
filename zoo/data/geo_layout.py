"""Files and folders of data sets that are laid out as their authors publish them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zoo.data.text_rows import read_lines
from zoo.errors import ZooError


def check_files(paths: Sequence[Path], root: Path, layout: str) -> None:
    """Lists folders, which is faster than to ask for each file.

    Raises:
        ZooError: a file is not there.
    """
    listed = {folder: list_folder(folder, root, layout) for folder in sorted({path.parent for path in paths})}
    missing = [path for path in paths if path.name not in listed[path.parent]]
    if missing:
        more = f", and {len(missing) - 1} more of {len(paths)} files" if len(missing) > 1 else ""
        raise ZooError(f"{missing[0]} is missing{more}; expected below {root}: {layout}")


def list_folder(folder: Path, root: Path, layout: str) -> set[str]:
    """Names in a folder.

    Raises:
        ZooError: it is not there.
    """
    try:
        return set(os.listdir(folder))  # noqa: PTH208  (names are enough, and many)
    except OSError as error:
        raise ZooError(f"the folder {folder} is missing; expected below {root}: {layout}") from error


def read_fields(
    path: Path, root: Path, layout: str, n: int, separator: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Fields of the lines of a text file, with the lines' numbers; empty lines are passed over.

    Args:
        path: the file.
        root: folder of the data set.
        layout: what is expected there.
        n: fields per line.
        separator: between fields; None is any white space.

    Raises:
        ZooError: the file is missing or not text, or a line has another number of fields.
    """
    if not path.is_file():
        raise ZooError(f"{path} is missing; expected below {root}: {layout}")
    for number, line in read_lines(path):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise ZooError(f"{path}:{number}: the line is no text ({error}); get an intact copy of the file") from error
        if not text:
            continue
        fields = [part.strip() for part in text.split(separator)]
        if len(fields) != n:
            raise ZooError(f"{path}:{number}: {len(fields)} columns instead of {n}; get the published file")
        yield number, fields


def floats(path: Path, number: int, fields: Sequence[str]) -> list[float]:
    """Finite numbers in a line.

    Raises:
        ZooError: a field is none.
    """
    try:
        values = [float(text) for text in fields]
    except ValueError:
        values = [np.nan]
    if not np.isfinite(values).all():
        raise ZooError(f"{path}:{number}: {', '.join(fields)} are not numbers; get the published file")
    return values
