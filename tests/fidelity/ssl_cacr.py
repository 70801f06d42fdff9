"""Adapter of contrastive attraction and contrastive repulsion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.losses import (
    attraction_loss,
    attraction_weights,
    cacr_euclidean,
    cacr_rbf,
    euclidean_scores,
    normalize,
    repulsion_loss,
    repulsion_weights,
)
from zoo.methods.siamese import in_batch_candidates


def contrastive_attraction_repulsion(arrays: Arrays) -> dict[str, np.ndarray]:
    def momentum(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = leaves_of(a, "q")
        views, b = a["q"].shape[:2]
        query, key = normalize(a["q"]).flatten(0, 1), normalize(a["k"])
        positives = (query * key.repeat(views, 1)).sum(1, keepdim=True)
        others = ~torch.eye(b, dtype=torch.bool).repeat(views, 1)
        form = {"mocov3_rbf": cacr_rbf, "mocov3_euclid": cacr_euclidean}[case]
        loss = form(positives, query @ key.T, others, float(a["T"]), views)
        return {"loss": loss, **grads(loss, leaves)}

    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        if case.startswith("mocov3"):
            return momentum(case, a)
        leaves = leaves_of(a, "z")
        z = a["z"]
        views, b = z.shape[:2]
        # The leaf counts as it is, not normalised, so its scores come from differences.
        query = z.flatten(0, 1)[:, None]
        positives = euclidean_scores(query, torch.stack([z.roll(-u, 0) for u in range(1, views)], 2).flatten(0, 1))
        negatives = euclidean_scores(query, z.flatten(0, 1)[None])
        mask = in_batch_candidates(list(z.detach()), torch.arange(b), negatives_from="later").shared_mask
        alpha, beta, tau_pos, tau_neg = (float(a[name]) for name in ("alpha", "beta", "tau_pos", "tau_neg"))
        weighted = case != "uniform"
        attraction = attraction_loss(positives, tau_pos * weighted, alpha)
        repulsion = repulsion_loss(
            negatives,
            mask,
            tau_neg * weighted,
            beta,
            groups=views,
            positives=positives,
            tau_plus=float(a["tau_plus"]) * (case == "debiased"),
        )
        w_pos = attraction_weights(positives, tau_pos)[-b:]
        rows, other_images = slice((views - 2) * b, (views - 1) * b), ~torch.eye(b, dtype=torch.bool)
        w_neg = repulsion_weights(negatives, mask, tau_neg, views)[rows, -1][other_images].view(b, b - 1)
        found = grads(attraction + repulsion, leaves)
        return {"loss_ca": attraction, "loss_cr": repulsion, "w_pos_last": w_pos, "w_neg_last": w_neg, **found}

    return run(arrays, compute)


SSL_CACR: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"ssl_cacr": contrastive_attraction_repulsion}
