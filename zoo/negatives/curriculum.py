"""NGAME's curriculum: batches made of ever larger clusters."""

from __future__ import annotations

from collections.abc import Sequence


def cluster_size(epoch: int, double_at: Sequence[int]) -> int:
    """Points per cluster at an epoch (from 0): 1, i.e. random batches, doubled at each epoch of `double_at`.

    Source: Dahiya et al. 2023 (arXiv 2207.04452), code Extreme-classification/ngame. A new size takes effect when
    clusters are next computed.
    """
    return 2 ** sum(start <= epoch for start in double_at)
