"""Adapters of the geo-localisation family's evaluation, baselines and loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of
from zoo.data.polar import polar_grid, polar_transform
from zoo.losses import info_nce, normalize
from zoo.losses.soft_margin import soft_margin_triplet, squared_distance
from zoo.ranking import average_precision, cumulative_match, percent_index, positive_ranks, recall


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def _numpy(out: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in out.items()}


def geo_eval(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)

    def same(queries: Tensor, documents: Tensor) -> list[dict[int, int]]:
        return [dict.fromkeys(row.nonzero()[:, 0].tolist(), 1) for row in queries[:, None] == documents]

    def percent(ranks: Tensor, n: int) -> list[float]:
        return [100 * value for value in recall(ranks, n).values()]

    out: dict[str, Tensor] = {}
    u = positive_ranks(a["u_query"], a["u_reference"], same(a["u_label"], a["u_label"]))
    out["u_r1_r5_r10_r1pct"] = torch.tensor(percent(u, len(a["u_reference"])), dtype=torch.float64)

    truth = [{row[0]: 1} for row in a["m_label"].tolist()]
    semi = [set(row[1:]) for row in a["m_label"].tolist()]
    m = positive_ranks(a["m_query"], a["m_reference"], truth)
    hit = recall(positive_ranks(a["m_query"], a["m_reference"], truth, semi), len(a["m_reference"]), (1,))["r@1"]
    out["m_r1_r5_r10_r1pct_hit"] = torch.tensor([*percent(m, len(a["m_reference"])), 100 * hit], dtype=torch.float64)

    query, gallery, n = a["c_query"], a["c_gallery"], len(a["c_gallery"])
    relevant = same(a["c_query_label"], a["c_gallery_label"])
    junk = [set((a["c_gallery_label"] == -1).nonzero()[:, 0].tolist())] * len(query)
    curve = cumulative_match(positive_ranks(query, gallery, relevant, junk), n)
    each = average_precision(query, gallery, relevant, junk)
    out |= {"c_cmc": curve, "c_ap_each": each, "c_ap": 100 * each.mean(), "c_r1_r5_r10": 100 * curve[[0, 4, 9]]}
    out |= {"c_r1pct_index": torch.tensor(percent_index(n)), "c_r1pct": 100 * curve[percent_index(n)]}
    return _numpy(out)


def geo_baselines(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)
    leaves = leaves_of(a, "sat_raw", "ground_raw")
    scores = normalize(a["ground_raw"]) @ normalize(a["sat_raw"]).T
    positives, others = scores.diagonal()[:, None], ~torch.eye(len(scores), dtype=torch.bool)
    out = {"dist_sat_ground": squared_distance(scores).T}
    for name, k in (("all", None), ("topk", int(a["top_k"]))):
        there, back = (
            soft_margin_triplet(positives, s, others, float(a["loss_weight"]), k) for s in (scores, scores.T)
        )
        loss = (there + back) / 2
        gradients = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        out[f"loss_{name}"] = loss
        out |= {f"grad_{leaf}_{name}": gradient for leaf, gradient in zip(leaves, gradients, strict=True)}
    height, width, image = int(a["polar_height"]), int(a["polar_width"]), a["polar_image"]
    out["polar_row"], out["polar_col"] = polar_grid(len(image), height, width)
    out["polar_output"] = polar_transform(image.permute(2, 0, 1)[None], height, width)[0].permute(1, 2, 0)
    return _numpy(out)


def geo_sample4geo_loss(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)
    leaves = leaves_of(a, "ground_raw", "sat_raw", "logit_scale_log")
    scores = normalize(a["ground_raw"]) @ normalize(a["sat_raw"]).T
    positives, others = scores.diagonal()[:, None], ~torch.eye(len(scores), dtype=torch.bool)

    def symmetric(smoothing: float) -> Tensor:
        temperature = (-a["logit_scale_log"]).exp()
        there, back = (
            info_nce(positives, s, others, temperature, label_smoothing=smoothing) for s in (scores, scores.T)
        )
        return (there + back) / 2

    loss = symmetric(float(a["label_smoothing"]))
    return _numpy({"loss": loss, **grads(loss, leaves), "loss_no_smoothing": symmetric(0.0)})


GEO_EVALUATION: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "geo_eval": geo_eval,
    "geo_baselines": geo_baselines,
    "geo_sample4geo_loss": geo_sample4geo_loss,
}
