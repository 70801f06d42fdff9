"""From the golden vectors' names to the package's: one adapter per file, arithmetic all in the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tests.fidelity.clip_composed import CLIP_COMPOSED
from tests.fidelity.clip_evaluation import CLIP_EVALUATION
from tests.fidelity.clip_generative import CLIP_GENERATIVE
from tests.fidelity.clip_losses import CLIP_LOSSES
from tests.fidelity.clip_ood import CLIP_OOD
from tests.fidelity.common import Arrays, grads, leaves_of, run
from tests.fidelity.geo_evaluation import GEO_EVALUATION
from tests.fidelity.geo_sampling import GEO_SAMPLING
from tests.fidelity.ssl_amcl import SSL_AMCL
from tests.fidelity.ssl_batchformer import SSL_BATCHFORMER
from tests.fidelity.ssl_bss import SSL_BSS
from tests.fidelity.ssl_cacr import SSL_CACR
from tests.fidelity.ssl_cmim import SSL_CMIM
from tests.fidelity.ssl_groco import SSL_GROCO
from tests.fidelity.text_distillation import TEXT_DISTILLATION
from tests.fidelity.text_dual import TEXT_DUAL
from tests.fidelity.text_losses import TEXT_LOSSES
from tests.fidelity.text_mining import TEXT_MINING
from zoo.losses import dcl, dclw_weight, info_nce, logits, multi_positive_nce, normalize, score_statistics
from zoo.methods.momentum import ema_update, queue_candidates
from zoo.methods.siamese import in_batch_candidates
from zoo.negatives import Candidates, HardestNegatives, Queue
from zoo.negatives.feature_transformation import extrapolate_positives, interpolate_negatives
from zoo.negatives.mochi import MixChoices, mix_hard


def _queue(rows: Tensor, pointer: int = 0) -> Queue:
    queue = Queue(*rows.shape).to(rows.dtype)
    queue.rows.copy_(rows)
    queue.pointer.fill_(pointer)
    return queue


def simclr(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        if case == "multiview_sum":
            leaves = leaves_of(a, "z")
            u = normalize(a["z"])
            scores, same = u @ u.T, a["index"][:, None] == a["index"]
            positive = same & ~torch.eye(len(u), dtype=torch.bool)
            loss = multi_positive_nce(scores, scores, ~same, a["T"], positive_weight=positive)
        else:
            leaves = leaves_of(a, "z0", "z1")
            candidates = in_batch_candidates([a["z0"], a["z1"]], torch.arange(len(a["z0"])), case == "topk_sg")
            if "topk" in a:
                candidates = HardestNegatives(int(a["topk"]))(candidates)
            temperature = a["T"].to(a["z0"].dtype)
            loss = info_nce(*candidates.scores(), temperature)
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


def moco_v2(arrays: Arrays) -> dict[str, np.ndarray]:
    def linear(weight: Tensor) -> nn.Linear:
        layer = nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        layer.weight.data.copy_(weight)
        return layer

    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        if case == "loss":
            leaves = leaves_of(a, "q")
            loss = info_nce(*Candidates(a["q"], a["k"], a["queue"].T).scores(), temperature=a["T"])
            return {"loss": loss, **grads(loss, leaves)}
        encoder, key_encoder = linear(a["W_q"]), linear(a["W_k_before"])
        query = encoder(a["x_q"])
        ema_update(key_encoder, encoder, float(a["m"]))
        queue = _queue(a["queue_before"].T, int(a["ptr_before"]))
        keys = torch.arange(len(query))
        candidates = queue_candidates(query, key_encoder(a["x_k"]), queue, keys)
        scores = candidates.scores()
        loss = info_nce(*scores, temperature=a["T"])
        found = grads(loss, {"W_q": encoder.weight})
        shown = logits(*scores, temperature=a["T"])
        queue.enqueue(candidates.positive, keys)
        after = {"W_k_after": key_encoder.weight, "queue_after": queue.rows.T, "ptr_after": queue.pointer}
        return {"loss": loss, "logits": shown, **found, **after}

    return run(arrays, compute)


def mochi(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = leaves_of(a, "x_q")
        queue, keys = _queue(a["queue"]), torch.arange(len(a["x_q"]))
        candidates = queue_candidates(a["x_q"], a["x_k"], queue, keys)
        choices = MixChoices(a["i"], a["j"], a["alpha"], a["l"], a["beta"])
        h, h_prime = mix_hard(candidates.query, candidates.shared, a["hard_idx"], choices)
        scores = candidates.add_own(torch.cat([h, h_prime], 1)).scores()
        loss = info_nce(*scores, temperature=a["T"])
        out = {"h": h, "h_prime": h_prime, "loss": loss, **grads(loss, leaves)}
        out["logits"] = logits(*scores, temperature=a["T"])
        queue.enqueue(candidates.positive, keys)
        return {**out, "queue_after": queue.rows}

    return run(arrays, compute)


def feature_transformation(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = leaves_of(a, "q")
        query, positive = extrapolate_positives(a["q"], a["k"], a["lam"], bool(a["postnorm"]))
        scores = Candidates(query, positive, interpolate_negatives(a["queue"], a["gam"], a["perm"])).scores()
        loss = info_nce(*scores, temperature=a["T"])
        statistics = score_statistics(*scores, temperature=a["T"])
        shown = logits(*scores, temperature=a["T"])
        return {"logits": shown, "loss": loss, "score": statistics, **grads(loss, leaves)}

    return run(arrays, compute)


def decoupled(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        if case.startswith("oneway"):
            leaves = leaves_of(a, "u0", "u1")
            keys = torch.arange(len(a["u0"]))
            mask = keys[:, None] != keys.repeat(2)
            candidates = Candidates(a["u0"], a["u1"], torch.cat([a["u0"], a["u1"]]), mask)
        else:
            leaves = leaves_of(a, "z0", "z1")
            candidates = in_batch_candidates([a["z0"], a["z1"]], torch.arange(len(a["z0"])))
        scores = candidates.scores()
        weight = None
        if case in ("dclw", "oneway_w_undetached"):
            weight = dclw_weight(scores[0], float(a["sigma"]))
            weight = weight.detach() if case == "dclw" else weight
        loss = dcl(*scores, a["T"], weight)
        out = {"loss": loss, **grads(loss, leaves)}
        return {**out, "weight": weight.chunk(2)[0][:, 0]} if weight is not None and case == "dclw" else out

    return run(arrays, compute)


ADAPTERS: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "ssl_simclr": simclr,
    "ssl_moco_v2": moco_v2,
    "ssl_mochi": mochi,
    "ssl_feature_transformation": feature_transformation,
    "ssl_dcl": decoupled,
    **CLIP_EVALUATION,
    **CLIP_GENERATIVE,
    **CLIP_COMPOSED,
    **CLIP_LOSSES,
    **CLIP_OOD,
    **GEO_EVALUATION,
    **GEO_SAMPLING,
    **SSL_AMCL,
    **SSL_BATCHFORMER,
    **SSL_BSS,
    **SSL_CACR,
    **SSL_CMIM,
    **SSL_GROCO,
    **TEXT_DISTILLATION,
    **TEXT_DUAL,
    **TEXT_LOSSES,
    **TEXT_MINING,
}
