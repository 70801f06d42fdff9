"""Adapter of cMIM's terms and loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.losses.mutual_information import LogTerms, cmim, gaussian_log_density, match_log_probability
from zoo.losses.scores import normalize

_NORMALIZE = {"norm_grad": "gradient", "norm_loss": "loss"}


def terms(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = leaves_of(a, "mean", "log_scale")
        z = a["mean"] + a["log_scale"].exp() * a["eps"]
        u = normalize(z)
        others = ~torch.eye(len(z), dtype=torch.bool)
        match = match_log_probability(torch.ones_like(u[:, :1]), u @ u.T, others, a["T"])
        posterior, prior = gaussian_log_density(z, a["mean"], a["log_scale"]), gaussian_log_density(z)
        x = LogTerms(torch.zeros_like(match), match, posterior, prior)
        x = x.normalized(z.shape[1], _NORMALIZE.get(case, "none"))  # type: ignore[arg-type]
        loss = cmim(x)
        found = grads(loss.mean(), leaves)
        return {"z": z, "cmim": loss, "log_p_k1": x.match, "log_q": x.posterior, "log_p": x.prior, **found}

    return run(arrays, compute)


SSL_CMIM: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"ssl_cmim": terms}
