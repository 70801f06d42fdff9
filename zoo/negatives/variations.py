"""Generated variations of an image: how much they vary, which are kept, how siblings are drawn.

Source: Generative Negative Mining, Sahin et al. 2024 (arXiv 2311.03964), and its official implementation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Integer, Num, UInt8


def image_variation_area(images: UInt8[np.ndarray, "V H W C"], threshold: float = 10.0) -> float:
    r"""Percentage of the pixels in which siblings differ; 0 for identical images.

    $$100 \cdot \mathrm{mean}_p\, \big[\mathrm{mean}_c\, \mathrm{sd}_v(x_{vpc}) > \theta\big]$$

    with the population standard deviation over the V siblings.

    Args:
        images: the variations of one object.
        threshold: $\theta$, in the values 0 to 255 of a pixel.
    """
    return 100.0 * float((images.std(0, dtype=np.float64).mean(2) > threshold).mean())


def keep_variations(
    match_score: Float[np.ndarray, " N"],
    variation_area: Float[np.ndarray, " N"],
    min_match: float = 0.0,
    min_area: float = 14.0,
) -> Bool[np.ndarray, " N"]:
    """Which variations fit their captions and differ from their siblings; both thresholds are strict.

    Args:
        match_score: mean image-text matching score of a variation and its captions.
        variation_area: `image_variation_area` of the variation and its siblings.
        min_match: threshold of the first.
        min_area: threshold of the second, in percent.
    """
    return (match_score > min_match) & (variation_area > min_area)


def sibling_probabilities(
    match_score: Num[np.ndarray, " N"], group: Integer[np.ndarray, " N"], epsilon: float = 0.5
) -> Float[np.ndarray, " N"]:
    r"""Probability of each variation within its group; a group's sum to 1.

    $$P(v) = \frac{m_v - \min_u m_u + \epsilon}{\sum_w (m_w - \min_u m_u + \epsilon)}$$

    Args:
        match_score: m, equal scores for a uniform draw.
        group: which variations are siblings.
        epsilon: $\epsilon$, above 0, so that the lowest score keeps a chance.
    """
    _, member = np.unique(group, return_inverse=True)
    lowest = np.full(member.max(initial=-1) + 1, np.inf)
    np.minimum.at(lowest, member, match_score)
    weight = match_score - lowest[member] + epsilon
    return weight / np.bincount(member, weight, len(lowest))[member]
