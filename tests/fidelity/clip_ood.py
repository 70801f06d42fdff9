"""Adapters of out-of-distribution detection: CLIPN and SynOOD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.fidelity.common import Arrays, grads, leaves_of
from zoo import ood
from zoo.losses.boundary import boundary_loss, boundary_score
from zoo.losses.opposite import OppositeLoss, binary_opposite, semantic_opposite
from zoo.methods.synood import ResidualProjection


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def _arrays(found: dict[str, Tensor | float]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x.detach() if isinstance(x, Tensor) else x) for name, x in found.items()}


def clip_clipn(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)
    leaves = leaves_of(a, "image_raw", "text_yes_raw", "text_no_raw", "logit_scale_log")
    scale = a["logit_scale_log"].exp()
    yes, no = (ood.cosine_logits(a["image_raw"], a[f"text_{side}_raw"], scale) for side in ("yes", "no"))
    difference, own = no - yes, torch.eye(len(yes), dtype=torch.bool)
    positives, nothing = difference.diagonal()[:, None], torch.zeros_like(own)
    texts = (a["text_yes_raw"], a["text_no_raw"])
    loss = OppositeLoss()(positives, difference, ~own, texts)
    bin_yes = binary_opposite(positives, difference, nothing)
    found: dict[str, Tensor | float] = {
        "p_no": difference.sigmoid(),
        "loss_bin_yes": bin_yes,
        "loss_bin_no": binary_opposite(positives, difference, ~own) - bin_yes,
        "loss_tso": semantic_opposite(*texts),
        "loss_tso_cosine": semantic_opposite(*texts, "cosine"),
        "loss": loss,
        **grads(loss, leaves),
    }
    classes = [ood.class_weights(a[f"cls_{side}_raw"][None]) for side in ("yes", "no")]
    scores = {}
    for side in ("id", "ood"):
        z, u = (ood.cosine_logits(a[f"{side}_image_raw"], c, a["infer_scale"]) for c in classes)
        scores[side] = {
            "msp": ood.msp(z),
            "maxlogit": ood.max_logit(z),
            "energy": ood.energy(z),
            "ctw": ood.competing_to_win(z, u),
            "atd": ood.agreeing_to_differ(z, u),
        }
        found |= {f"{side}_{name}": score for name, score in scores[side].items()}
        if side == "id":
            found["id_top1"] = (z.argmax(1) == a["id_label"]).double().mean()
    for name, known in scores["id"].items():
        found[f"auroc_{name}"] = ood.auroc(known, scores["ood"][name])
        found[f"fpr95_{name}"] = ood.fpr_at_tpr(known, scores["ood"][name])
    return _arrays(found)


def clip_synood(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)
    leaves = leaves_of(a, "logits")
    loss = boundary_loss(a["logits"], a["target"])
    scores = (a["known_score"], a["novel_score"])
    projection = ResidualProjection(a["proj_image"].shape[1]).double()
    names = {"weight": "linear.weight", "bias": "linear.bias", "ln_weight": "norm.weight", "ln_bias": "norm.bias"}
    projection.load_state_dict({ours: a[f"proj_{theirs}"] for theirs, ours in names.items()})
    scale = a["proj_logit_scale_log"].exp()
    logits = ood.cosine_logits(projection(a["proj_image"]), a["proj_text_raw"], scale)
    proj_loss = cross_entropy(logits, a["proj_label"])
    trained = {"weight": projection.linear.weight, "ln_weight": projection.norm.weight}
    return _arrays(
        {
            "boundary_score": boundary_score(a["logits"]),
            "loss": loss,
            **grads(loss, leaves),
            "fpr95": ood.fpr_at_threshold(*scores),
            "auroc": ood.auroc(*scores),
            "aupr_in": ood.aupr_in(*scores),
            "proj_logits": logits,
            "proj_loss": proj_loss,
            **{f"proj_{name}": grad for name, grad in grads(proj_loss, trained).items()},
        }
    )


CLIP_OOD: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"clip_clipn": clip_clipn, "clip_synood": clip_synood}
