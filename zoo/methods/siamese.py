"""Siamese contrast: one encoder, negatives from the batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.distributed import gather, gather_with_grad, world_size
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.methods.gradient_cache import CachedMethod
from zoo.negatives.candidates import Candidates

Scope = Literal["all", "same", "later"]


def in_batch_candidates(
    views: Sequence[Float[Tensor, "B D"]],
    keys: Int[Tensor, " B"],
    detach_candidates: bool = False,
    negatives_from: Scope = "all",
    positive_views: int | None = None,
    anchors: range | None = None,
) -> Candidates:
    """Views of every pair as queries, and all views of all pairs (of all ranks, with gradient) as candidates.

    The queries' own rows, their positives and further copies of the same content are masked by identity key.

    Args:
        views: raw embeddings of each of the V views, row i belonging to pair i.
        keys: identity keys of the pairs.
        detach_candidates: the gradient flows through the left factor of each score only.
        negatives_from: views whose rows are negatives: "all", the "same" as the query's, or "later" ones (so that each
            unordered pair of views is compared once).
        positive_views: only the first ones are positives; None takes all.
        anchors: which views are queries (all of them must have equally many positives); None takes all.

    Returns:
        Candidates with B' = A * B queries (view by view; A anchors), P positives (the views that follow the query's in
        a circle) and M = V * B * ranks shared ones, view by view.
    """
    n, anchors = positive_views or len(views), anchors or range(len(views))
    unit = normalize(torch.cat(list(views)))
    shared, all_keys = gather_with_grad(unit), gather(keys.repeat(len(views)))
    if world_size() > 1:  # from rank by rank to view by view
        by_rank = (world_size(), len(views), len(keys))
        shared, all_keys = (x.unflatten(0, by_rank).transpose(0, 1).flatten(0, 2) for x in (shared, all_keys))
    of = unit.chunk(len(views))
    # A view outside the circle of positives looks at all of them.
    circle = [[(v + step) % n for step in range(1, n)] if v < n else list(range(n)) for v in anchors]
    positive, *more = (torch.cat([of[v] for v in column]) for column in zip(*circle, strict=True))
    mask: Bool[Tensor, "B M"] = keys.repeat(len(anchors))[:, None] != all_keys[None, :]
    if negatives_from != "all":
        numbers = torch.arange(len(views), device=mask.device)
        left = numbers[anchors.start : anchors.stop].repeat_interleave(len(keys))[:, None]
        right = numbers.repeat_interleave(len(all_keys) // len(views))[None, :]
        mask = mask & (left == right if negatives_from == "same" else left < right)
    if detach_candidates:
        positive, shared, more = positive.detach(), shared.detach(), [x.detach() for x in more]
    further = torch.stack(more, 1) if more else None
    return Candidates(torch.cat([of[v] for v in anchors]), positive, shared, mask, more_positives=further)


class SiameseContrast(CachedMethod):
    r"""SimCLR and its descendants: all views through one encoder, every other view of the batch a negative.

    With $u$ the unit-norm embeddings of the 2B views and NT-Xent as loss,
    $\ell_i = -u_i \cdot u_{pos(i)}/\tau + \log \sum_{j \ne i} e^{u_i \cdot u_j/\tau}$, the mean over 2B. (The official
    TensorFlow code returns the mean over each view, added: twice this.) Of more than two views, every other one of an
    image is a positive. With several processes, negatives are gathered from all of them, with gradient. Explicit
    negatives of a batch join those of all its views. An encoder with several readings of a view (see `encode_alike`) is
    asked for the loss of each combination of them, and for their mean.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
    (arXiv 2002.05709).

    Args:
        encoder: as in `ContrastiveMethod`.
        loss: as in `ContrastiveMethod`.
        negatives_from: views whose rows are negatives, as in `in_batch_candidates`.
        positive_views: only the first ones are positives (multi-crop); None takes all.
        detach_candidates: the gradient flows through the queries only.
        **kwargs: as in `CachedMethod`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        negatives_from: Scope = "all",
        positive_views: int | None = None,
        detach_candidates: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, loss, **kwargs)
        self.negatives_from: Scope = negatives_from
        self.positive_views, self.detach_candidates = positive_views, detach_candidates

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        if len(batch) * world_size() == 1 and batch.negatives is None:
            raise ZooError("one pair has no negatives: raise --data.batch_size")
        views = self.encode_views([batch.anchor, batch.positive, *batch.views])
        explicit = None if batch.negatives is None else self.encode_views([batch.negatives])[0].chunk(self.readings)[0]
        with torch.autocast(views[0].device.type, enabled=False):
            n = self.positive_views or len(views)
            blocks = [block for block in (range(n), range(n, len(views))) if block]  # of anchors with as many positives
            own = None if explicit is None else normalize(explicit).view(len(batch), -1, explicit.shape[1])
            steps = []
            for chosen in itertools.product(*(view.chunk(self.readings) for view in views)):
                for anchors in blocks:
                    x = in_batch_candidates(
                        chosen, batch.anchor_key, self.detach_candidates, self.negatives_from, n, anchors
                    )
                    if own is not None and batch.negative_mask is not None:
                        x = x.add_own(own.repeat(len(anchors), 1, 1), batch.negative_mask.repeat(len(anchors), 1))
                    steps.append((len(anchors), x.query, *self.loss_of(self.transform_candidates(x))))
            total = sum(anchors for anchors, *_ in steps)
            loss = torch.stack([loss * (anchors / total) for anchors, _, loss, _ in steps]).sum()
            _, query, _, scores = steps[0]
            return self.report(loss, query, scores)
