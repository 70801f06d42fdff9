"""Contrastive attraction and contrastive repulsion: positives compared among themselves, negatives among themselves.

Source: Zheng et al., "Contrastive Attraction and Contrastive Repulsion for Representation Learning", TMLR 2023
(arXiv 2105.03746), github JegZheng/CACR-SSL. Cosines $s$ stand for squared distances, $d^2 = 2 - 2s$. The authors' three
implementations treat the weights differently: a function each, of which `cacr` (small scale) lets the gradient through.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives, negative_logits, zero_where_all_masked

Weights = Literal["both", "positive", "negative", "none"]


def euclidean_scores(left: Float[Tensor, "*#batch D"], right: Float[Tensor, "*#batch D"]) -> Float[Tensor, "..."]:
    """Scores $1 - d^2/2$: the cosines of unit rows, and of others what a loss here reads as their squared distance."""
    return 1 - (at_least_float32(left) - at_least_float32(right)).square().sum(-1) / 2


def attraction_weights(positives: Float[Tensor, "B P"], tau: float = 1.0) -> Float[Tensor, "B P"]:
    r"""$w^+_{bp} = \mathrm{softmax}_p(\tau^+ d^2_{bp})$: the farthest positive weighs most; $\tau^+ = 0$ gives 1 / P."""
    return (tau * _squared_distance(positives)).softmax(1)


def repulsion_weights(
    negatives: Float[Tensor, "B M"], weight: Weight = None, tau: float = 1.0, groups: int = 1
) -> Float[Tensor, "B G N"]:
    r"""$w^-_{bm} = \mathrm{softmax}_m(-\tau^- d^2_{bm})$: the closest negative weighs most; $\tau^- = 0$ weighs all alike.

    Args:
        negatives: scores of the negatives.
        weight: mask or weight of each negative. What is masked weighs 0, except where a block has nothing else.
        tau: $\tau^-$.
        groups: the M = G * N columns are G equal blocks, each with a softmax of its own.

    Raises:
        ZooError: the columns cannot be divided so.
    """
    if negatives.shape[1] % groups:
        raise ZooError(
            f"CACR cannot divide {negatives.shape[1]} negatives into {groups} equal blocks: set groups to the number of "
            "views, or to 1 where a queue or explicit negatives are among them"
        )
    return negative_logits(negatives, weight, _temperature(tau)).unflatten(1, (groups, -1)).softmax(2)


def attraction_loss(
    positives: Float[Tensor, "B P"], tau: float = 1.0, alpha: float = 1.0, detach_weights: bool = False
) -> Float[Tensor, ""]:
    r"""Expected cost of attraction, $\alpha \sum_p w^+_{bp} d^2_{bp}$, the mean over queries.

    Args:
        positives: scores of the positives.
        tau: $\tau^+$.
        alpha: $\alpha$; it is no part of the weights.
        detach_weights: the weights are constants.
    """
    weights = attraction_weights(positives.detach() if detach_weights else positives, tau)
    return alpha * (weights * _squared_distance(positives)).sum(1).mean()


def repulsion_loss(
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    tau: float = 1.0,
    beta: float = 1.0,
    groups: int = 1,
    constant: int = 0,
    positives: Float[Tensor, "B P"] | None = None,
    tau_plus: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Minus the expected cost of repulsion, $r_{bg} = -\beta \sum_m w^-_{bgm} d^2_{bgm}$.

    The mean is over the (query, block) pairs in which any negative counts; without such a pair the loss is 0. As the
    weights carry gradient, a negative is pushed with $w_m (1 - \tau^- (d^2_m - \sum_n w_n d^2_n))$.

    Debiased, each pair's cost is $(-\tau_+ d^2_{bg} + r_{bg}) / (1 - \tau_+)$, with the squared distance of the query's
    positive in the block's view.

    Args:
        negatives: scores of the negatives.
        weight: mask or weight of each negative.
        tau: $\tau^-$.
        beta: $\beta$; it is no part of the weights.
        groups: blocks, as in `repulsion_weights`.
        constant: the scores of the first so many negatives enter the weights as constants (a queue).
        positives: of the queries; the debiased form reads them. With several blocks these are one for each view, and the
            queries' rows go view by view, the positives of a query being the views that follow its own in a circle.
        tau_plus: $\tau_+$, the probability that a negative is of the query's class; 0 does not debias.

    Raises:
        ZooError: the columns cannot be divided into blocks, or positives and blocks do not belong together.
    """
    compared = torch.cat([negatives[:, :constant].detach(), negatives[:, constant:]], 1) if constant else negatives
    weights = repulsion_weights(compared, weight, tau, groups)
    cost = -beta * (weights * _squared_distance(negatives).unflatten(1, (groups, -1))).sum(2)
    if tau_plus and positives is not None:
        cost = (cost - tau_plus * _own_distance(positives, groups)) / (1 - tau_plus)
    counts = _counts(weight, cost)
    return cost.where(counts, 0.0).sum() / counts.sum().clamp_min(1)


