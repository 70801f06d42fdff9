"""What all adapters share: cases of a file, leaves, gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

Arrays = Mapping[str, np.ndarray]


def cases(arrays: Arrays) -> dict[str, dict[str, Tensor]]:
    """The arrays `<case>/<name>` of each case."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, array in arrays.items():
        case, _, rest = name.partition("/")
        if name != "cases":  # their names
            found[case][rest] = torch.as_tensor(array)
    return found


def run(arrays: Arrays, compute: Callable[[str, dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Outputs of all cases under their full names."""
    out = {}
    for case, inputs in cases(arrays).items():
        for name, value in compute(case, inputs).items():
            out[f"{case}/{name}"] = value.detach().numpy()
    return out


def grads(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients under `grad_<name>`; zero where an input has no influence."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {f"grad_{name}": grad for name, grad in zip(leaves, found, strict=True)}


def leaves_of(a: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Inputs that get a gradient."""
    return {name: a[name].requires_grad_() for name in names}
