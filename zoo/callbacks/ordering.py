"""Are positives ranked above negatives, and what temperatures do pairs get?"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.callbacks.scores import _EpochMeans
from zoo.losses.statistics import proxy_accuracy


def auc(positives: Float[Tensor, " P"], negatives: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half. 0.5: full overlap."""
    negatives = negatives.sort().values
    below, not_above = (torch.searchsorted(negatives, positives, right=right) for right in (False, True))
    return (below + not_above).double().mean() / (2 * max(len(negatives), 1))


def own_view(
    negatives: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], views: int, pairs: int
) -> tuple[Float[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Of the candidates of `in_batch_candidates`, those that are of the query's own view.

    Args:
        negatives: scores, queries and candidates view by view, further candidates last.
        mask: which of them count.
        views: number of views of the candidates.
        pairs: queries of one view; a view may have more candidates than these (other devices).
    """
    anchors = len(negatives) // pairs
    shared = negatives.shape[1] - negatives.shape[1] % (views * pairs)
    at = torch.arange(anchors, device=negatives.device)
    scores, kept = (x[:, :shared].view(anchors, pairs, views, -1)[at, :, at].flatten(0, 1) for x in (negatives, mask))
    return scores, kept


class OrderStatistics(_EpochMeans):
    """Logs, as means over each epoch, how well scores separate positives from negatives, whatever the loss compares.

    `train/ordering_accuracy`: the share of anchors of which every positive scores above every negative, the negatives
    being those of the anchor's own view (GroCo's; arXiv 2301.02009) where the batch supplies them;
    `train/ordering_accuracy_first`: that of the first step of training. `scores/auc`: how often a positive scores above
    a negative, both from anywhere in the batch (the overlap of the two histograms).
    """

    first: float | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        self._views, self._pairs = 2 + len(batch.views), len(batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @torch.no_grad()
    def observe(self, module: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
        positives, negatives, mask = outputs["positives"], outputs["negatives"], outputs["mask"]
        mask = torch.ones_like(negatives, dtype=torch.bool) if mask is None else mask > 0
        overlap = auc(positives.flatten(), negatives[mask])
        if hasattr(module, "negatives_from"):
            negatives, mask = own_view(negatives, mask, self._views, self._pairs)
        ordered = proxy_accuracy(positives.amin(1, keepdim=True), negatives, mask)
        self.first = float(ordered) if self.first is None else self.first
        first = torch.full_like(ordered, self.first)
        return {"train/ordering_accuracy": ordered, "train/ordering_accuracy_first": first, "scores/auc": overlap}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.first = state_dict["first"]


class PairTemperatures(_EpochMeans):
    """Logs AMCL's temperatures, as means over each epoch.

    `temperature/min`, `temperature/max` (of the pairs of a step), `temperature/saturated` (share within 1 % of a limit),
    `temperature/positive`, `temperature/negative` (means; the latter of the hardest negatives), `temperature/ambiguous`
    and `temperature/clear`: means over the two halves of the positive pairs, of each head, by how far their similarity is
    above that of the hardest negative.
    """

    @torch.no_grad()
    def observe(self, module: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
        positive, hardest, _ = module.loss.seen
        both = torch.cat([positive.temperature.flatten(), hardest.temperature.flatten()])
        network = module.loss.temperature_of
        place = (both - network.low) / max(network.high - network.low, 1e-12)
        margin = (positive.similarity - hardest.similarity).flatten(1)
        ranked = positive.temperature.flatten(1).gather(1, margin.argsort(1))
        ambiguous, clear = ranked.tensor_split(2, dim=1)
        return {
            "temperature/min": both.min(),
            "temperature/max": both.max(),
            "temperature/saturated": ((place - 0.5).abs() > 0.49).double().mean(),
            "temperature/positive": positive.temperature.mean(),
            "temperature/negative": hardest.temperature.mean(),
            "temperature/ambiguous": ambiguous.mean(),
            "temperature/clear": clear.mean(),
        }
