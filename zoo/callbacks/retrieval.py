"""Retrieval evaluation, beside BM25 and an untrained encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.callbacks.encoding import encode
from zoo.data.collections import OneSide, RetrievalSet
from zoo.data.pairs import Split
from zoo.quantise import truncate
from zoo.retrieval import bm25_run, retrieval_metrics
from zoo.search import top_k


class RetrievalEvaluation(pl.Callback):
    """Ranks the collection for each query: `eval/...` on the validation split, `test/...` on the test split.

    MRR@10, Recall@k, nDCG@10, MAP as in `zoo.retrieval`. A test also has `..._bm25`, the lexical reference on the same
    queries and documents, and `..._random`, this run's encoder before training; `test/mrr@10_dim32` of prefixes and
    `test/mrr@10_binary` of one-bit codes where asked for; and of a module that outputs its teacher's embeddings too
    `..._teacher`, and `..._asymmetric` for its queries against the teacher's documents. Where a source has several sets,
    as one for each task, `..._<name>` are those of the others.

    Args:
        ks: depths of recall.
        references: also measure BM25 and the untrained encoder.
        truncate: prefix lengths that are tested too.
        binary: test one-bit codes too, by Hamming distance.
    """

    def __init__(
        self,
        ks: Sequence[int] = (1, 10, 100),
        references: bool = True,
        truncate: Sequence[int] = (),
        binary: bool = False,
    ) -> None:
        self.ks, self.references, self.truncate, self.binary = tuple(ks), references, tuple(truncate), binary
        self._depth = max(10, *self.ks)  # of MRR@10 and nDCG@10
        self.baselines: dict[str, float] = {}
        self._parts: dict[tuple[str, int], list[Tensor]] = {}
        self._sets: dict[Split, dict[str, RetrievalSet]] = {}

    def _retrievals(self, trainer: Any, split: Split) -> dict[str, RetrievalSet]:
        if split not in self._sets:
            self._sets[split] = trainer.datamodule.source.retrievals(split, trainer.datamodule.root)
        return self._sets[split]

    def _metrics(self, sides: Sequence[Tensor], data: RetrievalSet) -> dict[str, float]:
        documents, queries = sides
        _, ids = top_k(queries, documents, min(self._depth, len(documents)))
        return retrieval_metrics(ids, data.relevance, self.ks)

    @torch.no_grad()
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # A resumed run has them from its checkpoint, as its encoder is no longer untrained.
        if not self.references or self.baselines or trainer.fast_dev_run:
            return
        data = self._retrievals(trainer, "test")[""]
        sides = [
            encode(trainer, pl_module, OneSide(data.documents, "document")),
            encode(trainer, pl_module, OneSide(data.queries, "query")),
        ]
        ids = torch.as_tensor(bm25_run(data.queries, data.documents, self._depth)[0])
        for name, found in (
            ("random", self._metrics(sides, data)),
            ("bm25", retrieval_metrics(ids, data.relevance, self.ks)),
        ):
            self.baselines |= {f"test/{key}_{name}": value for key, value in found.items()}

    def _start(self) -> None:
        self._parts = {}

    def _collect(self, outputs: dict[str, Tensor], loader: int) -> None:
        for name, embeddings in outputs.items():
            self._parts.setdefault((name, loader), []).append(embeddings)

    def _evaluate(self, trainer: Any, split: Split) -> dict[str, float]:
        x = {key: torch.cat(parts) for key, parts in self._parts.items()}
        self._start()
        found = {}
        for number, (name, data) in enumerate(self._retrievals(trainer, split).items()):
            suffix = f"_{name}" if name else ""
            sides = x["features", 2 * number], x["features", 2 * number + 1]
            found |= {f"{key}{suffix}": value for key, value in self._metrics(sides, data).items()}
        if split == "val":
            return found
        data, (documents, queries) = self._retrievals(trainer, split)[""], (x["features", 0], x["features", 1])
        others = {f"dim{n}": tuple(truncate(e, n) for e in (documents, queries)) for n in self.truncate}
        if self.binary:
            others["binary"] = tuple(torch.where(e > 0, 1.0, -1.0) for e in (documents, queries))
        if ("teacher", 0) in x:
            others |= {
                "teacher": (x["teacher", 0], x["teacher", 1]),
                "asymmetric": (x["teacher", 0], queries),
            }
        for name, sides in others.items():
            found[f"mrr@10_{name}"] = self._metrics(sides, data)["mrr@10"]
        return found

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._start()

    def on_validation_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(outputs, dataloader_idx)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking:
            return self._start()
        found = {f"eval/{name}": value for name, value in self._evaluate(trainer, "val").items()}
        pl_module.log("eval/mrr@10", found.pop("eval/mrr@10"), prog_bar=True)
        pl_module.log_dict(found)
        return None

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._start()

    def on_test_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx, dataloader_idx=0) -> None:
        self._collect(outputs, dataloader_idx)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        found = {f"test/{name}": value for name, value in self._evaluate(trainer, "test").items()}
        pl_module.log_dict({**found, **self.baselines})

    def state_dict(self) -> dict[str, Any]:
        return {"baselines": self.baselines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.baselines = state_dict["baselines"]
