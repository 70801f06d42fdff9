"""LEAF: a student learns the teacher's vectors themselves, without any negatives.

Source: Vujanic and Rueckstiess 2025 (arXiv 2509.12539).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.scores import at_least_float32

Distance = Literal["squared", "mse", "l2", "cosine"]


def embedding_regression(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], distance: Distance = "squared"
) -> Float[Tensor, ""]:
    """Distance between student and teacher vectors of the same texts, the mean over texts.

    Normalise the student beforehand where the teacher's vectors are unit-norm; "squared" is then within 0 and 4, and
    twice "cosine".

    Args:
        student: with gradient.
        teacher: constants.
        distance: "squared": ||y - t||^2, the paper's; "mse": that over D, whose gradient is D times smaller; "l2":
            ||y - t||; "cosine": 1 - cos(y, t).
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher).detach()
    if distance == "cosine":
        return (1 - torch.cosine_similarity(student, teacher)).mean()
    if distance == "l2":
        return torch.linalg.vector_norm(student - teacher, dim=1).mean()
    squared = (student - teacher).square()
    return squared.mean() if distance == "mse" else squared.sum(1).mean()


class EmbeddingRegression(nn.Module):
    """`embedding_regression` with its distance."""

    def __init__(self, distance: Distance = "squared") -> None:
        super().__init__()
        self.distance: Distance = distance

    def forward(self, student: Tensor, teacher: Tensor) -> Float[Tensor, ""]:
        return embedding_regression(student, teacher, self.distance)
