"""Differentiable sorting networks: every comparison swaps its two inputs in part, and the order comes out as probabilities.

Source: Petersen et al., "Monotonic Differentiable Sorting Networks", ICLR 2022 (arXiv 2203.09630): Cauchy distribution.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.losses.scores import at_least_float32

Network = Literal["odd_even", "bitonic"]


def comparators(size: int, network: Network = "odd_even") -> list[list[tuple[int, int]]]:
    """Layers of a sorting network: disjoint pairs (low, high) of wires; the smaller input leaves on `low`.

    The network of fewer wires is the first `depth` layers of this one without the comparators that reach beyond them.
    "bitonic" is the form whose comparators all point one way. Where the size is no power of two, it is the next larger
    network with its last wires cut off.
    """
    if network == "odd_even":
        return [[(i, i + 1) for i in range(layer % 2, size - 1, 2)] for layer in range(size)]
    layers = []
    for block in range(1, (size - 1).bit_length() + 1):
        # The two sorted halves of each block of 2^block wires are merged: first mirrored, then at ever shorter distance.
        flips = [2**block - 1, *(2**i for i in range(block - 2, -1, -1))]
        layers += [[(i, i ^ flip) for i in range(size) if i < i ^ flip < size] for flip in flips]
    return layers


@lru_cache(maxsize=64)
def _partners(size: int, network: Network) -> Int[Tensor, "L M"]:
    """For each layer the wire that each wire is compared with; itself if none."""
    layers = comparators(size, network)
    table = torch.arange(size).repeat(len(layers), 1)
    for row, layer in zip(table, layers, strict=True):
        for low, high in layer:
            row[low], row[high] = high, low
    return table


def depth(size: Int[Tensor, " B"], network: Network = "odd_even") -> Int[Tensor, " B"]:
    """How many layers `comparators` has for so many wires."""
    if network == "odd_even":
        return size
    blocks = torch.frexp((size - 1).double()).exponent.long()  # the bit length of size - 1
    return blocks * (blocks + 1) // 2


class SoftSort(NamedTuple):
    """What `soft_sort` returns.

    Attributes:
        values: `[B, M]`, softly sorted, ascending.
        partners: per layer, the wire that each wire is compared with (itself if none).
        swaps: per layer, the part of each wire's content that it exchanges with its partner, `[B, M]`.
    """

    values: Float[Tensor, "B M"]
    partners: Int[Tensor, "L M"]
    swaps: list[Float[Tensor, "B M"]]

    def expect(self, of_rank: Float[Tensor, "*b M K"]) -> Float[Tensor, "B M K"]:
        """For each input the expectation of functions of the rank at which it ends (rank 0 = smallest).

        Costs O(M K) a layer: the matrix of permutation probabilities is never built.
        """
        for partner, swap in zip(self.partners.flip(0), reversed(self.swaps), strict=True):
            of_rank = of_rank + swap[..., None] * (of_rank[..., partner, :] - of_rank)
        return of_rank.expand(*self.values.shape, -1)

    def permutation(self) -> Float[Tensor, "B M M"]:
        """P[b, m, r]: the probability that input m ends at rank r. Its rows and columns sum to 1."""
        return self.expect(torch.eye(self.values.shape[1], dtype=self.values.dtype, device=self.values.device))


def soft_sort(
    x: Float[Tensor, "B M"],
    steepness: float = 1.0,
    network: Network = "odd_even",
    sizes: Int[Tensor, " B"] | None = None,
) -> SoftSort:
    r"""Sort each row in ascending order with a soft sorting network.

    A comparator of wires $a$ (low) and $b$ (high) keeps its inputs with probability $f = \frac12 + \frac1\pi
    \arctan(s (x_b - x_a))$: $x_a \leftarrow f x_a + (1-f) x_b$, $x_b \leftarrow (1-f) x_a + f x_b$. For $s$ to
    infinity this is sorting.

    Args:
        x: scores.
        steepness: $s$.
        network: "odd_even" has M layers, "bitonic" about half of the square of log2(M).
        sizes: only the first so many entries of a row take part, in a network of that size; the others stay where they
            are. None sorts all.
    """
    x = at_least_float32(x)
    partners = _partners(x.shape[1], network).to(x.device)
    wires = torch.arange(x.shape[1], device=x.device)
    layers = None if sizes is None else depth(sizes, network)[:, None]
    swaps = []
    for number, partner in enumerate(partners):
        difference = x[:, partner] - x
        # Seen from either wire: how far the two are in order (negative: they are not).
        order = torch.where(partner >= wires, difference, -difference)
        swap = 0.5 - torch.atan(steepness * order) / math.pi
        if sizes is not None and layers is not None:
            swap = swap.where((torch.maximum(partner, wires) < sizes[:, None]) & (number < layers), 0.0)
        x = x + swap * difference
        swaps.append(swap)
    return SoftSort(x, partners, swaps)
