"""Adapter of batch styles standardisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.fidelity.common import Arrays, run
from zoo.data.fourier_styles import substitute_amplitudes


def styles(arrays: Arrays) -> dict[str, np.ndarray]:
    def compute(case: str, a: dict[str, Tensor]) -> dict[str, Tensor]:
        b = int(a["half_window"])
        views = [substitute_amplitudes(a["x"], index, (b, b)) for index in a["style_index"].reshape(-1)]
        return {"out": torch.stack(views) if a["style_index"].ndim else views[0]}

    return run(arrays, compute)


SSL_BSS: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {"ssl_bss": styles}
