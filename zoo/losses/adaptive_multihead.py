"""AMCL: several projection heads, and for each pair and head a temperature of its own.

Source: Wang et al., "Adaptive Multi-head Contrastive Learning", ECCV 2024 (arXiv 2310.05615), table 2 (eq. 2.1 to 2.4).
The released module (github LeiWangR/cl) does not run and has no negatives: the equations are followed, not the code.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from zoo.errors import ZooError
from zoo.losses.nce import info_nce
from zoo.losses.scores import normalize
from zoo.negatives.candidates import Candidates


class Pairs(NamedTuple):
    """Similarity and temperature of pairs, heads first: `[C, ...]`."""

    similarity: Float[Tensor, "*pairs"]
    temperature: Float[Tensor, "*pairs"]

    @property
    def logit(self) -> Float[Tensor, "*pairs"]:
        return self.similarity / self.temperature

    def detach(self) -> Pairs:
        return Pairs(self.similarity.detach(), self.temperature.detach())


class Seen(NamedTuple):
    """What the last loss was made of, detached.

    Attributes:
        positive: positive pairs `[C, B, P]`.
        hardest: anchors and their hardest negatives `[C, B, 1]`.
        which: the numbers of these negatives, among the shared ones and then the anchor's own.
    """

    positive: Pairs
    hardest: Pairs
    which: Int[Tensor, "C B 1"]


def omega(temperature: Float[Tensor, "*pairs"], dim: int) -> Float[Tensor, "*pairs"]:
    r"""$\Omega(\tau) = \frac{d'}{2} \log \tau + 1/\tau$, what remains of a Gaussian's log-likelihood; least at $2/d'$."""
    return dim / 2 * temperature.log() + 1 / temperature


def adaptive_contrast(positive: Pairs, hardest: Pairs, dim: int, beta: float) -> Float[Tensor, "*pairs"]:
    r"""Eq. 2.1 (SimCLR, MoCo), summed over heads: the positive against the hardest negative.

    $$\ell_i = \sum_c -\frac{s_i^{c+}}{\tau_i^{c+}} + \frac{s_{in^*}^{c-}}{\tau_{in^*}^{c-}}
    + \beta\,\Omega(\tau_i^{c+}) - \beta\,\Omega(\tau_{in^*}^{c-})$$

    with $n^* = \arg\max_n s_{in}^{c-}$ for each head. The value may be negative.

    Args:
        positive: positive pairs `[C, B, P]` (or `[C, B]`).
        hardest: pairs of anchor and hardest negative, of a shape that fits the positives'.
        dim: $d'$, width of a head.
        beta: $\beta$.
    """
    regulariser = omega(positive.temperature, dim) - omega(hardest.temperature, dim)
    return (hardest.logit - positive.logit + beta * regulariser).sum(0)


def adaptive_info_nce(positive: Pairs, hardest: Pairs, dim: int, beta: float) -> Float[Tensor, "*pairs"]:
    """Eq. 2.4 (InfoNCE): eq. 2.1 with the positive among the candidates for the hardest one.

    A head contributes nothing where its positive is more similar than every negative. Arguments as in
    `adaptive_contrast`, of equal shapes.
    """
    ahead = positive.similarity > hardest.similarity
    return adaptive_contrast(
        positive, Pairs(*(torch.where(ahead, p, n) for p, n in zip(positive, hardest, strict=True))), dim, beta
    )


def adaptive_negative_cosine(forward: Pairs, backward: Pairs, dim: int, beta: float) -> Float[Tensor, "*pairs"]:
    r"""Eq. 2.2 (SimSiam), summed over heads; there are no negatives.

    $$\ell_i = \sum_c -\frac{\mathrm{sim}(z_i^c, [h_i^+])}{2 \tau_i^{c+}} - \frac{\mathrm{sim}(z_i^{c+}, [h_i])}{2
    \tilde\tau_i^{c+}} + \beta\,\Omega(\tau_i^{c+}) + \beta\,\Omega(\tilde\tau_i^{c+})$$

    Args:
        forward: pairs of the first view's prediction and the second's projection, which the caller detaches.
        backward: the same with the views exchanged.
        dim: width of a head.
        beta: as in `adaptive_contrast`.
    """
    regulariser = omega(forward.temperature, dim) + omega(backward.temperature, dim)
    return (beta * regulariser - (forward.logit + backward.logit) / 2).sum(0)


def adaptive_cross_correlation(
    correlation: Pairs, dim: int, beta: float, redundancy: float = 0.005
) -> Float[Tensor, ""]:
    r"""Eq. 2.3 (Barlow Twins), summed over heads.

    $$\ell = \sum_c \sum_l (1 - C_{ll}/\tau_l)^2 + \lambda \sum_{l \ne m} C_{lm}^2/\tau_{lm}
    + \beta \sum_l \Omega(\tau_l) - \beta \sum_{l \ne m} \Omega(\tau_{lm})$$

    Args:
        correlation: of the dimensions of both views, and the temperatures of these pairs of dimensions, `[C, d', d']`.
        dim: as in `omega`.
        beta: as in `adaptive_contrast`.
        redundancy: $\lambda$.
    """
    matrix, temperature = correlation
    diagonal = torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    regulariser = beta * omega(temperature, dim)
    invariant = (1 - correlation.logit).square() + regulariser
    return torch.where(diagonal, invariant, redundancy * matrix.square() / temperature - regulariser).sum()


def soft_adaptive_contrast(
    positive: Pairs, negatives: Pairs, mask: Bool[Tensor, "B M"] | None, dim: int, beta: float
) -> Float[Tensor, ""]:
    r"""Our extension, not the paper's: NT-Xent with a temperature for each pair, summed over heads.

    $$\ell_{i} = \sum_c -\frac{s_i^{c+}}{\tau_i^{c+}} + \log \sum_{j} e^{s_{ij}^c/\tau_{ij}^c} + \beta\,\Omega(\tau_i^{c+})$$

    $j$ runs over the positive and all negatives. The mean over anchors (and their positives) is returned.

    Args:
        positive: positive pairs `[C, B, P]`.
        negatives: pairs of anchors and all negatives `[C, B, M]`.
        mask: which of them count; a row without any has loss 0.
        dim: width of a head.
        beta: as in `adaptive_contrast`.
    """
    heads = len(positive.similarity)
    repeated = None if mask is None else mask.repeat(heads, 1)
    contrast = info_nce(positive.logit.flatten(0, 1), negatives.logit.flatten(0, 1), repeated, temperature=1.0)
    regulariser = omega(positive.temperature, dim).sum(0)
    if mask is not None:
        regulariser = regulariser.where(mask.any(1, keepdim=True), 0.0)
    return heads * contrast + beta * regulariser.mean()


class PairTemperature(nn.Module):
    r"""$\tau(a, b) = \tau_{low} + (\tau_{high} - \tau_{low})\,\sigma(\varphi([a, b]))$, not symmetric; one for all heads.

    $\varphi$ has one hidden layer with ReLU.

    Args:
        dim: width of a head.
        low: least temperature; equal to `high` it is constant.
        high: largest temperature.
        initial: about what training starts with.
        hidden: width of the hidden layer.

    Raises:
        ZooError: the three are not in order.
    """

    def __init__(self, dim: int, low: float = 0.05, high: float = 2.0, initial: float = 0.1, hidden: int = 128) -> None:
        super().__init__()
        if not (0 < low < initial < high or 0 < low == high):
            raise ZooError(f"AMCL's temperatures need 0 < low < initial < high, not {low}, {initial}, {high}")
        self.low, self.high = low, high
        self.first, self.last = nn.Linear(2 * dim, hidden), nn.Linear(hidden, 1)
        if low < high:
            nn.init.constant_(self.last.bias, math.log((initial - low) / (high - initial)))

    def forward(self, a: Float[Tensor, "*a d"], b: Float[Tensor, "*b d"]) -> Float[Tensor, "*pairs"]:
        """Temperatures of pairs of unit rows; leading axes are broadcast. `a` is the anchor."""
        # Layer by layer for a and b apart: of all pairs of many rows only the hidden layer is formed.
        left, right = self.first.weight.chunk(2, 1)
        hidden = (linear(a, left, self.first.bias) + linear(b, right)).relu()
        return self.low + (self.high - self.low) * self.last(hidden)[..., 0].sigmoid()


class AMCL(nn.Module):
    """`adaptive_contrast` (or its soft extension) of an encoder with several heads.

    A method hands it `Candidates` whose rows hold the heads' embeddings one after the other, as those of
    `ImageEncoder(heads=C, dim=d')`. Negatives of an anchor are all that the candidates' masks leave.

    Args:
        heads: C.
        dim: d', width of a head.
        low: least temperature; the paper's code has 1e-5, whose reciprocal few learning rates survive.
        high: largest temperature.
        beta: weight of the regulariser; about 1 / d' keeps it of order 1.
        initial: about what temperatures start with.
        form: "hard" is the paper's eq. 2.1; "soft", our extension, takes all negatives.
        hidden: width of the temperature network's hidden layer.

    Attributes:
        temperature: mean of the last positive pairs' temperatures.
        seen: what the last loss was made of; None before the first.
    """

    takes_candidates = True

    def __init__(
        self,
        heads: int = 3,
        dim: int = 128,
        low: float = 0.05,
        high: float = 2.0,
        beta: float = 0.1,
        initial: float = 0.1,
        form: Literal["hard", "soft"] = "hard",
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.beta, self.form = heads, dim, beta, form
        self.temperature_of = PairTemperature(dim, low, high, initial, hidden)
        self.temperature: float | Tensor = initial if low < high else low
        self.seen: Seen | None = None

    def forward(self, candidates: Candidates) -> Float[Tensor, ""]:
        """The loss.

        Raises:
            ZooError: the rows are not as wide as all heads.
        """
        x, (_, _, mask) = candidates, candidates.scores()
        anchors, shared = self._split(x.query), self._split(x.shared)
        scored = anchors if x.positive_query is None else self._split(x.positive_query)
        positives = self._split(x.positive)[:, :, None]
        if x.more_positives is not None:
            positives = torch.cat([positives, self._split(x.more_positives)], 2)
        positive = self._pairs(scored[:, :, None], positives)
        own = None if x.own is None else self._split(x.own)

        similarity = anchors @ shared.mT
        if own is not None:
            similarity = torch.cat([similarity, torch.einsum("cbd,cbsd->cbs", anchors, own)], 2)
        kept = similarity.detach()
        if mask is not None:
            kept = kept.masked_fill(~mask, torch.finfo(kept.dtype).min)
        star = kept.argmax(2, keepdim=True)
        counted = None if mask is None else mask.any(1, keepdim=True)

        if self.form == "hard":
            at = star.expand(-1, -1, self.dim)
            negative = shared.gather(1, at.clamp_max(shared.shape[1] - 1))[:, :, None]
            if own is not None:
                beyond = (at - shared.shape[1])[:, :, None]
                negative = torch.where(beyond < 0, negative, own.gather(2, beyond.clamp_min(0)))
            hardest = self._pairs(anchors[:, :, None], negative)
            rows = adaptive_contrast(positive, hardest, self.dim, self.beta)
            loss = (rows if counted is None else rows.where(counted, 0.0)).mean()
        else:
            temperature = self.temperature_of(anchors[:, :, None], shared[:, None])
            if own is not None:
                temperature = torch.cat([temperature, self.temperature_of(anchors[:, :, None], own)], 2)
            negatives = Pairs(similarity, temperature)
            hardest = Pairs(*(part.gather(2, star) for part in negatives))
            loss = soft_adaptive_contrast(positive, negatives, mask, self.dim, self.beta)
        self.seen = Seen(positive.detach(), hardest.detach(), star)
        self.temperature = self.seen.positive.temperature.mean()
        return loss

    def _split(self, rows: Float[Tensor, "*rows D"]) -> Float[Tensor, "C *rows d"]:
        """Rows to heads, each of unit norm (mixed rows are not, head by head)."""
        if rows.shape[-1] != self.heads * self.dim:
            raise ZooError(
                f"AMCL has {self.heads} heads of {self.dim}, and rows are {rows.shape[-1]} wide: "
                "give encoder and loss the same heads and dim"
            )
        return normalize(rows.unflatten(-1, (self.heads, self.dim))).movedim(-2, 0)

    def _pairs(self, a: Float[Tensor, "C *a d"], b: Float[Tensor, "C *b d"]) -> Pairs:
        return Pairs((a * b).sum(-1), self.temperature_of(a, b))
