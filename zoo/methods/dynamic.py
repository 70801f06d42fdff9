"""ADORE: the query encoder alone, against negatives retrieved at every step from a frozen index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.callbacks.encoding import encode
from zoo.data.collections import OneSide, Side
from zoo.data.pairs import PairBatch
from zoo.losses.pairwise import append_missing, rank_weighted_logistic
from zoo.methods.dual import DualEncoder
from zoo.search import top_k


class DynamicNegatives(DualEncoder):
    r"""From `start_epoch` on documents have a frozen tower, so their index never goes stale; only the query tower learns.

    Each step searches the index with the current queries: of the `depth` nearest documents those known to be relevant
    are positives, the rest negatives, and
    $L = \frac{1}{|pairs|}\sum_{r: y=1,\, t: y=0} |a_r - a_t|\, \mathrm{softplus}((z_t - z_r)/\tau)$ with $a_r = 1/r$ weighs
    each pair by what swapping it would change in the reciprocal rank. If none of a query's positives was retrieved, all
    of them join the list's end. Before `start_epoch` the step is `DualEncoder`'s, which is the warm-up.

    Source: Zhan et al. 2021 (arXiv 2104.08051), github jingtaozhan/DRhard.

    Args:
        encoder: both towers at first; then the query tower.
        loss: of the warm-up; its temperature also scales the scores of the later steps.
        start_epoch: first epoch with a frozen index.
        depth: documents retrieved per query.
        metric_cut: ranks beyond it weigh nothing; None counts them all.
        rate: factor on the learning rate from `start_epoch` on.
        **kwargs: as in `DualEncoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        start_epoch: int = 0,
        depth: int = 200,
        metric_cut: int | None = 200,
        rate: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, shared=False, **kwargs)
        self.start_epoch, self.depth, self.metric_cut, self.decay = start_epoch, depth, metric_cut, rate
        assert self.document_encoder is not None
        self.document_encoder.requires_grad_(False)
        self.register_buffer("frozen", torch.tensor(False))
        self._index: Tensor | None = None

    def rate(self, epoch: float, epochs: float) -> float:
        return super().rate(epoch, epochs) * (self.decay if epoch >= self.start_epoch else 1.0)

    def tower(self, side: Side) -> nn.Module:
        return super().tower(side) if self.frozen else self.encoder

    @property
    def index(self) -> Tensor:
        """Embeddings of the training documents `[N, D]`, made when the document tower is frozen, or after a resumption."""
        assert self.document_encoder is not None
        if not self.frozen:
            self.document_encoder.load_state_dict(self.encoder.state_dict())
            self.frozen.fill_(True)
        if self._index is None:
            documents = self.trainer.datamodule.train_pairs.documents  # type: ignore[attr-defined]
            self._index = encode(self.trainer, self, OneSide(documents, "document"))
        return self._index

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        if self.current_epoch < self.start_epoch:
            return super().training_step(batch, batch_idx)
        index = self.index
        query = self.embed_queries(batch.anchor)
        known = batch.positive_key[:, None] if batch.known is None else batch.known
        with torch.autocast(query.device.type, enabled=False):
            _, found = top_k(query.detach(), index, min(self.depth, len(index)))
            ids, valid, relevant = append_missing(found, known)
            scores = torch.einsum("bd,bkd->bk", query, index[ids.clamp_min(0)])
            loss = rank_weighted_logistic(scores / self.loss.temperature, relevant, valid, self.metric_cut)  # type: ignore[operator]
            positive = (query * index[batch.positive_key]).sum(1, keepdim=True)
            return self.report(loss, query, (positive, scores, valid & ~relevant))
