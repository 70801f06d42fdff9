"""Balanced margin sampling: bins by definition, draws uniform over the non-empty ones."""

import numpy as np
from scipy.stats import chisquare

from zoo.negatives.balanced_margin import BalancedMarginPairs, margin_bins


def test_bins_have_equal_width_between_each_rows_extremes():
    margins = np.array([[0.0, 10.0, 0.99, 1.0, 9.99, np.nan], [5.0, 5.0, np.nan, 5.0, 5.0, 5.0], [np.nan] * 6])
    want = [[0, 9, 0, 1, 9, -1], [0, 0, -1, 0, 0, 0], [-1] * 6]
    assert margin_bins(margins).tolist() == want
    assert margin_bins(margins[0, :3], 2).tolist() == [0, 1, 0]
    assert margin_bins(np.empty((2, 0))).shape == (2, 0)


def test_draws_are_uniform_over_filled_bins_and_then_within_the_bin():
    margins = np.array([*np.linspace(0, 0.9, 30), 5.5, *np.linspace(9.1, 10, 5), np.nan])
    sampler = BalancedMarginPairs(np.stack([margins[::-1], margins]))
    drawn = sampler.draw(np.ones(9000, int), np.random.default_rng(0))
    bins = margin_bins(margins)[drawn]
    counts = np.bincount(bins, minlength=10)
    assert chisquare(counts[[0, 5, 9]]).pvalue > 1e-3 and counts.sum() == counts[[0, 5, 9]].sum()
    assert chisquare(np.bincount(drawn)[:30]).pvalue > 1e-3


def test_draws_depend_on_the_generator_and_skip_what_has_no_pair():
    margins = np.array([[1.0, 2.0, 4.0], [1.0, np.nan, np.nan], [np.nan] * 3])
    sampler = BalancedMarginPairs(margins)
    assert sampler.queries.tolist() == [0]
    queries = np.arange(3).repeat(20)
    one, two = (sampler.draw(queries, np.random.default_rng(0)) for _ in range(2))
    assert np.array_equal(one, two) and set(one[:20]) == {0, 1, 2} and set(one[20:40]) == {0} and set(one[40:]) == {-1}
