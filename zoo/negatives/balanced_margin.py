"""Balanced margin sampling: (positive, negative) pairs spread evenly over the teacher's margin.

Source: Hofstätter et al., SIGIR 2021 (arXiv 2104.06967), section 3.2.
"""

from __future__ import annotations

import numpy as np


def margin_bins(margins: np.ndarray, n_bins: int = 10) -> np.ndarray:
    """Bin of each margin between the least and the largest of its row: min(floor((m - min) / width), n_bins - 1).

    Args:
        margins: teacher's score of the positive minus that of the negative, for each candidate pair of each query
            `[..., R]`; NaN pads.
        n_bins: bins of equal width; a row of equal margins is all in bin 0.

    Returns:
        Bin numbers `[..., R]`, -1 at padding.
    """
    present = ~np.isnan(margins)
    low = np.where(present, margins, np.inf).min(-1, keepdims=True, initial=np.inf)
    high = np.where(present, margins, -np.inf).max(-1, keepdims=True, initial=-np.inf)
    width = np.subtract(high, low, out=np.ones(low.shape), where=high > low) / n_bins
    above = np.subtract(margins, low, out=np.zeros(margins.shape), where=present)
    return np.where(present, np.minimum(np.floor(above / width), n_bins - 1), -1).astype(np.int64)


class BalancedMarginPairs:
    """Draws pairs of a query uniformly over its non-empty margin bins, then uniformly within the bin.

    Args:
        margins: `[Q, R]`, NaN padded, as in `margin_bins`.
        n_bins: h of the paper.
    """

    def __init__(self, margins: np.ndarray, n_bins: int = 10) -> None:
        self.n_bins = n_bins
        self.bins = margin_bins(margins, n_bins)

    @property
    def queries(self) -> np.ndarray:
        """Queries that have at least two pairs; the paper drops the others."""
        return np.flatnonzero((self.bins >= 0).sum(1) >= 2)

    def draw(self, queries: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One pair for each of `queries`, as a position in its row of margins `[B]`; -1 for a query without pairs."""
        bins = self.bins[queries]
        filled = (bins[:, :, None] == np.arange(self.n_bins)).any(1)
        chosen = np.where(filled, rng.random(filled.shape), -1).argmax(1)
        inside = bins == chosen[:, None]
        drawn = np.where(inside, rng.random(bins.shape), -1).argmax(1)
        return np.where(inside.any(1), drawn, -1)
