"""Predictive distributions against their closed forms and against integrals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta.learners.predictive import Bars, Gaussian


def of_seed(kind, seed, d=2, bins=7):
    random = torch.Generator().manual_seed(seed)
    width = d * (2 if kind is Gaussian else bins)
    outputs = 2 * torch.randn(3, width, generator=random, dtype=torch.float64)
    return Gaussian.of(outputs, 0.01) if kind is Gaussian else Bars.of(outputs, bins)


GRID = torch.linspace(-40, 40, 800_001, dtype=torch.float64)


def on_grid(found, what):
    """``what`` of the first target of the first row, at every point of the grid."""
    one = found.row(slice(0, 1))
    values = [
        getattr(one, what)(part[:, None, None].expand(-1, 1, 2).reshape(-1, 1, 2))[:, 0, 0]
        for part in GRID.split(100_000)
        if (one := _repeated(found, len(part)))
    ]
    return torch.cat(values)


def _repeated(found, count):
    if isinstance(found, Gaussian):
        return Gaussian(*(part[:1, None].expand(1, count, 2).transpose(0, 1) for part in (found.mean, found.scale)))
    weights = found.log_weights[:1, None].expand(1, count, *found.log_weights.shape[1:]).transpose(0, 1)
    return Bars(weights, found.shift, found.spread)


@pytest.mark.parametrize("kind", [Gaussian, Bars])
def test_a_density_integrates_to_one_and_to_its_mean_scale_and_cumulative_probabilities(kind):
    found = of_seed(kind, 0)
    density, step = on_grid(found, "log_prob").exp(), float(GRID[1] - GRID[0])
    assert float(density.sum() * step) == pytest.approx(1, abs=1e-3)
    mean = float((density * GRID).sum() * step)
    assert mean == pytest.approx(float(found.mean[0, 0]), abs=1e-3)
    scale = math.sqrt(float((density * (GRID - mean).square()).sum() * step))
    assert scale == pytest.approx(float(found.scale[0, 0]), abs=1e-3)
    assert float((density.cumsum(0) * step - on_grid(found, "cdf")).abs().max()) < 1e-3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), p=st.floats(0.001, 0.999), kind=st.sampled_from([Gaussian, Bars]))
def test_quantiles_invert_cumulative_probabilities_also_after_a_move(seed, p, kind):
    shift, spread = torch.tensor(3.0, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    for found in (of_seed(kind, seed), of_seed(kind, seed).moved(shift, spread)):
        np.testing.assert_allclose(found.cdf(found.quantile(p)), p, atol=1e-5)


@pytest.mark.parametrize("kind", [Gaussian, Bars])
def test_a_moved_distribution_is_that_of_the_moved_number(kind):
    found, y = of_seed(kind, 1), torch.randn(3, 2, dtype=torch.float64)
    moved = found.moved(torch.full((3, 2), 5.0), torch.full((3, 2), 4.0))
    torch.testing.assert_close(moved.mean, 5 + 4 * found.mean, check_dtype=False)
    torch.testing.assert_close(moved.scale, 4 * found.scale, check_dtype=False)
    torch.testing.assert_close(moved.log_prob(5 + 4 * y), found.log_prob(y) - math.log(4), check_dtype=False)
    torch.testing.assert_close(moved.row(0).log_prob(y[0]), moved.log_prob(y)[0])


def test_a_normal_distribution_is_torchs():
    found, y = of_seed(Gaussian, 2), torch.randn(3, 2, dtype=torch.float64)
    theirs = torch.distributions.Normal(found.mean, found.scale)
    torch.testing.assert_close(found.log_prob(y), theirs.log_prob(y))
    torch.testing.assert_close(found.quantile(0.9), theirs.icdf(torch.tensor(0.9, dtype=torch.float64)))


@pytest.mark.parametrize("kind", [Gaussian, Bars])
def test_a_likelihood_has_a_gradient_for_every_output(kind):
    outputs = torch.randn(4, 2 if kind is Gaussian else 9, requires_grad=True)
    found = Gaussian.of(outputs, 0.01) if kind is Gaussian else Bars.of(outputs, 9)
    (gradient,) = torch.autograd.grad(found.log_prob(torch.linspace(-9, 9, 4)[:, None]).sum(), outputs)
    assert bool((gradient != 0).all())
    assert bool(torch.isfinite(gradient).all())
