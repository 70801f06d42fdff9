"""Adapters of the text family's distillation, weighting, pooling and poisoning parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.losses import (
    DualMarginMSE,
    Matryoshka,
    RewardDistillation,
    adversarial_retriever_loss,
    embedding_regression,
    in_batch_margin_mse,
    info_nce,
    kl_distillation,
    margin_mse,
    normalize,
    proxy_accuracy,
    selection_weight,
    weighted_pair_loss,
)
from zoo.methods.pooling import LatentAttentionPooling, masked_mean
from zoo.negatives.balanced_margin import margin_bins
from zoo.poisoning import attack_metrics, exclude_perturbed, hard_negatives_only
from zoo.quantise import quantise, truncate

Case = dict[str, Tensor]


def tas_balanced(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        if case == "bins":
            return {"bin_index": torch.from_numpy(margin_bins(a["margins"].numpy(), int(a["n_bins"])))}
        if case == "tasb_dual":
            leaves = leaves_of(a, "query", "positive", "negative")
            student = a["query"] @ a["positive"].T, a["query"] @ a["negative"].T
            pair = a["teacher_pos"][:, None], a["teacher_neg"][:, None]
            in_batch = a["teacher_inbatch_pos"], a["teacher_inbatch_neg"]
            loss = DualMarginMSE(float(a["lambda_pair"]), float(a["lambda_inbatch"]))(*student, *pair, *in_batch)
            own = tuple(s.diagonal()[:, None] for s in student)
            parts = {"loss_pair": margin_mse(*own, *pair), "loss_inbatch": in_batch_margin_mse(*student, *in_batch)}
            return {**parts, "loss": loss, **grads(loss, leaves)}
        leaves = leaves_of(a, "query", "positive", "negatives")
        documents = torch.cat([a["positive"][:, None], a["negatives"]], 1)
        student, teacher = torch.einsum("bd,bkd->bk", a["query"], documents), a["teacher_scores"]
        if case == "marginmse":
            loss = margin_mse(student[:, :1], student[:, 1:], teacher[:, :1], teacher[:, 1:])
        else:
            temperatures = a["student_temperature"], a["teacher_temperature"]
            loss = kl_distillation(student, teacher, *temperatures, rescale=True)
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


def ar2(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        if case == "ranker":
            logits = a["ranker_logits"].requires_grad_()
            loss = info_nce(logits[:, :1], logits[:, 1:], temperature=1.0)
            return {"loss": loss, **grads(loss, {"logits": logits})}
        leaves = leaves_of(a, "query", "ctx")
        scores = torch.einsum("bd,bmd->bm", a["query"], a["ctx"])
        dim = a["query"].shape[1]
        loss = adversarial_retriever_loss(
            scores,
            a["ranker_logits"],
            float(a["adv_lambda"]),
            float(a["temperature"]),
            dim**0.5 if a["scale_by_sqrt_dim"] else 1.0,
            float(a["eps"]),
        )
        parts = {"loss_distill": loss.distill, "loss_adv": loss.adversarial, "loss": loss.total}
        return {**parts, **grads(loss.total, leaves)}

    return run(arrays, compute)


def llm_embedder(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        leaves = leaves_of(a, "query", "keys")
        scores = a["query"] @ a["keys"].flatten(0, 1).T
        loss = RewardDistillation(
            "kl" if case == "kl" else "stabilised",
            float(a["contrastive_weight"]),
            float(a["distill_weight"]),
            float(a["cos_temperature"]),
            float(a["student_temperature"]),
            float(a["teacher_temperature"]),
        )(scores, torch.arange(scores.shape[1]).view(a["teacher_scores"].shape), a["teacher_scores"])
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


def cet(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        leaves = leaves_of(a, "relevance_scores", "selection_scores")
        out: Case = {}
        for mine, other in (("relevance", "selection"), ("selection", "relevance")):
            own = a[f"{mine}_scores"].split(1, 1)
            weight = selection_weight(a[f"{other}_scores"][:, 1:], float(a["debias_temperature"]))
            loss = weighted_pair_loss(*own, weight)
            out |= {f"weight_for_{mine}": weight[:, 0], f"loss_{mine}": loss}
            out[f"loss_{mine}_unweighted"] = weighted_pair_loss(*own)
            out |= grads(loss, {f"{mine}_scores": leaves[f"{mine}_scores"]})
        return out

    return run(arrays, compute)


def leaf(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        if case == "quantise":
            kinds = ("int8", "uint8", "binary", "ubinary")
            return {kind: quantise(a["embeddings"], kind, a["calibration"]) for kind in kinds}
        if case == "truncate":
            return {"truncated": truncate(a["embeddings"], int(a["dim"]))}
        leaves = leaves_of(a, "hidden", "weight", "bias")
        student = F.linear(masked_mean(a["hidden"], a["mask"] > 0), a["weight"], a["bias"])
        if case == "normalised":
            student = normalize(student)
        loss = embedding_regression(student, a["teacher"])
        others = {f"st_{kind}": embedding_regression(student, a["teacher"], kind) for kind in ("mse", "l2", "cosine")}
        return {"student": student, "loss": loss, **others, **grads(loss, leaves)}

    return run(arrays, compute)


def nv_embed(arrays: Arrays) -> dict[str, np.ndarray]:
    names = {
        "latents": "latents",
        "norm.weight": "norm_w",
        "norm.bias": "norm_b",
        "latent_norm.weight": "ctx_norm_w",
        "latent_norm.bias": "ctx_norm_b",
        "mlp_norm.weight": "ff_norm_w",
        "mlp_norm.bias": "ff_norm_b",
        "to_q.weight": "to_q",
        "to_kv.weight": "to_kv",
        "to_out.weight": "to_out",
        "mlp_in.weight": "ff_in_w",
        "mlp_in.bias": "ff_in_b",
        "mlp_out.weight": "ff_out_w",
        "mlp_out.bias": "ff_out_b",
    }

    def compute(case: str, a: Case) -> Case:
        n_latents, dim = a["latents"].shape
        expansion = a["ff_out_w"].shape[1] // dim
        pooling = LatentAttentionPooling(dim, n_latents, int(a["heads"]), int(a["dim_head"]), expansion).double()
        pooling.load_state_dict({ours: a[theirs] for ours, theirs in names.items()})
        hidden = a["hidden"].requires_grad_()
        embedding = pooling(hidden, a["pool_mask"] > 0)
        unit = normalize(embedding)
        gradients = grads(unit.sum(), {"hidden": hidden, "latents": pooling.latents})
        return {"embedding": embedding, "embedding_normalised": unit, **gradients}

    return run(arrays, compute)


def dense_backdoor(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        if case == "metrics":
            metrics = attack_metrics(a["is_attack"], a["has_answer"], a["ks"].tolist())
            names = ("attack_success_rate", "clean_hit_rate", "safe_hit_rate")
            return dict(zip(names, metrics, strict=True))
        leaves = leaves_of(a, "query", "ctx")
        scores, own = a["query"] @ a["ctx"].T, a["positive_index"]
        columns = scores.shape[1]
        kept = torch.ones_like(scores, dtype=torch.bool)
        if case == "exclude_perturbed":
            kept = exclude_perturbed(own, a["perturbed_index"], columns)
        elif case == "hard_negatives_only":
            kept = hard_negatives_only(own, own, columns)
        positives, negatives = scores.gather(1, own[:, None]), kept.scatter(1, own[:, None], False)
        loss = info_nce(positives, scores, negatives, 1.0)
        correct = (proxy_accuracy(positives, scores, negatives) * len(scores)).round().long()
        return {"loss": loss, "correct": correct, **grads(loss, leaves)}

    return run(arrays, compute)


def matryoshka(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: Case) -> Case:
        leaves = leaves_of(a, "query", "positive", "negative")

        def in_batch(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            scores = query @ torch.cat([positive, negative]).T
            others = ~torch.eye(*scores.shape, dtype=torch.bool)
            return info_nce(scores.diagonal()[:, None], scores, others, 1 / float(a["scale"]))

        loss = Matryoshka(in_batch, a["dims"].tolist(), a["weights"].tolist())(*leaves.values())
        return {"loss": loss, "loss_st": loss, **grads(loss, leaves)}

    return run(arrays, compute)


TEXT_DISTILLATION: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "text_tas_balanced": tas_balanced,
    "text_ar2": ar2,
    "text_llm_embedder": llm_embedder,
    "text_cet": cet,
    "text_leaf": leaf,
    "text_nv_embed": nv_embed,
    "text_dense_backdoor": dense_backdoor,
    "text_matryoshka": matryoshka,
}
