"""Compositional cases in files: rows, images, and what is wrong with them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from zoo.composition import CompositionCases
from zoo.data.collections import ImageFiles
from zoo.data.text_rows import OnError, RowErrors
from zoo.errors import ZooError

Box = tuple[float, float, float, float]  # left, top, width, height in pixels


class CaseErrors(RowErrors):
    """Bad cases: they end the run, or are skipped and counted by kind."""

    def bad(self, where: object, line: int, kind: str, what: str) -> None:
        if self.on_error == "fail":
            raise ZooError(f"{where}, case {line}: {what}; correct it, or set on_error: skip to leave such cases out")
        self.counts[f"skipped_{kind}"] += 1


class CaseImages(ImageFiles):
    """Distinct images of cases, cut to their boxes before anything else, decoded when read.

    Args:
        size: side of the square that the shorter side is scaled to, and whose centre is cut out.
        errors: hears of missing files.
    """

    def __init__(self, size: int, errors: CaseErrors) -> None:
        super().__init__([], size)
        self.paths: list[Path] = []
        self.boxes: list[Box | None] = []
        self.where: list[str] = []
        self._errors = errors
        self._numbers: dict[tuple[Path, Box | None], int] = {}
        self._there: dict[Path, bool] = {}

    def add(self, path: Path, file: Path, case: int, box: Box | None = None) -> int | None:
        """Number of an image; None if there is no such file, which is reported.

        Args:
            path: the image.
            file: where its case stands.
            case: which one there.
            box: part of the image that is shown.
        """
        if path not in self._there:
            self._there[path] = path.is_file()
        if not self._there[path]:
            return self._errors.bad(file, case, "image", f"the image {path} is missing")
        number = self._numbers.setdefault((path, box), len(self.paths))
        if number == len(self.paths):
            self.paths.append(path)
            self.boxes.append(box)
            self.where.append(f"{file}, case {case}")
        return number

    def __getitem__(self, number: int) -> UInt8[Tensor, "3 H W"]:
        path, box, where = self.paths[int(number)], self.boxes[int(number)], self.where[int(number)]
        try:
            with Image.open(path) as file:
                if box is None:
                    file.draft("RGB", (2 * self.width, 2 * self.height))
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files depends on the format
            raise ZooError(f"{where}: cannot read the image {path} ({error}): restore the file") from error
        if box is not None:
            left, top, width, height = box
            if min(left + width, top + height) <= 0 or left >= image.width or top >= image.height:
                raise ZooError(
                    f"{where}: its box lies outside the image {path}, {image.width} by {image.height} pixels"
                )
            right, bottom = max(round(left + width), round(left) + 1), max(round(top + height), round(top) + 1)
            image = image.crop((round(left), round(top), right, bottom))
        return torch.from_numpy(np.array(self._resized(image))).permute(2, 0, 1)


class CompositionSuite(ABC):
    """Compositional cases that `CompositionEvaluation` adds to those of the data set.

    Args:
        root: folder of the files; None takes the folder `name` below that of the data set.
        name: what the names of its metrics begin with.
        size: side in pixels at which images are decoded; None takes the model's.
        on_error: "fail" ends with file and index of the first bad case; "skip" leaves bad cases out and counts them in
            `report`: malformed, missing a field, empty, or without their image.
    """

    def __init__(self, root: Path | None, name: str, size: int | None = None, on_error: OnError = "fail") -> None:
        self.name, self._root, self._size = name, root, size
        self.errors = CaseErrors(on_error)

    @property
    def root(self) -> Path:
        """Folder of the files.

        Raises:
            ZooError: none was named.
        """
        if self._root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {self.name}/")
        return self._root

    @property
    def size(self) -> int:
        """Side of the images."""
        return self._size or 224

    def default(self, folder: Path | None, size: int | None) -> None:
        """What the data set and the model say, for what was left open: the folder around ours, and the images' side."""
        if self._root is None and folder is not None:
            self._root = folder / self.name
        self._size = self._size or size

    @abstractmethod
    def _read(self) -> dict[str, CompositionCases]: ...

    @cached_property
    def cases(self) -> dict[str, CompositionCases]:
        """Cases by the rest of their name, "" where there is one kind.

        Raises:
            ZooError: a file or an image is missing, a row is malformed, or no usable case is left.
        """
        return self._read()

    def _made(
        self, path: Path, images: CaseImages, image_of: list[list[int]], captions: list[list[str]], **kwargs: Any
    ) -> CompositionCases:
        if not captions:
            raise ZooError(f"{path} has no usable case: check it, and the images that it names")
        return CompositionCases.of_texts(images, np.array(image_of), captions, **kwargs)

    @property
    def report(self) -> dict[str, int]:
        """What was skipped."""
        return dict(self.errors.counts)


def read_rows(path: Path, errors: CaseErrors) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON list, of a JSON object with numbers for keys, or of JSON lines (`.jsonl`), with their indices.

    Raises:
        ZooError: the file is missing or no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows: Any = [_line(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except OSError as error:
        raise ZooError(f"{path} cannot be read ({error.strerror}): put the published file there") from error
    except (ValueError, RecursionError) as error:
        raise ZooError(f"{path} is no JSON ({error}): get an intact copy of the file") from error
    if not isinstance(rows, list | dict):
        raise ZooError(f"{path} is no JSON list or object: get an intact copy of the file")
    keyed = rows.items() if isinstance(rows, dict) else enumerate(rows)
    for position, (key, row) in enumerate(keyed):
        index = int(key) if str(key).isdecimal() else position
        if isinstance(row, dict):
            yield index, row
        else:
            errors.bad(path, index, "malformed", "the row is no JSON object")


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None  # is no object, and reported with its index
