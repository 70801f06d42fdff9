"""GroCo: group ordering constraints, learned by sorting.

Source: Shvetsova et al., "Learning by Sorting: Self-supervised Learning with Group Ordering Constraints", ICCV 2023
(arXiv 2301.02009), section 3; github ninatu/learning_by_sorting.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.losses.scores import Weight, at_least_float32
from zoo.losses.soft_sort import Network, soft_sort


def group_ordering_loss(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    n_negatives: int = 10,
    steepness: float = 1.0,
    network: Network = "odd_even",
) -> Float[Tensor, ""]:
    r"""All positives above all negatives: the cross entropy of landing on the right side of the border, after soft sorting.

    The N hardest negatives and then the P positives of an anchor, each group in ascending order, enter a soft sorting
    network, which gives the probability $P_{mr}$ that input $m$ ends at rank $r$. With $g_m = \sum_{r \ge N} P_{mr}$,
    $t_m = 1$ for positives and 0 for negatives,

    $$\ell_b = -\frac{1}{N + P} \sum_m t_m \log g_m + (1 - t_m) \log (1 - g_m)$$

    and the loss is the mean over anchors. An anchor with fewer than N negatives has the loss of what it has, in a
    network of that size, and 0 if it has none. A float weight drops a negative where it is 0 and is 1 otherwise.

    At steepness 1 and with cosines, no comparison is certain: the loss has a floor far above 0.

    Args:
        positives: scores of the positives. No temperature: the steepness takes its place.
        negatives: scores of the negatives.
        weight: mask (or weight) of each negative.
        n_negatives: N.
        steepness: of the Cauchy distribution in the comparators.
        network: kind of sorting network.

    Raises:
        ZooError: N is less than 1.
    """
    if n_negatives < 1:
        raise ZooError(f"GroCo sorts at least one negative: n_negatives is {n_negatives}")
    positives, negatives = at_least_float32(positives), at_least_float32(negatives)
    kept = torch.ones_like(negatives, dtype=torch.bool) if weight is None else weight > 0
    hardest = negatives.masked_fill(~kept, torch.finfo(negatives.dtype).min)
    hardest = hardest.topk(n := min(n_negatives, negatives.shape[1]), dim=1).values
    border = kept.sum(1, keepdim=True).clamp_max(n)
    total = border + positives.shape[1]

    wire = torch.arange(n + positives.shape[1], device=positives.device)
    entries = torch.cat([hardest, positives.sort(1).values], 1)
    # Ascending negatives, then positives, then what takes no part.
    place = torch.where(wire < border, border - 1 - wire, n + wire - border).clamp_max(entries.shape[1] - 1)
    ordered = soft_sort(entries.gather(1, place), steepness, network, total[:, 0])

    above = (wire >= border).to(ordered.values.dtype)[:, :, None]
    chance = ordered.expect(above)[:, :, 0]  # of ending above the border
    right = torch.where(wire < border, 1 - chance, chance).clamp_min(torch.finfo(chance.dtype).eps)
    loss = -right.log().where((wire < total) & (border > 0), 0.0)
    return (loss.sum(1, keepdim=True) / total).mean()


class GroCo(nn.Module):
    """`group_ordering_loss` with its hyper-parameters.

    The method takes the negatives of the anchor's own view only and sends no gradient through positives and negatives:
    `SiameseContrast(negatives_from="same", detach_candidates=True)`.

    Args:
        n_negatives: as in `group_ordering_loss`.
        steepness: as in `group_ordering_loss`.
        network: as in `group_ordering_loss`.
    """

    def __init__(self, n_negatives: int = 10, steepness: float = 1.0, network: Network = "odd_even") -> None:
        super().__init__()
        self.n_negatives, self.steepness = n_negatives, steepness
        self.network: Network = network

    @property
    def temperature(self) -> float:
        """What score statistics divide by: the difference of scores that a comparator takes for clear."""
        return 1 / self.steepness

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return group_ordering_loss(positives, negatives, weight, self.n_negatives, self.steepness, self.network)
