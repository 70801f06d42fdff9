"""Adapters of BatchFormer's module and of its eight-term loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from tests.fidelity.common import Arrays, grads, leaves_of, run
from zoo.methods.batch_former import BatchFormer, moco_v3_loss


def batch_former(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        if case == "module":
            leaves = leaves_of(a, "x")
            module = BatchFormer(a["x"].shape[1], dropout=0.0).to(a["x"].dtype)
            weights = {name[2:]: value for name, value in a.items() if name.startswith("w.")}
            module.layers[0].load_state_dict(weights)  # type: ignore[union-attr]
            y = module(a["x"])
            return {"y": y, **grads((y * a["R"]).sum(), leaves)}
        leaves = leaves_of(a, "q1", "q2")
        loss = moco_v3_loss(a["q1"], a["q2"], a["k1"], a["k2"], a["T"], average=case == "mocov3_mean")
        return {"loss": loss, **grads(loss, leaves)}

    return run(arrays, compute)


SSL_BATCHFORMER: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"ssl_batchformer": batch_former}
