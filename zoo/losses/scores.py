"""What every loss on scores shares: precision, masks and weights, and sums over negatives."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Weight = Bool[Tensor, "B M"] | Float[Tensor, "B M"] | None


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it came in half precision; wider types stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalize(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Rows of `x` on the unit sphere, in at least float32."""
    return torch.nn.functional.normalize(at_least_float32(x), dim=-1)


def negative_logits(
    negatives: Float[Tensor, "B M"], weight: Weight, temperature: float | Tensor
) -> Float[Tensor, "B M"]:
    """Scores over temperature, plus log-weight; what counts for nothing gets the lowest finite value.

    The mask comes after the division, as the gradient of a learned temperature would be NaN otherwise, and is finite,
    as a row without any negative would have a NaN gradient otherwise.

    Args:
        negatives: scores of the negatives.
        weight: False (or 0) drops a negative; a float weight multiplies its term in the sum of exponentials.
        temperature: positive; a tensor if learned.
    """
    logits = at_least_float32(negatives) / temperature
    if weight is None:
        return logits
    lowest = torch.finfo(logits.dtype).min
    if weight.dtype == torch.bool:
        return logits.masked_fill_(~weight, lowest)
    return torch.where(weight > 0, logits + weight.clamp_min(torch.finfo(logits.dtype).tiny).log(), lowest)


def logits(
    positives: Float[Tensor, "B P"], negatives: Float[Tensor, "B M"], weight: Weight, temperature: float | Tensor
) -> Float[Tensor, "B N"]:
    """Positives, then negatives, over temperature: what a cross entropy with target 0 would read (N = P + M)."""
    return torch.cat([at_least_float32(positives) / temperature, negative_logits(negatives, weight, temperature)], 1)


def log_sum_negatives(
    negatives: Float[Tensor, "B M"], weight: Weight, temperature: float | Tensor
) -> Float[Tensor, "B 1"]:
    """log of the (weighted) sum of exp(negatives / temperature) per row; the lowest finite value where all are masked."""
    masked = weight is None or weight.dtype == torch.bool
    scalar = not isinstance(temperature, Tensor) or temperature.dim() == 0
    if masked and scalar and negatives.shape[1] and not torch.compiler.is_compiling():
        return _LogSumExp.apply(at_least_float32(negatives), weight, temperature)  # type: ignore[return-value]
    return negative_logits(negatives, weight, temperature).logsumexp(1, keepdim=True)


class _LogSumExp(torch.autograd.Function):
    """`negative_logits` and their logsumexp, which autograd would walk through the matrix three times as often for."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor | None, temperature: float | Tensor) -> Tensor:
        logits = negative_logits(scores, mask, temperature)
        peak = logits.amax(1, keepdim=True)
        mass = logits.sub_(peak).exp_().sum(1, keepdim=True)
        if any(ctx.needs_input_grad):
            # A row without negatives is all ones here, and has no gradient.
            factor = torch.where(peak > torch.finfo(peak.dtype).min, 1 / (mass * temperature), 0.0)
            ctx.save_for_backward(logits, factor, scores, torch.as_tensor(temperature))
        return peak + mass.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        exponentials, factor, scores, temperature = ctx.saved_tensors
        d_scores = exponentials * (factor * grads[0])
        d_temperature = None
        if ctx.needs_input_grad[2]:
            d_temperature = -torch.dot(d_scores.flatten(), scores.flatten()) / temperature
        return d_scores, None, d_temperature


def zero_where_all_masked(loss: Float[Tensor, "B P"], weight: Weight) -> Float[Tensor, "B P"]:
    """`loss`, but 0 (with no gradient) in rows of which the weight keeps nothing."""
    return loss if weight is None else loss.where((weight > 0).any(1, keepdim=True), 0.0)
