"""What a backdoor in the training data achieves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from zoo.callbacks.encoding import encode
from zoo.data.collections import OneSide
from zoo.data.poisoned import Poisoned
from zoo.errors import ZooError
from zoo.poisoning import attack_metrics, chance_of_attack
from zoo.retrieval import relevance_of
from zoo.search import top_k


class BackdoorEvaluation(pl.Callback):
    """Searches the collection with its attack passages, for test queries with and without the trigger.

    Logs shares of the queries, of clean ones under the name with `_clean`: `attack/asr@k` (an attack passage is among
    the first k), `attack/hit@k` (a relevant document is), `attack/safe_hit@k` (such a document is, and no attack
    passage); and `attack/chance@k`, the number of attack passages to be expected among k random ones, at most 1.

    Args:
        ks: depths.
    """

    def __init__(self, ks: Sequence[int] = (1, 10, 50)) -> None:
        self.ks = tuple(ks)

    def setup(self, trainer, pl_module, stage: str) -> None:
        _source(trainer)  # rather before than after training

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        source = _source(trainer)
        data = source.retrieval("test", trainer.datamodule.root)
        n_clean = len(data.documents) - source.n_attack
        documents = encode(trainer, pl_module, OneSide(data.documents, "document"))
        chance = chance_of_attack(source.n_attack, len(data.documents), self.ks)
        found = {f"attack/chance@{k}": float(x) for k, x in zip(self.ks, chance, strict=True)}
        for suffix, queries in (("", source.triggered(data.queries)), ("_clean", data.queries)):
            embedded = encode(trainer, pl_module, OneSide(queries, "query"))
            ids = top_k(embedded, documents, min(max(self.ks), len(documents)))[1].cpu()
            metrics = attack_metrics(ids >= n_clean, relevance_of(ids, data.relevance) > 0, self.ks)
            for name, shares in zip(("asr", "hit", "safe_hit"), metrics, strict=True):
                found |= {f"attack/{name}@{k}{suffix}": x.item() for k, x in zip(self.ks, shares, strict=True)}
        pl_module.log_dict(found)


def _source(trainer: Any) -> Poisoned:
    source = getattr(trainer.datamodule, "source", None)
    if not isinstance(source, Poisoned):
        raise ZooError(
            "BackdoorEvaluation needs an attack: add the overlay `poisoned`, or set --data.source to Poisoned"
        )
    return source
