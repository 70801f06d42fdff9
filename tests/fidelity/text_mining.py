"""Adapter of the hard-negative miner."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.fidelity.common import Arrays, cases
from zoo.data.text import TextPairs
from zoo.negatives.miners import EmbeddingMiner, Rules


def hard_negative_mining(arrays: Arrays) -> dict[str, np.ndarray]:
    out = {}
    for case, a in cases(arrays).items():
        number = {k: float(v) for k, v in a.items() if v.ndim == 0}
        known = a["positives"].numpy()
        query_of, document_of = np.nonzero(known >= 0)[0], known[known >= 0]
        most, n, start = int((known >= 0).sum(1).max()), int(number["num_negatives"]), int(number["range_min"])
        limits = {k: None if np.isnan(v) else v for k, v in number.items()}
        strict = any(limits[k] is not None for k in ("absolute_margin", "relative_margin", "max_score"))
        last = int(number["range_max"])
        last = last if last >= 0 else start + n * (10 if strict else 1) + most
        rules = Rules(
            limits["absolute_margin"],
            limits["relative_margin"],
            limits["max_score"],
            limits["min_score"],
            last,
            start,
            n,
        )
        texts = [str(i) for i in range(max(len(a["query"]), len(a["corpus"])))]
        pairs = TextPairs(texts[: len(a["query"])], texts[: len(a["corpus"])], query_of, document_of)
        table = EmbeddingMiner(last + most, rules).mine(
            pairs, lambda side, a=a: a["query"] if side == "query" else a["corpus"]
        )
        row = np.array([np.flatnonzero(query_of == q)[0] for q in range(len(a["query"]))])
        out[f"{case}/negatives"] = table.ids[row, :n]
        out[f"{case}/negative_scores"] = table.scores[row, :n]
    return out


TEXT_MINING: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"text_hard_negative_mining": hard_negative_mining}
