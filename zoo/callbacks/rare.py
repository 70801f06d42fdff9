"""Accuracy where classes have many training images, and where they have few."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from zoo.callbacks.probes import SplitProbe, knn_predict
from zoo.data.pairs import labels_of

SHOTS = ("many", "medium", "few")


def shot_groups(
    counts: Int[np.ndarray, " C"], edges: tuple[int, int] | None = None
) -> dict[str, Int[np.ndarray, " _"]]:
    """Classes by how many training images they have.

    Args:
        counts: training images of each class.
        edges: "many" has more than the first number, "few" less than the second ((100, 20) on ImageNet-LT); None splits
            the classes, by rank, into thirds.

    Returns:
        Classes of "many", "medium" and "few", possibly none.
    """
    if edges is None:
        thirds = np.array_split(np.argsort(-counts, kind="stable"), 3)
        return dict(zip(SHOTS, thirds, strict=True))
    many, few = counts > edges[0], counts < edges[1]
    return {name: np.flatnonzero(rows) for name, rows in zip(SHOTS, (many, ~many & ~few, few), strict=True)}


class RareClasses(SplitProbe):
    """`eval/accuracy` of a classifier, and on the test split `test/accuracy` and that of `..._many`, `..._medium` and
    `..._few`; of an encoder without classes the kNN probe's `eval/knn_few`, `test/knn_many`, ... instead.

    Args:
        edges: as in `shot_groups`.
        k: neighbours of the kNN probe.
        temperature: of its votes.
    """

    def __init__(self, edges: tuple[int, int] | None = None, k: int = 20, temperature: float = 0.07) -> None:
        super().__init__()
        self.edges, self.k, self.temperature = edges, k, temperature

    def _collect(self, outputs: dict[str, Tensor], batch: Any, loader: int) -> None:
        super()._collect({"features": outputs.get("predicted", outputs["features"])}, batch, loader)

    def metrics(self, trainer: Any, split: Literal["val", "test"]) -> dict[str, Tensor]:
        (references, labels), (queries, truth) = self._sets()
        name = "accuracy" if queries.ndim == 1 else "knn"
        if name == "knn":
            queries = knn_predict(queries, references, labels, self.k, self.temperature)
        right = (queries == truth).double()
        found = {"accuracy": right.mean()} if name == "accuracy" else {}
        trained = labels_of(trainer.datamodule.train_pairs.columns)
        counts = np.bincount(() if trained is None else trained, minlength=int(labels.max()) + 1)
        for shot, classes in shot_groups(counts, self.edges).items():
            rows = torch.isin(truth, torch.as_tensor(classes, device=truth.device))
            if rows.any():
                found[f"{name}_{shot}"] = right[rows].mean()
        return {key: value.float() for key, value in found.items()}
