"""ARO, SugarCrepe and Winoground in the layouts that their authors publish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from zoo.composition import CompositionCases
from zoo.data.aro_relations import UNUSABLE
from zoo.data.case_files import Box, CaseErrors, CaseImages, CompositionSuite, read_rows
from zoo.errors import ZooError

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class Aro(CompositionSuite):
    """VG-Relation and VG-Attribution of ARO (Yuksekgonul et al. 2023, arXiv 2210.01936).

    Below the root: `visual_genome_relation.json`, `visual_genome_attribution.json`, `images/`. Images are cut to the
    case's box. Accuracy is a macro mean over relations, or over pairs of attributes; `micro` the plain mean.

    Args:
        root, name, size, on_error: as in `CompositionSuite`.
        sets: which of the two.
        exclude: relations that do not count; None takes the 157 that the published number leaves out.
        min_count: pairs of attributes with fewer cases do not count.
    """

    def __init__(
        self,
        root: Path | None = None,
        name: str = "aro",
        sets: Sequence[Literal["relation", "attribution"]] = ("relation", "attribution"),
        exclude: Sequence[str] | None = None,
        min_count: int = 25,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, name, **kwargs)
        self.sets, self.min_count = tuple(sets), min_count
        self.exclude = UNUSABLE if exclude is None else frozenset(exclude)

    def _read(self) -> dict[str, CompositionCases]:
        return {kind: self._set(kind) for kind in self.sets}

    def _set(self, kind: str) -> CompositionCases:
        path, images = self.root / f"visual_genome_{kind}.json", CaseImages(self.size, self.errors)
        image_of, captions, groups = [], [], []
        for index, row in read_rows(path, self.errors):
            texts = _texts(row, ("false_caption", "true_caption"), path, index, self.errors)
            group = _relation(row) if kind == "relation" else _attributes(row)
            box, file = _box(row), row.get("image_path")
            if texts is None:
                continue
            if group is None or box is None or not isinstance(file, str):
                what = "relation_name" if kind == "relation" else "attributes (two texts)"
                self.errors.bad(
                    path, index, "malformed", f"it needs image_path, bbox_x, bbox_y, bbox_w, bbox_h and {what}"
                )
                continue
            if (number := images.add(self.root / "images" / file, path, index, box)) is None:
                continue
            image_of.append([number])
            captions.append(texts)
            groups.append(group)
        rules = {"exclude": self.exclude} if kind == "relation" else {"min_count": self.min_count}
        return self._made(path, images, image_of, captions, truth=1, strict=False, groups=groups, **rules)


class SugarCrepe(CompositionSuite):
    """SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610): `<root>/{add,replace,swap}_{att,obj,rel}.json`.

    Args:
        root, name, size, on_error: as in `CompositionSuite`.
        images: COCO's `val2017` folder; None takes that of the data set.
        files: which of the seven files.
    """

    def __init__(
        self,
        root: Path | None = None,
        images: Path | None = None,
        name: str = "sugarcrepe",
        files: Sequence[str] = SUGARCREPE,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, name, **kwargs)
        self.images, self.files = images, tuple(files)

    def default(self, folder: Path | None, size: int | None) -> None:
        super().default(folder, size)
        if self.images is None and folder is not None:
            self.images = folder / "val2017"

    def _read(self) -> dict[str, CompositionCases]:
        if self.images is None:
            raise ZooError("SugarCrepe's images are COCO's: pass --data.root, a folder that holds val2017/")
        images = CaseImages(self.size, self.errors)
        return {file: self._file(self.root / f"{file}.json", self.images, images) for file in self.files}

    def _file(self, path: Path, folder: Path, images: CaseImages) -> CompositionCases:
        image_of, captions = [], []
        for index, row in read_rows(path, self.errors):
            texts = _texts(row, ("caption", "negative_caption", "filename"), path, index, self.errors)
            if texts is None or (number := images.add(folder / texts.pop(), path, index)) is None:
                continue
            image_of.append([number])
            captions.append(texts)
        return self._made(path, images, image_of, captions)


class Winoground(CompositionSuite):
    """Winoground (Thrush et al. 2022, arXiv 2204.03162), exported from the Hub.

    Below the root: one of `examples.jsonl`, `metadata.jsonl`, `examples.json`, `winoground.json`, with `image_0`, `image_1`
    (names in `images/`, the extension may be missing), `caption_0`, `caption_1`.

    Args:
        root, name, size, on_error: as in `CompositionSuite`.
    """

    FILES = ("examples.jsonl", "metadata.jsonl", "examples.json", "winoground.json")

    def __init__(self, root: Path | None = None, name: str = "winoground", **kwargs: Any) -> None:
        super().__init__(root, name, **kwargs)

    def _read(self) -> dict[str, CompositionCases]:
        path = next((p for p in (self.root / file for file in self.FILES) if p.exists()), None)
        if path is None:
            raise ZooError(f"{self.root} has none of {', '.join(self.FILES)}: export Winoground from the Hub to it")
        images, image_of, captions = CaseImages(self.size, self.errors), [], []
        for index, row in read_rows(path, self.errors):
            texts = _texts(row, ("caption_0", "caption_1", "image_0", "image_1"), path, index, self.errors)
            if texts is None:
                continue
            numbers = [images.add(_with_suffix(self.root / "images" / name), path, index) for name in texts[2:]]
            if None in numbers:
                continue
            image_of.append(numbers)
            captions.append(texts[:2])
        return {"": self._made(path, images, image_of, captions)}


def _texts(row: dict[str, Any], fields: Sequence[str], path: Path, index: int, errors: CaseErrors) -> list[str] | None:
    """Fields that must be texts; None if one is not, which is reported."""
    texts = []
    for name in fields:
        if (text := errors.text(path, index, name, row.get(name))) is None:
            return None
        texts.append(text)
    return texts


def _relation(row: dict[str, Any]) -> str | None:
    name = row.get("relation_name")
    return name if isinstance(name, str) and name else None


def _attributes(row: dict[str, Any]) -> str | None:
    pair = row.get("attributes")
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        return None
    return "_".join(pair)


def _box(row: dict[str, Any]) -> Box | None:
    sides: list[Any] = [row.get(f"bbox_{side}") for side in "xywh"]
    if not all(type(x) in (int, float) and math.isfinite(x) for x in sides):
        return None
    left, top, width, height = map(float, sides)
    return (left, top, width, height) if min(width, height) >= 1 else None


def _with_suffix(path: Path) -> Path:
    """The image itself, or the one whose extension its name lacks."""
    candidates = [path, *(path.with_name(path.name + suffix) for suffix in (".png", ".jpg", ".jpeg"))]
    return next((p for p in candidates if p.is_file()), path)
