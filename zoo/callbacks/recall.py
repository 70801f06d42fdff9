"""Recall of the right image, text or place, in both directions and on further sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.callbacks.encoding import encode
from zoo.data.collections import OneSide, RetrievalSet
from zoo.data.pairs import Split
from zoo.ranking import average_precision, positive_ranks, recall, transpose


class CollectsRetrieval(pl.Callback):
    """Collects the embeddings of a source's retrieval sets as they are evaluated."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = {}
        self._read: dict[Split, dict[str, RetrievalSet]] = {}

    def _sets(self, trainer: Any, split: Split) -> dict[str, RetrievalSet]:
        if split not in self._read:
            self._read[split] = trainer.datamodule.source.retrievals(split, trainer.datamodule.root)
        return self._read[split]

    def _sides(self, trainer: Any, split: Split) -> dict[str, tuple[RetrievalSet, Tensor, Tensor]]:
        """Each set with the embeddings of its queries and of its documents."""
        x = {loader: torch.cat(parts) for loader, parts in self._parts.items()}
        self._parts = {}
        sets = self._sets(trainer, split)  # whose loaders come in their order, documents first
        return {name: (data, x[2 * i + 1], x[2 * i]) for i, (name, data) in enumerate(sets.items())}

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._parts = {}

    def on_test_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self._parts.setdefault(dataloader_idx, []).append(outputs["features"])


class RecallEvaluation(CollectsRetrieval):
    """Recall at k of the best relevant document: `eval/r@1`, ... on the validation split, `test/r@1`, ... on the test split.

    `r@k` and `r@1%` as in `zoo.ranking.recall`, the latter where there are at least 100 documents; queries without a
    relevant document are left out. Where a set has documents to ignore, also `hit_rate`: R@1 if those may outrank the
    right one (VIGOR's semi-positives). They count as wrong in `r@k`, so what is junk for every query does not belong in
    a collection.

    The metrics of a further set `cross` end in `_cross`, those of documents searching queries in `_reverse`
    (`eval/r@1_cross_reverse`); there an image that has five captions is found by any. A test also has
    `r@1_random`, ...: this run's encoder before training.

    Args:
        ks: depths.
        ap: also `ap`, the mean of University-1652's average precision, without ignored documents.
        both_directions: also documents against queries.
        references: also test the untrained encoder.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 5, 10),
        ap: bool = False,
        both_directions: bool = False,
        references: bool = True,
    ) -> None:
        super().__init__()
        self.ks, self.ap, self.both_directions, self.references = tuple(ks), ap, both_directions, references
        self.baselines: dict[str, float] = {}

    def _metrics(self, sides: dict[str, tuple[RetrievalSet, Tensor, Tensor]]) -> dict[str, float]:
        found = {}
        for name, (data, queries, documents) in sides.items():
            suffix = f"_{name}" if name else ""
            ignored = data.ignored
            found |= self._direction(queries, documents, data.relevance, ignored, suffix)
            if self.both_directions:
                relevance = transpose(data.relevance, len(documents))
                if ignored is not None:
                    ignored = transpose([dict.fromkeys(row, 1) for row in ignored], len(documents))
                found |= self._direction(documents, queries, relevance, ignored, f"{suffix}_reverse")
        return found

    def _direction(
        self, queries: Tensor, documents: Tensor, relevance: Any, ignored: Any, suffix: str
    ) -> dict[str, float]:
        n, ranks = len(documents), positive_ranks(queries, documents, relevance)
        found = recall(ranks, n, self.ks)
        if n < 100:
            del found["r@1%"]
        if ignored is not None:
            found["hit_rate"] = recall(positive_ranks(queries, documents, relevance, ignored), n, (1,))["r@1"]
        if self.ap:
            judged = average_precision(queries, documents, relevance, ignored)[ranks >= 0]
            found["ap"] = float(judged.sum() / max(len(judged), 1))
        return {f"{name}{suffix}": value for name, value in found.items()}

    @torch.no_grad()
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # A resumed run has them from its checkpoint, as its encoder is no longer untrained.
        if not self.references or self.baselines or trainer.fast_dev_run:
            return
        sides = {
            name: (
                data,
                encode(trainer, pl_module, OneSide(data.queries, "query")),
                encode(trainer, pl_module, OneSide(data.documents, "document")),
            )
            for name, data in self._sets(trainer, "test").items()
        }
        found = self._metrics(sides)
        self.baselines = {f"test/{key}_random": value for key, value in found.items() if key.split("_")[0] == "r@1"}

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._parts = {}

    def on_validation_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking:
            self._parts = {}
            return
        found = {f"eval/{key}": value for key, value in self._metrics(self._sides(trainer, "val")).items()}
        if "eval/r@1" in found:
            pl_module.log("eval/r@1", found.pop("eval/r@1"), prog_bar=True)
        pl_module.log_dict(found)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        found = {f"test/{key}": value for key, value in self._metrics(self._sides(trainer, "test")).items()}
        pl_module.log_dict({**found, **self.baselines})

    def state_dict(self) -> dict[str, Any]:
        return {"baselines": self.baselines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.baselines = state_dict["baselines"]
