"""Adapter of AMCL's golden vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.losses import AMCL
from zoo.methods.siamese import in_batch_candidates


def amcl(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = leaves_of(a, "z")
        heads, _, pairs, dim = a["z"].shape
        limits = {"low": float(a["tau_lo"]), "high": float(a["tau_hi"])}
        limits["initial"] = sum(limits.values()) / 2
        loss = AMCL(heads, dim, beta=float(a["beta"]), hidden=len(a["b1"]), **limits).double()
        network = loss.temperature_of
        for parameter, name in (
            *((network.first.weight, "W1"), (network.first.bias, "b1")),
            *((network.last.weight, "W2"), (network.last.bias, "b2")),
        ):
            parameter.data.copy_(a[name])
        # Rows with the heads side by side, of equal norm, as the encoder makes them.
        unit = torch.nn.functional.normalize(a["z"], dim=-1)
        candidates = in_batch_candidates(list(unit.movedim(0, 2).flatten(2)), torch.arange(pairs))
        value = loss(candidates)
        assert loss.seen is not None
        positive, hardest, star = loss.seen
        leaves |= {"W1": network.first.weight, "W2": network.last.weight}
        return {
            "loss": value,
            "sim_pos": positive.similarity[..., 0],
            "tau_pos": positive.temperature[..., 0],
            "sim_neg": hardest.similarity[..., 0],
            "tau_neg": hardest.temperature[..., 0],
            "n_star": star[..., 0],
            **grads(value, leaves),
        }

    return run(arrays, compute)


SSL_AMCL = {"ssl_amcl": amcl}
