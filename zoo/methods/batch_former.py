"""BatchFormer: attention across the samples of a batch, in training only.

Source: Hou, Yu and Tao, "BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning", CVPR
2022 (arXiv 2203.01522), and github zhihou7/BatchFormer.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.losses.nce import info_nce
from zoo.losses.scores import normalize
from zoo.methods.encoders import ImageEncoder


class BatchFormer(nn.Module):
    r"""A transformer encoder over the batch as one sequence, without positions: each sample borrows from all others.

    $$a = \mathrm{MHA}(h, h, h), \quad y = \mathrm{LN}(h + a), \quad t = \mathrm{LN}(y + W_2\,\mathrm{relu}(W_1 y))$$

    with dropout on every branch. The output is the plain rows followed by the attended ones in training, and the input
    itself in evaluation.

    Args:
        dim: width F of the features.
        heads: attention heads; they divide `dim`.
        dropout: of all branches.
        depth: encoder layers.

    Raises:
        ZooError: the heads do not divide the width.
    """

    def __init__(self, dim: int, heads: int = 4, dropout: float = 0.5, depth: int = 1) -> None:
        super().__init__()
        if dim % heads:
            raise ZooError(f"{heads} attention heads do not divide features of width {dim}")
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(dim, heads, dim_feedforward=dim, dropout=dropout) for _ in range(depth))
        )

    def attend(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N F"]:
        """Each row with what it takes from the others."""
        return self.layers(features[:, None])[:, 0]

    def forward(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "M F"]:
        return torch.cat([features, self.attend(features)]) if self.training else features


class BatchFormerEncoder(ImageEncoder):
    """An image encoder with a `BatchFormer` between backbone and head, which evaluation leaves out.

    Each view is one sequence: in a sequence of both, a query could see its positive. Backbone and head take the rows of
    all views, plain and attended, at once, and in training a view has two readings: the plain rows, then the attended
    ones. The two halves share the head, so that it works on plain rows in evaluation.

    A momentum copy shares the BatchFormer. The official MoCo v3 code freezes it along with the copy's other parameters,
    so that there it is random attention throughout; `frozen` reproduces this.

    Args:
        backbone: as in `ImageEncoder`.
        attention_heads: as in `BatchFormer`.
        dropout: as in `BatchFormer`.
        depth: as in `BatchFormer`.
        frozen: do not train the BatchFormer.
        shared_head: False gives the attended reading alone, the ablation under which evaluation meets a head that never
            saw plain rows.
        **head: of the projection, as in `ImageEncoder`; for a `Classifier`, `layers` is 1 and `dim` the number of
            classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        attention_heads: int = 4,
        dropout: float = 0.5,
        depth: int = 1,
        frozen: bool = False,
        shared_head: bool = True,
        **head: Any,
    ) -> None:
        super().__init__(backbone, **head)
        width: int = backbone.num_features  # type: ignore[assignment]
        self.batch_former = BatchFormer(width, attention_heads, dropout, depth).requires_grad_(not frozen)
        self.shared_head = shared_head

    @property
    def readings(self) -> int:
        """Readings of a view in the rows that come out."""
        return 2 if self.training and self.shared_head else 1

    def encode_alike(self, views: Sequence[Float[Tensor, "B 3 H W"]]) -> list[Float[Tensor, "N D"]]:
        """Embeddings of each view: R blocks of B rows, one of each reading."""
        features = self.backbone(torch.cat(list(views)))
        if not self.training:
            return list(self.head(features).chunk(len(views)))
        plain = features.chunk(len(views))
        attended = [self.batch_former.attend(h) for h in plain]
        if not self.shared_head:
            return list(self.head(torch.cat(attended)).chunk(len(views)))
        # Sample by sample, so that any part of the rows (see SplitBatchNorm) holds both readings of its samples.
        rows = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(plain, attended, strict=True)]
        encoded = self.head(torch.cat(rows)).chunk(len(views))
        return [embeddings.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) for embeddings in encoded]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "N D"]:
        return self.encode_alike([images])[0]

    def momentum_copy(self) -> BatchFormerEncoder:
        """A copy that is not trained by gradients, and shares the one BatchFormer, which is."""
        shared = self.batch_former
        twin: Any = copy.deepcopy(self, {id(shared): shared})
        for name, child in twin.named_children():
            if name != "batch_former":
                child.requires_grad_(False)
        return twin


def moco_v3_loss(
    q1: Float[Tensor, "N D"],
    q2: Float[Tensor, "N D"],
    k1: Float[Tensor, "N D"],
    k2: Float[Tensor, "N D"],
    temperature: float | Tensor = 1.0,
    average: bool = False,
) -> Float[Tensor, ""]:
    r"""MoCo v3's symmetric loss over all combinations of plain and attended queries and keys: eight terms.

    $$\sum_{a, b} c(q_1^a, k_2^b) + c(q_2^a, k_1^b), \qquad c(q, k) = 2\tau\,\mathrm{CE}(\hat q \hat k^\top / \tau)$$

    where a row's target is its own number and its negatives are the other keys of one reading.

    Args:
        q1: raw queries of the first view: plain rows, then attended ones.
        q2: of the second.
        k1: raw keys of the first view, alike.
        k2: of the second.
        temperature: $\tau$.
        average: over the four combinations, which gives the scale of MoCo v3 itself; the official code's default sums,
            four times the scale and so four times the learning rate.
    """
    q1, q2, k1, k2 = (normalize(x) for x in (q1, q2, k1.detach(), k2.detach()))

    def contrast(query: Tensor, key: Tensor) -> Tensor:
        scores = query @ key.T
        others = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        return 2 * temperature * info_nce(scores.diagonal()[:, None], scores, others, temperature)

    pairs = [(q, k) for x, y in ((q1, k2), (q2, k1)) for q, k in itertools.product(x.chunk(2), y.chunk(2))]
    total = torch.stack([contrast(q, k) for q, k in pairs]).sum()
    return total / 4 if average else total
