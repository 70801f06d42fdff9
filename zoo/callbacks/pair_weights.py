"""How sharply positives and negatives are told apart by their distances."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.callbacks.scores import _EpochMeans
from zoo.losses.contrastive_attraction import attraction_weights, repulsion_weights


def entropy(weights: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats of weights that sum to one."""
    return torch.special.entr(weights).sum(-1)


class PairWeights(_EpochMeans):
    """Logs the entropies of CACR's weights (arXiv 2105.03746), as means over each epoch, whatever the loss makes of them.

    `weights/positive_entropy` and `weights/negative_entropy`; the same as `..._max`, their values at equal distances, and
    as `..._first`, what they were in the first epoch. Negatives are taken view by view where the method compares views,
    and blocks without any that counts are left out.

    Args:
        tau_positive: sharpness of the weights of positives, where the loss has no `tau_positive` of its own.
        tau_negative: sharpness of the weights of negatives, likewise.
        every_n_steps: observe one step in so many.
    """

    def __init__(self, tau_positive: float = 1.0, tau_negative: float = 2.0, every_n_steps: int = 10) -> None:
        super().__init__(every_n_steps)
        self.tau_positive, self.tau_negative = tau_positive, tau_negative
        self.first: dict[str, float] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        self._views = 2 + len(batch.views) if hasattr(pl_module, "negatives_from") else 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @torch.no_grad()
    def observe(self, module: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
        positives, negatives, mask = outputs["positives"], outputs["negatives"], outputs["mask"]
        mask = torch.ones_like(negatives, dtype=torch.bool) if mask is None else mask > 0
        groups = self._views if negatives.shape[1] % self._views == 0 else 1
        tau_positive = getattr(module.loss, "tau_positive", self.tau_positive)
        tau_negative = getattr(module.loss, "tau_negative", self.tau_negative)
        counts = mask.unflatten(1, (groups, -1)).any(2)
        found = {}
        for suffix, on in (("", 1.0), ("_max", 0.0)):
            found[f"weights/positive_entropy{suffix}"] = entropy(
                attraction_weights(positives, on * tau_positive)
            ).mean()
            of_negatives = repulsion_weights(negatives, mask, on * tau_negative, groups)
            found[f"weights/negative_entropy{suffix}"] = entropy(of_negatives)[counts].mean().nan_to_num(0.0)
        return found

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self.count and not self.first:
            means = {name: total / self.count for name, total in self.sums.items()}
            self.first = {f"{name}_first": value for name, value in means.items() if not name.endswith("_max")}
        pl_module.log_dict(self.first, sync_dist=True)
        super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.first = state_dict["first"]
