"""Medians, quartiles and ratios, on made-up repetitions."""

from __future__ import annotations

import pytest

from distmeta.bench.statistics import median, paired_ratio, quartiles, ratio_of_medians


def test_quartiles_are_interpolated():
    assert quartiles([4, 1, 3, 2]) == (1.75, 2.5, 3.25)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert median([3, 1, 100]) == 3


def test_an_outlier_moves_a_mean_and_no_median():
    assert ratio_of_medians([10, 10, 10, 10, 1000], [5, 5, 5, 5, 5])[0] == 2


def test_the_interval_of_a_ratio_has_it_inside_and_is_the_same_each_time():
    top, bottom = [10.0, 11.0, 9.5, 10.4, 10.1, 9.8], [5.2, 4.9, 5.0, 5.1, 4.7, 5.4]
    ratio, low, high = ratio_of_medians(top, bottom)
    assert ratio == pytest.approx(10.05 / 5.05)
    assert 9.5 / 5.4 < low < ratio < high < 11 / 4.7
    assert ratio_of_medians(top, bottom) == (ratio, low, high)


def test_the_two_sides_are_drawn_apart():
    """With one generator for both, equal repetitions gave the ratio 1 in every resample: an interval of no width."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    ratio, low, high = ratio_of_medians(values, values)
    assert ratio == 1
    assert low < 0.9 < 1.1 < high


def test_noise_of_whole_rounds_cancels_in_pairs():
    noise = [1.0, 3.0, 0.5, 8.0, 2.0]
    assert paired_ratio([2 * x for x in noise], noise) == (2, 2, 2)
    _, low, high = ratio_of_medians([2 * x for x in noise], noise)
    assert low < 1 < 4 < high
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])
