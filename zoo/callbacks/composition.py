"""Compositional evaluation of image-text encoders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from zoo.callbacks.encoding import encode
from zoo.composition import UNSEEN, CompositionCases, TextScorer, blind_scores, case_scores, family_means, shorter
from zoo.data.case_files import CompositionSuite
from zoo.data.collections import ImageArray, OneSide, fetch
from zoo.data.pairs import Split
from zoo.errors import ZooError

Files = dict[str, dict[str, CompositionCases]]  # by suite ("": the data set's own), then by name within it


class CompositionEvaluation(pl.Callback):
    """Does an image prefer its caption to one of the same words? `eval/...` on validation cases, `test/...` on test cases.

    Cases are the data set's own, where its source has `composition_cases(split, root)`: `test/swap_att`, and for two
    images with two captions `test/winoground_swap_att_text`, `..._image`, `..._group`. A test adds those of `suites`, such
    as `test/aro_relation`, `test/sugarcrepe_swap_att`, `test/winoground_group`. Metrics are those of
    `zoo.composition.CompositionCases.metrics`; `test/swap`, `test/replace`, `test/add` and `test/composition` are unweighted
    means over files, as are those with `_unseen` over the files with that ending.

    A test also has `..._blind`, what a scorer reaches that reads captions alone, and `data/<suite>_indistinct`: cases of
    which two different captions are the same tokens, as truncation cut what differs or the vocabulary lacks it. Accuracy
    by group (relation, pair of attributes) is in `composition_<name>.csv` in the run folder.

    Args:
        suites: published files to test on.
        val_cases: how many of the data set's cases of each kind validation reads; 0 none.
        blind: scores captions without their images; by default "the shorter one wins".
    """

    def __init__(
        self, suites: Sequence[CompositionSuite] = (), val_cases: int = 200, blind: TextScorer = shorter
    ) -> None:
        self.suites, self.val_cases, self.blind = tuple(suites), val_cases, blind
        self.tested: dict[str, tuple[CompositionCases, Tensor]] = {}  # name to cases and scores of the last test
        self._read: dict[Split, Files] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        names = ["", *(suite.name for suite in self.suites)]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ZooError(f"two suites have the name {min(doubled)!r}: give one of them another `name`")
        for suite in self.suites:
            suite.default(trainer.datamodule.root, getattr(pl_module.encoder, "image_size", None))
            _ = suite.cases  # what is missing is missed before training

    def _files(self, trainer: Any, split: Split) -> Files:
        if split not in self._read:
            data = trainer.datamodule
            own = data.source.composition_cases(split, data.root) if hasattr(data.source, "composition_cases") else {}
            files = {"": {name: _of_arrays(images, captions) for name, (images, captions) in own.items()}}
            if split == "test":
                files |= {suite.name: suite.cases for suite in self.suites}
            if split == "val" or trainer.fast_dev_run:
                files = {s: {n: x.take(self.val_cases) for n, x in found.items()} for s, found in files.items()}
            self._read[split] = files
        return self._read[split]

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and self.val_cases:
            files = self._files(trainer, "val")
            found = _metrics(files, _scores(trainer, pl_module, files))
            pl_module.log_dict({f"eval/{name}": value for name, value in found.items()})

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        files = self._files(trainer, "test")
        scores = _scores(trainer, pl_module, files)
        blind = {
            suite: {name: blind_scores(x.texts(), self.blind, x.image_of.shape[1]) for name, x in found.items()}
            for suite, found in files.items()
        }
        found = {f"test/{name}": value for name, value in _metrics(files, scores).items()}
        found |= {f"test/{name}_blind": value for name, value in _metrics(files, blind).items()}
        pl_module.log_dict({**found, **self._counts(trainer, files)})
        self.tested = {
            _join(suite, name): (cases, scores[suite][name])
            for suite, kinds in files.items()
            for name, cases in kinds.items()
        }
        if trainer.is_global_zero:
            for name, (cases, of_cases) in self.tested.items():
                if cases.groups is not None:
                    _write_table(Path(trainer.default_root_dir) / f"composition_{name}.csv", cases, of_cases)

    def _counts(self, trainer: Any, files: Files) -> dict[str, float]:
        found = {f"data/{suite.name}_{name}": float(n) for suite in self.suites for name, n in suite.report.items()}
        if (tokenizer := trainer.datamodule.tokenizer) is not None:
            for suite, kinds in files.items():
                if kinds:
                    total = sum(indistinct(cases, tokenizer) for cases in kinds.values())
                    found[f"data/{suite or 'composition'}_indistinct"] = float(total)
        return found


def indistinct(cases: CompositionCases, tokenizer: Any, chunk: int = 1024) -> int:
    """Cases of which two different captions are the same tokens."""
    tokens: dict[bytes, int] = {}
    number_of = []
    for start in range(0, len(cases.captions), chunk):
        batch = tokenizer(cases.captions[start : start + chunk], "document")
        for ids, mask in zip(batch.ids.numpy(), batch.mask.numpy(), strict=True):
            number_of.append(tokens.setdefault(ids[mask].tobytes(), len(tokens)))
    read = np.array(number_of)[cases.caption_of]
    return sum(len(set(a)) < len(set(b)) for a, b in zip(read.tolist(), cases.caption_of.tolist(), strict=True))


class _Chosen:
    """Some items of a collection."""

    def __init__(self, items: Any, numbers: np.ndarray) -> None:
        self.items, self.numbers = items, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def fetch(self, numbers: np.ndarray) -> Any:
        return fetch(self.items, self.numbers[numbers])


def _of_arrays(images: np.ndarray, captions: list[list[str]]) -> CompositionCases:
    numbers = np.arange(images.shape[0] * images.shape[1]).reshape(images.shape[:2])
    return CompositionCases.of_texts(ImageArray(images.reshape(-1, *images.shape[2:])), numbers, captions)


@torch.no_grad()
def _scores(trainer: Any, module: Any, files: Files) -> dict[str, dict[str, Tensor]]:
    """Scores `[C, K, L]` of all cases; every caption, and every image of a collection, is encoded once."""
    kinds = [cases for found in files.values() for cases in found.values()]
    if not kinds:
        return {suite: {} for suite in files}
    texts = list(dict.fromkeys(text for cases in kinds for text in cases.captions))
    number_of = {text: i for i, text in enumerate(texts)}
    captions = encode(trainer, module, OneSide(texts, "document"))
    used: dict[int, list[np.ndarray]] = {}  # SugarCrepe's files share their images
    for cases in kinds:
        used.setdefault(id(cases.images), []).append(cases.image_of.ravel())
    encoded: dict[int, tuple[np.ndarray, Tensor]] = {}
    scores: dict[str, dict[str, Tensor]] = {suite: {} for suite in files}
    for suite, found in files.items():
        for name, cases in found.items():
            key = id(cases.images)
            if key not in encoded:
                numbers = np.unique(np.concatenate(used[key]))
                encoded[key] = numbers, encode(trainer, module, OneSide(_Chosen(cases.images, numbers), "query"))
            numbers, images = encoded[key]
            image_of = torch.from_numpy(np.searchsorted(numbers, cases.image_of)).to(images.device)
            caption_of = np.array([number_of[text] for text in cases.captions])[cases.caption_of]
            options = captions[torch.from_numpy(caption_of).to(images.device)]
            scores[suite][name] = case_scores(images[image_of], options).cpu()
    return scores


def _metrics(files: Files, scores: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    metrics = {}
    for suite, found in files.items():
        plain = {}
        for name, cases in found.items():
            for kind, value in cases.metrics(scores[suite][name]).items():
                full = f"{_join(name.removesuffix(UNSEEN), kind)}{UNSEEN if name.endswith(UNSEEN) else ''}"
                metrics[_join(suite, full)] = value
                plain |= {full: value} if not kind and cases.groups is None else {}
        metrics |= {_join(suite, family): value for family, value in family_means(plain).items()}
    return metrics


def _join(*parts: str) -> str:
    return "_".join(part for part in parts if part)


def _write_table(path: Path, cases: CompositionCases, scores: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["group", "accuracy", "cases", "counts"])
        for group, accuracy, count in zip(*cases.table(scores), strict=True):
            counts = count >= cases.min_count and group not in cases.exclude
            rows.writerow([group, f"{accuracy:.4f}", count, int(counts)])
