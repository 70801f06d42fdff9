"""Adapters of composed retrieval and of self-aware hard negatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.fidelity.common import Arrays, grads, leaves_of
from zoo.losses import info_nce, normalize
from zoo.methods.composed import Keys, NegativeType, Parts, compose, composed_mask, composed_scores
from zoo.negatives import Candidates
from zoo.negatives.known import known_positives
from zoo.negatives.self_aware import self_aware_clusters


def spn4cir(arrays: Arrays) -> dict[str, np.ndarray]:
    a = {name: torch.as_tensor(array) for name, array in arrays.items()}
    text, tau = leaves_of(a, "text_raw"), float(a["tau"])
    query = compose(a["refer_bank"][a["refer_index"]], a["text_raw"])
    target = a["target_index"]
    mask = ~known_positives(target[:, None], torch.arange(len(a["target_bank"])))
    candidates = Candidates(query, a["target_bank"][target], a["target_bank"], mask)
    loss = info_nce(*candidates.scores(), temperature=tau)
    out = {"bank_loss": loss, **grads(loss, text)}

    a["refer"] = a["refer_bank"][a["refer_index"]]
    leaves = leaves_of(a, "text_raw", "refer", "target_raw")
    parts = Parts(a["refer"], a["text_raw"], normalize(a["target_raw"]))
    row = torch.arange(len(query))
    keys = Keys(row, row, row, row[:, None])
    kinds: dict[str, NegativeType] = {"target": "target", "refer": "reference", "text": "text", "query": "query"}
    for name, kind in kinds.items():
        scores, mask = composed_scores(parts, parts, kind), composed_mask(keys, keys, kind)
        out[f"loss_{name}_neg"] = info_nce(scores.diagonal()[:, None], scores, mask, tau)
    found = grads(out["loss_target_neg"], leaves)
    out |= {f"inbatch_{name}": grad for name, grad in found.items()}
    return {name: value.detach().numpy() for name, value in out.items()}


def mllm_embedder(arrays: Arrays) -> dict[str, np.ndarray]:
    query, document = (torch.as_tensor(arrays[name]) for name in ("query", "doc"))
    k, pool_mult = (int(arrays[name]) for name in ("top_k", "pool_mult"))
    rows, phase2 = self_aware_clusters(query, document, arrays["owner"], k, pool_mult)

    def used(clusters: np.ndarray) -> np.ndarray:
        return np.asarray(len(np.unique(clusters[clusters >= 0])))

    return {
        "clusters_phase1": rows[:phase2],
        "clusters_phase2": rows[phase2:],
        "used_after_phase1": used(rows[:phase2]),
        "used_total": used(rows),
    }


CLIP_COMPOSED: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "clip_spn4cir": spn4cir,
    "clip_mllm_embedder": mllm_embedder,
}