def cacr(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    tau_positive: float = 1.0,
    tau_negative: float = 0.9,
    alpha: float = 1.0,
    beta: float = 1.0,
    groups: int = 1,
    tau_plus: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Attraction plus repulsion, with gradient through the weights: the form of CIFAR and STL-10.

    With views as rows, each query having the other views as positives and the later views' rows as negatives
    (`SiameseContrast(negatives_from="later")`) in one block a view, this is the paper's mean over the unordered pairs of
    views. The value lies between -4 beta and 4 alpha; it is 0 where all embeddings are equal. A query whose negatives are
    all masked is attracted all the same.

    Args:
        positives: scores of the positives.
        negatives: scores of the negatives.
        weight: mask or weight of each negative.
        tau_positive: $\tau^+$; 0 weighs positives alike.
        tau_negative: $\tau^-$; 0 weighs negatives alike.
        alpha: factor of the attraction.
        beta: factor of the repulsion.
        groups: blocks of negatives, as in `repulsion_weights`.
        tau_plus: as in `repulsion_loss`.

    Raises:
        ZooError: as in `repulsion_loss`.
    """
    attraction = attraction_loss(positives, tau_positive, alpha)
    further = {"positives": positives, "tau_plus": tau_plus}
    return attraction + repulsion_loss(negatives, weight, tau_negative, beta, groups, **further)


def cacr_queue(
    positives: Float[Tensor, "R P"],
    negatives: Float[Tensor, "R M"],
    weight: Weight = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    views: int = 1,
    queue_size: int = 0,
) -> Float[Tensor, ""]:
    r"""CACR against momentum keys: the weights are constants as far as they come from keys.

    That is all of $w^+$; and in $w^-$ the scores of the queue, while those of same-batch queries and other further
    negatives carry gradient. Where each query meets one key, $w^+$ compares the views of an image that meet it.

    Args:
        positives: scores of the positives.
        negatives: scores of the queue, then of further negatives.
        weight: mask or weight of each negative.
        tau_positive: $\tau^+$.
        tau_negative: $\tau^-$.
        alpha: factor of the attraction.
        beta: factor of the repulsion.
        views: V, where the R = V * B rows are B images' views, view by view.
        queue_size: how many of the negatives come from the queue.
    """
    of_image = _by_view(positives, views).transpose(0, 1).flatten(1)
    attraction = attraction_loss(of_image, tau_positive, alpha, detach_weights=True)
    return attraction + repulsion_loss(negatives, weight, tau_negative, beta, constant=queue_size)


def view_weights(positives: Float[Tensor, "R 1"], views: int, temperature: float = 1.0) -> Float[Tensor, "V B"]:
    r"""$p_{vi} = \mathrm{softmax}_v(d^2_{vi} / T)$ over the views of an image that meet one key; constants."""
    return (_squared_distance(_by_view(positives, views)[..., 0].detach()) / temperature).softmax(0)


def cacr_euclidean(
    positives: Float[Tensor, "R 1"],
    negatives: Float[Tensor, "R M"],
    weight: Weight = None,
    temperature: float = 1.0,
    views: int = 1,
) -> Float[Tensor, ""]:
    r"""The MoCo-v3 form with Euclidean cost $c = 1 - s$, half the squared distance; all weights are constants.

    $$\sum_v \sum_i p_{vi} \Big(c_{vi} - \sum_m w^-_{vim}\, c_{vim}\Big), \quad w^- = \mathrm{softmax}_m(-c / T)$$

    As in the official code this is a sum over images and views, not a mean. A row whose negatives are all masked is
    attracted all the same.

    Args:
        positives: scores of queries and keys.
        negatives: scores of queries and other images' keys.
        weight: mask or weight of each negative.
        temperature: T.
        views: V, where the R = V * B rows are B images' views, view by view.
    """
    constant = negative_logits(negatives.detach(), weight, temperature).softmax(1)
    cost = (constant * (1 - at_least_float32(negatives))).sum(1, keepdim=True)
    rows = 1 - at_least_float32(positives) - zero_where_all_masked(cost, weight)
    return (view_weights(positives, views, temperature) * _by_view(rows, views)[..., 0]).sum()


def cacr_rbf(
    positives: Float[Tensor, "R 1"],
    negatives: Float[Tensor, "R M"],
    weight: Weight = None,
    temperature: float = 1.0,
    views: int = 1,
) -> Float[Tensor, ""]:
    r"""The MoCo-v3 form with RBF cost: InfoNCE in which an image's farther views weigh more.

    $2T \sum_v \frac{1}{B} \sum_i p_{vi}\, \ell_{vi}$, $\ell$ being InfoNCE at temperature T. With one view it is MoCo v3's
    loss. A row whose negatives are all masked has loss 0.

    Args:
        positives: scores of queries and keys.
        negatives: scores of queries and other images' keys.
        weight: mask or weight of each negative.
        temperature: T; 1.0 for a ResNet, 0.2 for a ViT.
        views: V, where the R = V * B rows are B images' views, view by view.
    """
    positive = at_least_float32(positives) / temperature
    rows = torch.logaddexp(positive, log_sum_negatives(negatives, weight, temperature)) - positive
    weighted = view_weights(positives, views, temperature) * _by_view(rows, views)[..., 0]
    return 2 * temperature * weighted.sum(0).mean()


class CACR(nn.Module):
    """`cacr` with its hyper-parameters.

    Args:
        tau_positive: sharpness of the weights of positives.
        tau_negative: sharpness of the weights of negatives; 0.9 on CIFAR-10, 2 on CIFAR-100 and STL-10.
        alpha: factor of the attraction.
        beta: factor of the repulsion.
        weights: on which side pairs are weighted; on the other all count alike (the paper's ablations).
        tau_plus: as in `repulsion_loss`; 0.1 in the paper's debiased form.
        groups: blocks of negatives, as in `repulsion_weights`: the number of views.
    """

    def __init__(
        self,
        tau_positive: float = 1.0,
        tau_negative: float = 0.9,
        alpha: float = 1.0,
        beta: float = 1.0,
        weights: Weights = "both",
        tau_plus: float = 0.0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= tau_plus < 1:
            raise ZooError(f"tau_plus is a probability below 1, not {tau_plus}")
        self.tau_positive, self.tau_negative, self.alpha, self.beta = tau_positive, tau_negative, alpha, beta
        self.weights, self.tau_plus, self.groups = weights, tau_plus, groups

    @property
    def temperature(self) -> float:
        """The temperature at which a softmax of the scores gives the weights of negatives."""
        return _temperature(self.tau_negative)

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        if self.groups > 1 and positives.shape[1] != self.groups - 1:
            raise ZooError(
                f"CACR has {self.groups} groups, but {positives.shape[1]} positives come from {positives.shape[1] + 1} "
                "views: set groups to the number of views"
            )
        tau_positive = self.tau_positive * (self.weights in ("both", "positive"))
        tau_negative = self.tau_negative * (self.weights in ("both", "negative"))
        factors = (tau_positive, tau_negative, self.alpha, self.beta)
        return cacr(positives, negatives, weight, *factors, self.groups, self.tau_plus)


class QueueCACR(nn.Module):
    """`cacr_queue` with its hyper-parameters, for `MomentumContrast`; `BatchQueries` supplies the same-batch negatives.

    Args:
        tau_positive: sharpness of the weights of positives.
        tau_negative: sharpness of the weights of negatives.
        alpha: factor of the attraction.
        beta: factor of the repulsion.
        views: query views of each image.
        queue_size: that of the method.
    """

    def __init__(
        self,
        tau_positive: float = 1.0,
        tau_negative: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        views: int = 1,
        queue_size: int = 65536,
    ) -> None:
        super().__init__()
        self.tau_positive, self.tau_negative, self.alpha, self.beta = tau_positive, tau_negative, alpha, beta
        self.views, self.queue_size = views, queue_size

    @property
    def temperature(self) -> float:
        """The temperature at which a softmax of the scores gives the weights of negatives."""
        return _temperature(self.tau_negative)

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        factors = (self.tau_positive, self.tau_negative, self.alpha, self.beta)
        return cacr_queue(positives, negatives, weight, *factors, self.views, self.queue_size)


class MomentumCACR(nn.Module):
    """`cacr_rbf` or `cacr_euclidean` with its temperature, for `MomentumContrast`.

    Args:
        cost: which of the two.
        temperature: 1.0 for a ResNet, 0.2 for a ViT.
        views: query views of each image.
    """

    def __init__(self, cost: Literal["rbf", "euclidean"] = "rbf", temperature: float = 1.0, views: int = 1) -> None:
        super().__init__()
        self.cost, self.temperature, self.views = cost, temperature, views

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        form = cacr_rbf if self.cost == "rbf" else cacr_euclidean
        return form(positives, negatives, weight, self.temperature, self.views)


def _squared_distance(scores: Tensor) -> Tensor:
    return 2 - 2 * at_least_float32(scores)


def _temperature(tau: float) -> float:
    # softmax(-tau (2 - 2 s)) = softmax(s / T): 2 tau drops out of the sum.
    return 1 / (2 * tau) if tau else math.inf


def _counts(weight: Weight, like: Float[Tensor, "B G"]) -> Tensor:
    """In which blocks any negative counts, `[B, G]`."""
    if weight is None:
        return torch.ones_like(like, dtype=torch.bool)
    return (weight > 0).unflatten(1, (like.shape[1], -1)).any(2)


def _by_view(rows: Float[Tensor, "R P"], views: int) -> Float[Tensor, "V B P"]:
    if len(rows) % views:
        raise ZooError(
            f"{len(rows)} queries are not {views} views of each image: set the loss's views to those of the batch"
        )
    return rows.unflatten(0, (views, -1))


def _own_distance(positives: Float[Tensor, "R P"], groups: int) -> Float[Tensor, "R G"]:
    """Squared distance of each query to its own image's row in each block; 0 in the block of its own view."""
    distance = _squared_distance(positives)
    if groups == 1:
        return distance.mean(1, keepdim=True)
    if positives.shape[1] != groups - 1:
        raise ZooError(
            f"debiasing {groups} blocks takes {groups - 1} positives a query, not {positives.shape[1]}: set groups to the "
            "number of views"
        )
    by_view = _by_view(torch.cat([torch.zeros_like(distance[:, :1]), distance], 1), groups)
    # Column c of view v belongs to view v + c: turn each view's columns by as many.
    return torch.cat([of.roll(view, 1) for view, of in enumerate(by_view)])
