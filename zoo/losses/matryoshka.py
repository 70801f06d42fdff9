"""Matryoshka representation learning: prefixes of an embedding are embeddings.

Source: Kusupati et al., NeurIPS 2022 (arXiv 2205.13147).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.losses.scores import normalize


class Matryoshka(nn.Module):
    r"""$\sum_k w_k\, L(\mathrm{norm}(x_{1..d_k}), \dots)$: a loss on embeddings, summed over prefix lengths.

    Args:
        loss: maps embeddings (queries, positives, ...), each `[*, D]`, to a scalar; a module's parameters are trained.
        dims: prefix lengths $d_k$.
        weights: $w_k$; None means 1.
    """

    def __init__(
        self, loss: Callable[..., Tensor], dims: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if weights is not None and len(weights) != len(dims):
            raise ZooError(f"{len(dims)} Matryoshka dims have {len(weights)} weights: give one weight for each dim")
        self.loss = loss
        self.dims = list(dims)
        self.weights = [1.0] * len(dims) if weights is None else list(weights)

    def forward(self, *embeddings: Float[Tensor, "... D"]) -> Float[Tensor, ""]:
        """The loss of raw or unit-norm embeddings of one width.

        Raises:
            ZooError: a prefix is longer than the embeddings.
        """
        width = embeddings[0].shape[-1]
        if max(self.dims) > width:
            raise ZooError(f"Matryoshka dim {max(self.dims)} exceeds the embedding's {width}: drop it from dims")
        parts = [
            weight * self.loss(*(normalize(x[..., :dim]) for x in embeddings))
            for dim, weight in zip(self.dims, self.weights, strict=True)
        ]
        return sum(parts[1:], parts[0])
