"""Adapters of the losses that a dual encoder makes of a batch's scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.data.pairs import PairBatch
from zoo.losses import info_nce
from zoo.losses.scores import normalize
from zoo.methods.dual import DualEncoder, Encoded, pair_embeddings
from zoo.methods.momentum import ema_update
from zoo.methods.momentum_dual import Views, contrasts, cross_entropy, momentum_scores
from zoo.negatives.blocks import GuideFilter, HardnessWeight, guide_removes, join, score_blocks
from zoo.negatives.queue import Queue


def batch_of(query: Tensor, negatives: Tensor | None) -> PairBatch:
    """Pairs of distinct texts."""
    b = len(query)
    keys = torch.arange(b)
    more = None if negatives is None else torch.arange(b, b + negatives.shape[0] * negatives.shape[1]).view(b, -1)
    return PairBatch(query, query, keys, keys, keys, negative_key=more)


def embeddings(query: Tensor, positive: Tensor, negatives: Tensor | None):
    negatives = None if negatives is None or negatives.numel() == 0 else negatives
    return pair_embeddings(Encoded(query, positive, negatives), batch_of(query, negatives))


def infonce(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        if case == "gradcache":
            return _gradcache(a)
        leaves = leaves_of(a, "query", "positive", "negatives")
        unit = (lambda x: x) if case == "dot" else normalize
        x = embeddings(*(unit(a[n]) for n in ("query", "positive", "negatives")))
        temperature = 1 / float(a["scale"])
        names = {"symmetric_joint": ("qd", "dq")}.get(case, ("qd", "qq", "dq", "dd") if "gte4" in case else ("qd",))
        blocks = score_blocks(x, names)  # type: ignore[arg-type]
        if case.startswith("hardness"):
            on = {"inbatch": "in_batch"}.get(kind := case.removeprefix("hardness_"), kind)
            blocks = HardnessWeight(float(a["strength"]), on)(blocks, x, None)  # type: ignore[arg-type]
        positives = (x.query * x.positive).sum(1, keepdim=True)
        loss = info_nce(positives, *join(blocks), temperature)
        if case in ("symmetric", "symmetric_hardneg"):
            loss = (loss + info_nce(positives, *DualEncoder.backward_scores(x), temperature)) / 2
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


def _gradcache(a: dict[str, Tensor]) -> dict[str, Tensor]:
    weight, bias = (a[n].clone().requires_grad_() for n in ("weight", "bias"))
    chunk = int(a["mini_batch_size"])

    class Affine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight.T + self.bias)

    from tests.methods.test_dual import cached_step
    from zoo.losses import InfoNCE

    method = DualEncoder(Affine(), InfoNCE(1 / float(a["scale"])), cache_chunk=chunk)
    batch = batch_of(a["x_query"], a["x_negative"][:, None]).replace(
        positive=a["x_positive"],
        negatives=a["x_negative"],
        negative_mask=torch.ones(len(a["x_query"]), 1, dtype=torch.bool),
    )
    loss = cached_step(method, batch)
    return {"loss": loss, "grad_weight": method.encoder.weight.grad, "grad_bias": method.encoder.bias.grad}  # type: ignore[dict-item]


def gistembed(arrays: Arrays) -> dict[str, np.ndarray]:
    blocks_of = {"pairs_qp_only": ("qd",), "relative_margin": ("qd", "qq")}

    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = leaves_of(a, "query", "positive", "negative")
        sides, guides = (
            [a[f"{prefix}{n}"] for n in ("query", "positive", "negative")]
            for prefix in ("", "guide_" if case != "unguided" else "")
        )
        x, guide = (
            embeddings(normalize(q), normalize(p), normalize(n)[:, None] if len(n) else None)
            for q, p, n in (sides, guides)
        )
        blocks = score_blocks(x, blocks_of.get(case, ("qd", "qq", "pp")))  # type: ignore[arg-type]
        out = {}
        if case != "unguided":
            margin, relative = float(a["margin"]), case == "relative_margin"
            blocks = GuideFilter(margin, relative)(blocks, x, guide)
            removed = guide_removes(guide, ("qd", "qq", "pp"), margin, relative)
            b = len(x.query)
            out = {f"mask_{n}": removed[n] for n in ("qq", "pp")}
            out |= {"mask_qp": removed["qd"][:, :b], "mask_qn": removed["qd"][:, b:]}
        loss = info_nce((x.query * x.positive).sum(1, keepdim=True), *join(blocks), float(a["temperature"]))
        return {"loss": loss, **({"loss_official": loss} if case == "triplet" else {}), **grads(loss, leaves), **out}

    return run(arrays, compute)


def cocosoda(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        weight, pad = a["weight_query"].clone().requires_grad_(), int(a["pad_id"])

        class Table(torch.nn.Module):
            def __init__(self, rows: Tensor) -> None:
                super().__init__()
                self.rows = torch.nn.Parameter(rows)

            def forward(self, ids: Tensor) -> Tensor:
                kept = (ids != pad)[..., None]
                return normalize((self.rows[ids] * kept).sum(1) / kept.sum(1))

        online, moving = Table(weight.detach()), Table(a["weight_key_before"].clone()).requires_grad_(False)
        ema_update(moving, online, float(a["momentum"]))
        views = Views(online(a["code_ids"]), online(a["nl_ids"]), moving(a["code_aug_ids"]), moving(a["nl_aug_ids"]))
        names = dict(zip(Views._fields, ("code", "nl", "masked_code", "masked_nl"), strict=True))
        queues = {}
        for view, name in names.items():
            stored = a[f"{name}_queue_before"].T.contiguous()
            queues[view] = queue = Queue(*stored.shape).to(stored.dtype)
            queue.rows.copy_(stored)
            queue.pointer.fill_(int(a["queue_ptr_before"]))
        scores = [
            momentum_scores(getattr(views, x), getattr(views, y), queues[y].rows)
            for x, y in contrasts(case == "inter_intra")
        ]
        temperature = float(a["temperature"])
        loss = torch.cat([cross_entropy(s, temperature / float(a["logit_multiplier"])) for s in scores]).mean()
        loss.backward()
        out = {
            "loss": loss,
            "grad_weight_query": online.rows.grad,
            "code_q": views.document,
            "nl_q": views.query,
            "logits": torch.cat(scores) / temperature,
            "labels": torch.arange(len(views.query)).repeat(len(scores)),
            "weight_key_code_after": moving.rows,
            "weight_key_nl_after": moving.rows,
        }
        for view, name in names.items():
            queues[view].enqueue(getattr(views, view), torch.arange(len(views.query)))
            out[f"{name}_queue_after"] = queues[view].rows.T
        return {**out, "queue_ptr_after": queues["document"].pointer}  # type: ignore[dict-item]

    return run(arrays, compute)


TEXT_DUAL: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "text_infonce": infonce,
    "text_gistembed": gistembed,
    "text_cocosoda": cocosoda,
}
