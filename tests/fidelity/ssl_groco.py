"""Adapter of GroCo's golden vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.losses import group_ordering_loss
from zoo.losses.soft_sort import soft_sort
from zoo.methods.siamese import in_batch_candidates


def groco(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        steepness = float(a["steepness"])
        if "x" in a:
            leaves = leaves_of(a, "x")
            done = soft_sort(a["x"], steepness)
            probabilities = done.permutation()
            return {"x_sorted": done.values, "P": probabilities, **grads((probabilities * a["R"]).sum(), leaves)}
        leaves = leaves_of(a, "z")
        views, keys, n = list(a["z"]), torch.arange(a["z"].shape[1]), int(a["n_pos"])
        losses = []
        for anchors in (range(n), range(n, len(views))):  # those with as many positives
            if not anchors:
                continue
            x = in_batch_candidates(views, keys, bool(a["stop_grad"]), "same", n, anchors)
            loss = group_ordering_loss(*x.scores(), n_negatives=int(a["topk_neg"]), steepness=steepness)
            losses.append(len(anchors) * loss)
        loss = torch.stack(losses).sum() / len(views)
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


SSL_GROCO = {"ssl_groco": groco}
