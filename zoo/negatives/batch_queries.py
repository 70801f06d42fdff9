"""The other queries of the batch as further negatives beside a queue.

Source: Zheng et al. 2023 (arXiv 2105.03746), queue form of the official code (github JegZheng/CACR-SSL).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from zoo.errors import ZooError
from zoo.negatives.candidates import Candidates, EmbeddingNegatives


class BatchQueries(EmbeddingNegatives):
    """Adds, behind the shared candidates, the queries of the same view and other rows of the batch, with gradient.

    The batch must not hold a pair twice, which is what samplers of image pairs see to.

    Args:
        views: query views of each image; rows go view by view.
        start_epoch: as in `EmbeddingNegatives`.

    Raises:
        ZooError: the queries are not so many views.
    """

    def __init__(self, views: int = 1, start_epoch: int = 0) -> None:
        super().__init__(start_epoch)
        self.views = views

    def forward(self, candidates: Candidates) -> Candidates:
        query, mask = candidates.query, candidates.shared_mask
        if len(query) % self.views:
            raise ZooError(f"{len(query)} queries are not {self.views} views of each image: set BatchQueries' views")
        view = torch.arange(self.views, device=query.device).repeat_interleave(len(query) // self.views)
        more: Bool[Tensor, "B B"] = (view[:, None] == view) & ~torch.eye(
            len(query), dtype=torch.bool, device=query.device
        )
        kept = torch.ones_like(candidates.shared_scores, dtype=torch.bool) if mask is None else mask
        return candidates.replace(shared=torch.cat([candidates.shared, query]), shared_mask=torch.cat([kept, more], 1))
