"""Adapter of generative negative mining."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.fidelity.common import Arrays, grads
from tests.fidelity.text_dual import embeddings
from zoo.losses import info_nce
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder
from zoo.negatives.blocks import join, score_blocks
from zoo.negatives.variations import image_variation_area, keep_variations, sibling_probabilities


def generative_negatives(arrays: Arrays) -> dict[str, np.ndarray]:
    match, area = arrays["ann_itm_mean"], arrays["ann_iva"]
    thresholds = float(arrays["itm_threshold"]), float(arrays["iva_threshold"])
    kept = np.flatnonzero(keep_variations(match, area, *thresholds))
    kept = kept[np.argsort(arrays["ann_origin"][kept], kind="stable")]
    group = arrays["ann_origin"][kept]
    image = torch.as_tensor(arrays["batch_image_raw"]).requires_grad_()
    x = embeddings(normalize(image), normalize(torch.as_tensor(arrays["batch_text_raw"])), None)
    temperature = torch.as_tensor(arrays["batch_logit_scale_log"]).neg().exp()
    positives = (x.query * x.positive).sum(1, keepdim=True)
    forward = info_nce(positives, *join(score_blocks(x)), temperature)
    loss = (forward + info_nce(positives, *DualEncoder.backward_scores(x), temperature)) / 2
    return {
        "iva_score": np.asarray(
            image_variation_area(arrays["variation_images"], float(arrays["iva_std_threshold"])), np.float64
        ),
        "kept_variation": kept,
        "kept_group": group,
        "kept_prob": sibling_probabilities(match[kept], group, float(arrays["prob_eps"])),
        "batch_loss": loss.detach().numpy(),
        **{f"batch_{name}": grad.numpy() for name, grad in grads(loss, {"image_raw": image}).items()},
    }


CLIP_GENERATIVE: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "clip_generative_negatives": generative_negatives
}
