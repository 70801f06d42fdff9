"""Adapters of the symmetric image-text losses: a dual encoder over two towers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tests.fidelity.common import Arrays
from zoo.data.collections import Side
from zoo.data.pairs import PairBatch
from zoo.losses import InfoNCE
from zoo.methods.dual import DualEncoder, pair_embeddings
from zoo.negatives.blocks import score_blocks


class Towers(nn.Module):
    """A module for each side."""

    def __init__(self, query: nn.Module, document: nn.Module) -> None:
        super().__init__()
        self.query, self.document = query, document

    def tower(self, side: Side) -> nn.Module:
        return self.query if side == "query" else self.document


def batch_of(image: Tensor, text: Tensor, explicit: Tensor) -> PairBatch:
    """Image i with text i, and the rows of `explicit` dealt out evenly as its negatives."""
    b = len(image)
    keys = torch.arange(b)
    made = b + torch.arange(len(explicit)).view(b, -1)
    if not len(explicit):
        return PairBatch(image, text, keys, keys, keys)
    return PairBatch(image, text, keys, keys, keys, explicit, made, torch.ones_like(made, dtype=torch.bool))


def method_of(encoder: nn.Module, loss: InfoNCE, **kwargs) -> DualEncoder:
    from tests.methods.test_dual import attach

    method = attach(DualEncoder(encoder, loss, **kwargs))
    method.report = lambda loss, *scores, **raw: {"loss": loss}
    return method


def two_directions(a: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Loss of the images against all texts, of which the first are theirs; by direction, and its gradients."""
    image, text = (a[f"{prefix}{side}_raw"].requires_grad_() for side in ("image", "text"))
    temperature = (-a["logit_scale_log"]).exp().item()
    loss = InfoNCE(temperature, learn_temperature=True).double()
    loss.log_temperature.data = -a["logit_scale_log"]  # type: ignore[union-attr]
    method = method_of(Towers(nn.Identity(), nn.Identity()), loss, symmetric=True)
    batch = batch_of(image, text[: len(image)], text[len(image) :])
    total = method.training_step(batch, 0)["loss"]
    x = pair_embeddings(method.encode(batch), batch)
    scores = method.candidate_scores(x, score_blocks(x))
    grads = torch.autograd.grad(total, [image, text, loss.log_temperature])  # type: ignore[list-item]
    return {
        "logits_per_image": score_blocks(x)["qd"].scores / loss.temperature,
        "loss_i2t": loss(*scores),
        "loss_t2i": loss(scores[0], *method.backward_scores(x)),
        "loss": total,
        "grad_image_raw": grads[0],
        "grad_text_raw": grads[1],
        "grad_logit_scale_log": -grads[2],  # the scale is the temperature's inverse
    }


def clip(arrays: Arrays) -> dict[str, np.ndarray]:
    return _numpy(two_directions(_tensors(arrays)))


def negclip(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)
    full, captions = two_directions(a), two_directions(a, "cap_")
    b = len(a["cap_image_raw"])
    same = {"image_raw": a["cap_image_raw"].detach(), "text_raw": a["cap_text_raw"].detach()[:b]}
    out = {name: full[name] for name in full if name not in ("loss_i2t", "loss_t2i")}
    out |= {f"cap_{name}": captions[name] for name in captions if name == "loss" or name.startswith("grad_")}
    out["clip_loss_same_positives"] = two_directions({**same, "logit_scale_log": a["logit_scale_log"]})["loss"]
    return _numpy(out)


def basic_scaling(arrays: Arrays) -> dict[str, np.ndarray]:
    a = _tensors(arrays)

    def tower(first: str, second: str) -> nn.Sequential:
        layers = [nn.Linear(*reversed(a[name].shape), bias=False, dtype=a[name].dtype) for name in (first, second)]
        for layer, name in zip(layers, (first, second), strict=True):
            layer.weight.data.copy_(a[name])
        return nn.Sequential(layers[0], nn.Tanh(), layers[1])

    encoder = Towers(tower("wq1", "wq2"), tower("wp1", "wp2"))
    texts = a["y"].view(len(a["x"]), int(a["n_hard"]) + 1, -1)
    batch = batch_of(a["x"], texts[:, 0], texts[:, 1:].flatten(0, 1))
    method = method_of(encoder, InfoNCE(1 / float(a["scale"])), cache_chunk=int(a["chunk_q"]))
    loss = method.training_step(batch, 0)["loss"]
    method.backward(loss)
    weights = {"wq1": encoder.query[0], "wq2": encoder.query[2], "wp1": encoder.document[0], "wp2": encoder.document[2]}  # type: ignore[index]
    return _numpy({"loss": loss, **{f"grad_{name}": layer.weight.grad for name, layer in weights.items()}})


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def _numpy(found: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in found.items()}


CLIP_LOSSES: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "clip_clip": clip,
    "clip_negclip": negclip,
    "clip_basic_scaling": basic_scaling,
}
