"""Distillation of a teacher's scores: margin regression, KL divergence, and LLM-Embedder's stabilised form.

Sources: Margin-MSE: Hofstätter et al. 2020 (arXiv 2010.02666); TAS-Balanced: Hofstätter et al., SIGIR 2021
(arXiv 2104.06967); stabilised distillation: Zhang et al. 2023 (arXiv 2310.07554), code FlagOpen/FlagEmbedding. Teachers
are constants everywhere.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.losses.nce import info_nce
from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives, negative_logits


def margin_mse(
    student_positives: Float[Tensor, "B 1"],
    student_negatives: Float[Tensor, "B K"],
    teacher_positives: Float[Tensor, "B 1"],
    teacher_negatives: Float[Tensor, "B K"],
    weight: Weight = None,
) -> Float[Tensor, ""]:
    r"""Squared difference between the margins of student and teacher, the (weighted) mean over all negatives.

    $$\ell_{bk} = \big((s_{b+} - s_{bk}) - (t_{b+} - t_{bk})\big)^2$$

    Scores are raw: the student is pulled to the teacher's scale, so rescale the teacher if the student is a cosine.
    The loss is 0 if nothing is kept.

    Args:
        student_positives: scores of the positive under the student.
        student_negatives: scores of the negatives under the student.
        teacher_positives: the same under the teacher.
        teacher_negatives: the same under the teacher.
        weight: mask (False drops) or weight of each negative.
    """
    student = at_least_float32(student_positives) - at_least_float32(student_negatives)
    teacher = at_least_float32(teacher_positives) - at_least_float32(teacher_negatives)
    kept = torch.ones_like(student) if weight is None else weight.to(student.dtype)
    difference = (student - teacher.detach()).where(kept > 0, 0.0)
    return (kept * difference.square()).sum() / kept.sum().clamp_min(torch.finfo(kept.dtype).tiny)


def in_batch_margin_mse(
    student_positives: Float[Tensor, "B N"],
    student_negatives: Float[Tensor, "B N"],
    teacher_positives: Float[Tensor, "B N"],
    teacher_negatives: Float[Tensor, "B N"],
    first: int = 0,
) -> Float[Tensor, ""]:
    r"""TAS-Balanced's in-batch part: the margins between each query's own positive and the passages of other queries.

    The mean of two Margin-MSE losses, one over the other queries' positives, one over their negatives. The query's own
    negative is in neither, as the pairwise loss covers it. Both margins of the teacher start at its own score of the
    positive.

    Args:
        student_positives: query b against the positive of query j.
        student_negatives: query b against the negative of query j.
        teacher_positives: the same under the teacher.
        teacher_negatives: the same under the teacher.
        first: column of the first query's own passages: rank times batch, where columns are gathered.
    """
    rows, columns = student_positives.shape
    own = torch.arange(rows, device=student_positives.device)[:, None] + first
    other = own != torch.arange(columns, device=own.device)
    student, teacher = student_positives.gather(1, own), teacher_positives.gather(1, own)
    return 0.5 * (
        margin_mse(student, student_positives, teacher, teacher_positives, other)
        + margin_mse(student, student_negatives, teacher, teacher_negatives, other)
    )


def kl_distillation(
    student: Float[Tensor, "B G"],
    teacher: Float[Tensor, "B G"],
    student_temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor = 1.0,
    rescale: bool = False,
    mask: Bool[Tensor, "B G"] | None = None,
) -> Float[Tensor, ""]:
    r"""Divergence of the student's distribution over a query's candidates from the teacher's, the mean over queries.

    $$\ell_b = \mathrm{KL}\big(\mathrm{softmax}(t_b/\tau_t) \,\|\, \mathrm{softmax}(s_b/\tau_s)\big)$$

    A row without candidates has loss 0.

    Args:
        student: scores of the candidates under the student.
        teacher: their scores under the teacher.
        student_temperature: $\tau_s$.
        teacher_temperature: $\tau_t$; LLM-Embedder uses 0.1.
        rescale: times $\tau_s^2$, so that the gradient does not fade with the temperature (Hinton et al. 2015);
            LLM-Embedder does not.
        mask: False drops a candidate from both distributions.
    """
    log_q = negative_logits(student, mask, student_temperature).log_softmax(1)
    log_p = negative_logits(teacher.detach(), mask, teacher_temperature).log_softmax(1)
    divergence = log_p.exp() * (log_p - log_q)
    if mask is not None:
        divergence = divergence.where(mask, 0.0)
    loss = divergence.sum(1).mean()
    return loss * student_temperature**2 if rescale else loss


def stabilised_distillation(
    scores: Float[Tensor, "B M"],
    own: Int[Tensor, "B G"],
    teacher: Float[Tensor, "B G"],
    weight: Weight = None,
    temperature: float | Tensor = 0.01,
) -> Float[Tensor, ""]:
    r"""LLM-Embedder's ranking-like distillation: each candidate against the lower-ranked ones and all other keys.

    With $w_b = \mathrm{softmax}(t_b)$ over the G candidates of query b in their given order, and $O_b$ the keys of the
    other queries,

    $$\ell_b = \sum_g w_{bg}\,\Big(-\frac{s_{bg}}{\tau}
        + \log \sum_{j \in O_b \cup \{g, \dots, G-1\}} e^{s_{bj}/\tau}\Big)$$

    The order is the data's: the positive first, then negatives by falling reward (a stable sort). The mean over queries.

    Args:
        scores: each query against all keys of the batch.
        own: columns of the query's own candidates, in rank order.
        teacher: their rewards; a constant added to a row changes nothing, and no temperature applies.
        weight: mask or weight of each key; the query's own candidates count fully, whatever stands there.
        temperature: $\tau$.
    """
    if weight is None:
        weight = torch.ones_like(scores, dtype=torch.bool)
    others = log_sum_negatives(scores, weight.scatter(1, own, 0), temperature)
    candidates = at_least_float32(scores).gather(1, own) / temperature
    lower = candidates.flip(1).logcumsumexp(1).flip(1)
    share = at_least_float32(teacher).detach().softmax(1)
    return (share * (torch.logaddexp(lower, others) - candidates)).sum(1).mean()


class MarginMSE(nn.Module):
    """`margin_mse` as a module."""

    def forward(
        self,
        student_positives: Tensor,
        student_negatives: Tensor,
        teacher_positives: Tensor,
        teacher_negatives: Tensor,
        weight: Weight = None,
    ) -> Float[Tensor, ""]:
        return margin_mse(student_positives, student_negatives, teacher_positives, teacher_negatives, weight)


class DualMarginMSE(nn.Module):
    """TAS-Balanced's loss: one teacher for the sampled pair, another for all in-batch pairs.

    Args:
        pair_weight: of `margin_mse` on each query's own pair.
        in_batch_weight: of `in_batch_margin_mse`.
    """

    def __init__(self, pair_weight: float = 1.0, in_batch_weight: float = 0.75) -> None:
        super().__init__()
        self.pair_weight, self.in_batch_weight = pair_weight, in_batch_weight

    def forward(
        self,
        student_positives: Float[Tensor, "B N"],
        student_negatives: Float[Tensor, "B N"],
        pair_teacher_positives: Float[Tensor, "B 1"],
        pair_teacher_negatives: Float[Tensor, "B 1"],
        teacher_positives: Float[Tensor, "B N"],
        teacher_negatives: Float[Tensor, "B N"],
        first: int = 0,
    ) -> Float[Tensor, ""]:
        """The student's and the in-batch teacher's matrices and `first` are those of `in_batch_margin_mse`."""
        own = torch.arange(len(student_positives), device=student_positives.device)[:, None] + first
        student = student_positives.gather(1, own), student_negatives.gather(1, own)
        pair = margin_mse(*student, pair_teacher_positives, pair_teacher_negatives)
        in_batch = in_batch_margin_mse(
            student_positives, student_negatives, teacher_positives, teacher_negatives, first
        )
        return self.pair_weight * pair + self.in_batch_weight * in_batch


class KLDistillation(nn.Module):
    """`kl_distillation` with its temperatures."""

    def __init__(
        self, student_temperature: float = 1.0, teacher_temperature: float = 1.0, rescale: bool = False
    ) -> None:
        super().__init__()
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.rescale = rescale

    def forward(self, student: Tensor, teacher: Tensor, mask: Bool[Tensor, "B G"] | None = None) -> Float[Tensor, ""]:
        return kl_distillation(student, teacher, self.student_temperature, self.teacher_temperature, self.rescale, mask)


class RewardDistillation(nn.Module):
    """LLM-Embedder's loss: InfoNCE on the first candidate plus distillation of the rewards of all of them.

    A term that is the only one with a weight above 0 enters with weight 1.

    Args:
        mode: "stabilised" against the whole batch, or "kl" within the query's own candidates.
        contrastive_weight: of InfoNCE.
        distillation_weight: of the distillation.
        temperature: of all scores.
        student_temperature: further divides the student's scores in mode "kl".
        teacher_temperature: of the rewards in mode "kl"; 0.1 in the paper's chat and language-modelling tasks.
    """

    def __init__(
        self,
        mode: Literal["stabilised", "kl"] = "stabilised",
        contrastive_weight: float = 0.2,
        distillation_weight: float = 1.0,
        temperature: float = 0.01,
        student_temperature: float = 1.0,
        teacher_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if min(contrastive_weight, distillation_weight) <= 0:
            contrastive_weight, distillation_weight = float(contrastive_weight > 0), float(distillation_weight > 0)
        self.mode, self.temperature = mode, temperature
        self.contrastive_weight, self.distillation_weight = contrastive_weight, distillation_weight
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature

    def forward(
        self,
        scores: Float[Tensor, "B M"],
        own: Int[Tensor, "B G"],
        teacher: Float[Tensor, "B G"],
        weight: Weight = None,
    ) -> Float[Tensor, ""]:
        """Arguments as in `stabilised_distillation`."""
        loss = scores.new_zeros((), dtype=at_least_float32(scores).dtype)
        if self.contrastive_weight:
            first = own[:, :1]
            kept = torch.ones_like(scores, dtype=torch.bool) if weight is None else weight
            kept = kept.scatter(1, own, 1).scatter(1, first, 0)
            contrastive = info_nce(scores.gather(1, first), scores, kept, self.temperature)
            loss = loss + self.contrastive_weight * contrastive
        if self.distillation_weight and self.mode == "stabilised":
            distilled = stabilised_distillation(scores, own, teacher, weight, self.temperature)
            loss = loss + self.distillation_weight * distilled
        elif self.distillation_weight:
            student = at_least_float32(scores).gather(1, own) / self.temperature
            distilled = kl_distillation(student, teacher, self.student_temperature, self.teacher_temperature)
            loss = loss + self.distillation_weight * distilled
        return loss
