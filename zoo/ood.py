"""Out-of-distribution scores of image-text models, and how well a score separates known from novel inputs.

Every score is higher for what looks in-distribution ("known"), which is the positive class of all metrics. At CLIP's
scale of 100, probabilities of known inputs come so near to 1 that half of them tie in float32: score in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zoo.losses.scores import at_least_float32, normalize

# Scores of logits


def class_weights(embeddings: Float[Tensor, "T C D"]) -> Float[Tensor, "C D"]:
    """Zero-shot classifier of C classes: the unit-norm sum of the unit-norm embeddings of T prompts for each."""
    return normalize(normalize(embeddings).sum(0))


def cosine_logits(
    x: Float[Tensor, "N D"], labels: Float[Tensor, "C D"], scale: float | Tensor = 1.0
) -> Float[Tensor, "N C"]:
    """Cosines times a scale, which is one over the temperature; neither side needs unit norm."""
    return (scale * normalize(x)) @ normalize(labels).T


def msp(yes: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Maximum softmax probability (Hendrycks and Gimpel 2017, arXiv 1610.02136; MCM: Ming et al. 2022, arXiv 2211.13445).

    Args:
        yes: logits of the classes.
    """
    return at_least_float32(yes).softmax(1).amax(1)


def max_logit(yes: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Largest logit (Hendrycks et al. 2022, arXiv 1911.11132)."""
    return yes.amax(1)


def energy(yes: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Negative free energy, log of the sum of exponentials (Liu et al. 2020, arXiv 2010.03759)."""
    return at_least_float32(yes).logsumexp(1)


def competing_to_win(yes: Float[Tensor, "N C"], no: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """CTW: the predicted class's probability of "yes" against "no" (CLIPN: Wang et al. 2023, arXiv 2308.12213).

    Below one half the input is out of distribution.

    Args:
        yes: logits of the classes' texts.
        no: logits of their "no" texts, on the same scale.
    """
    best = yes.argmax(1, keepdim=True)
    return yes_probability(yes, no).gather(1, best).squeeze(1)


def agreeing_to_differ(yes: Float[Tensor, "N C"], no: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    r"""ATD: $\sum_c \pi_c q_c$, what an "unknown" class beside the C leaves (CLIPN: Wang et al. 2023, arXiv 2308.12213).

    Args:
        yes: logits of the classes' texts, of which $\pi$ is the softmax.
        no: logits of their "no" texts; $q$ is the probability of "yes" against "no".
    """
    return (at_least_float32(yes).softmax(1) * yes_probability(yes, no)).sum(1)


def yes_probability(yes: Float[Tensor, "N C"], no: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Softmax of each pair of logits: the probability of "yes"."""
    return at_least_float32(torch.stack([yes, no], -1)).softmax(-1)[..., 0]


def neg_label(known: Float[Tensor, "N C"], negative: Float[Tensor, "N M"], groups: int = 1) -> Float[Tensor, " N"]:
    """Share of the ID labels in the softmax over ID and negative labels (NegLabel: Jiang et al. 2024, arXiv 2403.20078).

    Args:
        known: logits of the ID labels.
        negative: logits of the negative labels.
        groups: average over so many groups of consecutive negative labels, each of which stands beside all ID labels.
    """
    inside = at_least_float32(known).logsumexp(1)
    outside = [part.logsumexp(1) for part in at_least_float32(negative).tensor_split(groups, dim=1)]
    return (inside[:, None] - torch.stack(outside, 1)).sigmoid().mean(1)


# Metrics of scores


def auroc(known: Float[Tensor, " K"], novel: Float[Tensor, " M"]) -> float:
    """Probability that a known input scores above a novel one, ties counting half."""
    ordered = novel.sort().values
    below, upto = (torch.searchsorted(ordered, known, right=right) for right in (False, True))
    return float((below + upto).double().mean() / (2 * len(novel)))


def roc_curve(
    known: Float[Tensor, " K"], novel: Float[Tensor, " M"]
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Shares of novel (false) and known (true) inputs that reach each threshold, from above all scores downwards.

    Returns:
        False-positive and true-positive rates, float64, ascending from 0 to 1.
    """
    scores, order = torch.cat([known, novel]).sort(descending=True)
    is_known = order < len(known)
    last = _last_of_ties(scores)
    true, total = is_known.cumsum(0)[last].double(), torch.arange(1, len(scores) + 1, device=scores.device)[last]
    zero = true.new_zeros(1)
    return torch.cat([zero, (total - true) / len(novel)]), torch.cat([zero, true / len(known)])


def _last_of_ties(descending: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    last = torch.ones_like(descending, dtype=torch.bool)
    last[:-1] = descending[:-1] != descending[1:]
    return last


def fpr_at_tpr(known: Float[Tensor, " K"], novel: Float[Tensor, " M"], tpr: float = 0.95) -> float:
    """False-positive rate at a true-positive rate, linearly interpolated between the points of the ROC curve.

    Where a part of the curve has just this true-positive rate, its highest false-positive rate counts, as CLIPN has it.
    """
    false, true = roc_curve(known, novel)
    below = true <= tpr
    at, after = int(below.sum()) - 1, min(int(below.sum()), len(true) - 1)
    share = (tpr - true[at]) / (true[after] - true[at]) if after > at else 0.0
    return float(false[at] + share * (false[after] - false[at]))


def fpr_at_threshold(known: Float[Tensor, " K"], novel: Float[Tensor, " M"], tpr: float = 0.95) -> float:
    """Share of novel inputs above the threshold that lies at place `round((1 - tpr) K)` of the ascending known scores.

    It differs from `fpr_at_tpr` by no interpolation and by rounding; SynOOD and its predecessors report it.
    """
    place = min(round((1 - tpr) * len(known)), len(known) - 1)
    return float((novel > known.sort().values[place]).double().mean())


def aupr_in(known: Float[Tensor, " K"], novel: Float[Tensor, " M"]) -> float:
    """Area under precision over recall of the known inputs, by trapezoids through every threshold.

    Precision is 0, not 1, at recall 0, as SynOOD and its predecessors have it: half of 1/K below the usual convention
    where the highest score is a known input's.
    """
    false, true = roc_curve(known, novel)
    reached = true * len(known) + false * len(novel)
    precision = true * len(known) / reached.clamp_min(1)
    return float(torch.trapezoid(precision, true))
