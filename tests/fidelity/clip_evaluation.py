"""Adapter of the compositional metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.fidelity.common import Arrays
from zoo.composition import accuracy_by_group, case_scores, first_best, grouped, strictly_best, winoground


def clip_eval(arrays: Arrays) -> dict[str, np.ndarray]:
    a = {name: torch.as_tensor(array) for name, array in arrays.items()}
    relation = accuracy_by_group(first_best(a["rel_scores"][:, 0], 1), arrays["rel_id"])
    attribution = accuracy_by_group(
        first_best(a["att_scores"][:, 0], 1), arrays["att_id"], int(arrays["att_min_count"])
    )
    members, cases = grouped(a["group_logits"]), winoground(a["wino_logits"])
    captions = torch.stack([a["sc_pos_raw"], a["sc_neg_raw"]], 1)
    out = {
        "rel_acc": relation.accuracy,
        "rel_count": relation.size,
        "rel_macro": relation.macro,
        "att_kept": attribution.group,
        "att_acc": attribution.accuracy,
        "att_macro": attribution.macro,
        "order_prec1": first_best(a["order_scores"][:, 0], 0).double().mean(),
        "sc_accuracy": strictly_best(case_scores(a["sc_image_raw"][:, None], captions)[:, 0], 0).double().mean(),
    }
    for name in members._fields:
        found = getattr(members, name)
        out[f"group_{name}_1"] = 100 * found.double().mean()  # the source reports percent
        out[f"group_{name}_all"] = 100 * found.all(1).double().mean()
        out[f"wino_{name}"] = getattr(cases, name)
        out[f"wino_{name}_score"] = getattr(cases, name).double().mean()
    return {name: np.asarray(value) for name, value in out.items()}


CLIP_EVALUATION: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"clip_eval": clip_eval}
