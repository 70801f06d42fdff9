"""Adapters of the text family's pairwise, triplet and progressive losses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.losses import hardest_triplet, hardest_triplet_multi, pairwise_logistic, rank_weighted_logistic
from zoo.losses.pairwise import append_missing
from zoo.losses.progressive import ProgressiveInfoNCE, difficulty, progressive_weights
from zoo.negatives.candidates import Candidates
from zoo.negatives.curriculum import cluster_size
from zoo.negatives.first import first_negatives
from zoo.negatives.known import known_positives
from zoo.retrieval import retrieval_metrics
from zoo.search import top_k

Case = dict[str, Tensor]


def star_adore(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        if case.startswith("adore"):
            return _adore(a)
        if case == "ance_negatives":
            _, nearest = top_k(a["query"], a["corpus"], int(a["search_k"]))
            found = first_negatives(a["corpus_ids"][nearest], a["positive_ids"][:, None], int(a["n_negatives"]))
            return {"nearest": nearest, "negatives": found}
        if case == "ance_pair_nll":
            leaves = leaves_of(a, "query", "positive", "negative")
            none = a["negative"][:0]
            loss = pairwise_logistic(*Candidates(a["query"], a["positive"], none, own=a["negative"][:, None]).scores())
            return {"loss": loss, **grads(loss, leaves)}
        leaves = leaves_of(a, "query", "positive", "hard")
        hard, uses = a["hard"].flatten(0, 1), {"random_only": (1, 0), "hard_only": (0, 1)}.get(case, (1, 1))
        mask = torch.cat([a["pair_mask"] * uses[0], a["hard_mask"] * uses[1]], 1)
        candidates = Candidates(a["query"], a["positive"], torch.cat([a["positive"], hard]), mask > 0)
        loss = pairwise_logistic(*candidates.scores())
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


def _adore(a: Case) -> Case:
    leaves = leaves_of(a, "query")
    _, retrieved = top_k(a["query"].detach(), a["docs"], int(a["topk"]))
    ids, valid, relevant = append_missing(retrieved, a["relevant"])
    scores = torch.einsum("bd,bkd->bk", a["query"], a["docs"][ids.clamp_min(0)])
    loss = rank_weighted_logistic(scores, relevant, valid, int(a["metric_cut"]))
    relevance = [{int(i): 1 for i in row if i >= 0} for row in a["relevant"]]
    mrr = torch.tensor(retrieval_metrics(retrieved, relevance, (10,))["mrr@10"], dtype=torch.float64)
    return {"retrieved": retrieved, "loss": loss, "mrr10": mrr, **grads(loss, leaves)}


def ngame(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        if case == "curriculum":
            double_at = a["curriculum_epochs"].tolist()
            sizes = [cluster_size(epoch, double_at) for epoch in range(int(a["num_epochs"]))]
            return {"cluster_size_at_epoch": torch.tensor(sizes)}
        if case == "label_matrix":
            return {"target": known_positives(a["positives"], a["sampled_positive"])}
        leaves = leaves_of(a, "similarity")
        s, target, margin = a["similarity"], a["target"] > 0, float(a["margin"])
        if case == "ohnm_multi":
            loss = hardest_triplet_multi(s, target, int(a["num_positives"]), int(a["num_negatives"]), margin)
        else:
            own, weighted = s.diagonal()[:, None], case == "ohnm_softmax"
            loss = hardest_triplet(own, s, ~target, margin, int(a["k"]), float(a["tau"]), weighted)
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


def peg(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        leaves = leaves_of(a, "query", "positive", "negatives")
        documents = torch.cat([a["positive"], a["negatives"].flatten(0, 1)])
        mask = ~torch.eye(len(a["query"]), len(documents), dtype=torch.bool)
        scores = Candidates(a["query"], a["positive"], documents, mask).scores()
        progressive = ProgressiveInfoNCE(float(a["temperature"]), float(a["lambda0"]))
        progressive.progress = float(a["progress"])
        loss, per_query = progressive(*scores), progressive.per_query(*scores)
        weights = progressive_weights(per_query, progressive.progress, progressive.strength)
        out = {"per_query_loss": per_query, "difficulty": difficulty(per_query), "weights": weights, "loss": loss}
        return {**out, **grads(loss, leaves)}

    return run(arrays, compute)


TEXT_LOSSES: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "text_star_adore": star_adore,
    "text_ngame": ngame,
    "text_peg": peg,
}
