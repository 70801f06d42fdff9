"""Siamese contrast: one encoder, negatives from the batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.data.pairs import PairBatch
from zoo.distributed import gather, gather_with_grad, world_size
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.methods.base import ContrastiveMethod
from zoo.negatives.candidates import Candidates


def in_batch_candidates(
    z0: Float[Tensor, "B D"], z1: Float[Tensor, "B D"], keys: Int[Tensor, " B"], detach_candidates: bool = False
) -> Candidates:
    """Both views of every pair as queries, and all views of all pairs (of all ranks, with gradient) as candidates.

    The queries' own rows, their positives and further copies of the same content are masked by identity key.

    Args:
        z0: raw embeddings of the first view.
        z1: raw embeddings of the second view, row i belonging to row i of `z0`.
        keys: identity keys of the pairs.
        detach_candidates: the gradient flows through the left factor of each score only.

    Returns:
        Candidates with B' = 2B queries (first views, then second views) and M = 2B * ranks shared ones.
    """
    u = normalize(torch.cat([z0, z1]))
    other = u.roll(len(z0), 0)
    shared = gather_with_grad(u)
    query_keys = keys.repeat(2)
    mask: Bool[Tensor, "B M"] = query_keys[:, None] != gather(query_keys)[None, :]
    if detach_candidates:
        other, shared = other.detach(), shared.detach()
    return Candidates(u, other, shared, mask)


class SiameseContrast(ContrastiveMethod):
    r"""SimCLR and its descendants: both views through one encoder, every other view of the batch a negative.

    With $u$ the unit-norm embeddings of the 2B views and NT-Xent as loss,
    $\ell_i = -u_i \cdot u_{pos(i)}/\tau + \log \sum_{j \ne i} e^{u_i \cdot u_j/\tau}$, the mean over 2B. (The official
    TensorFlow code returns the mean over each view, added: twice this.) With several processes, negatives are gathered
    from all of them, with gradient. Explicit negatives of a batch join those of its first view.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
    (arXiv 2002.05709). Arguments as in `ContrastiveMethod`.
    """

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        if len(batch) * world_size() == 1 and batch.negatives is None:
            raise ZooError("one pair has no negatives: raise --data.batch_size")
        z0, z1 = self.encoder(torch.cat([batch.anchor, batch.positive])).chunk(2)
        with torch.autocast(z0.device.type, enabled=False):
            candidates = in_batch_candidates(z0, z1, batch.anchor_key)
            if batch.negative_mask is not None:
                own = normalize(self.encoder(batch.negatives)).view(len(batch), -1, z0.shape[1]).repeat(2, 1, 1)
                candidates = candidates.add_own(own, batch.negative_mask.repeat(2, 1))
            scores = self.transform_candidates(candidates).scores()
            return self.report(self.loss(*scores), candidates.query, scores)
