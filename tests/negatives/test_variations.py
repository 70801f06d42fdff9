"""Generated variations: area, filter, probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.negatives.variations import image_variation_area, keep_variations, sibling_probabilities


def test_identical_siblings_do_not_vary():
    one = np.random.default_rng(0).integers(0, 256, (1, 5, 4, 3), np.uint8)
    assert image_variation_area(np.repeat(one, 3, 0)) == 0
    assert image_variation_area(one) == 0


def test_area_is_the_share_of_pixels_that_differ_enough():
    images = np.zeros((2, 4, 5, 3), np.uint8)
    images[1, :2, :, :] = 20  # a population deviation of 10, which is not above 10
    assert image_variation_area(images) == 0
    images[1, 0] = 21
    assert image_variation_area(images) == pytest.approx(25)
    images[1, 1, 0] = (63, 0, 0)  # the mean over channels decides: 31.5 / 3
    assert image_variation_area(images) == pytest.approx(30)
    assert image_variation_area(images, 10.5) == 0


def test_filter_is_strict_on_both_sides():
    kept = keep_variations(np.array([0.0, 0.1, 0.1, -1.0]), np.array([20.0, 14.0, 14.1, 20.0]))
    assert kept.tolist() == [False, False, True, False]


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 5))
def test_probabilities_of_each_group(seed, n, groups):
    rng = np.random.default_rng(seed)
    score, group = rng.normal(size=n), rng.integers(0, groups, n) * 7
    got = sibling_probabilities(score, group)
    for g in np.unique(group):
        own = np.flatnonzero(group == g)
        weights = [score[i] - min(score[own]) + 0.5 for i in own]
        assert got[own].sum() == pytest.approx(1)
        assert got[own].tolist() == pytest.approx([w / sum(weights) for w in weights])
        assert got[own].min() == pytest.approx(0.5 / sum(weights))


def test_a_single_variation_is_certain_and_equal_scores_are_uniform():
    assert sibling_probabilities(np.array([-3.0, 1, 1]), np.array([5, 2, 2])).tolist() == [1, 0.5, 0.5]
