"""The distribution of an ensemble: against samples, and against its one member."""

import math

import pytest
import torch

from distmeta.learners.mixture import Mixture
from distmeta.learners.predictive import Bars, Gaussian

T = torch.float64


def members():
    locations, scales = torch.tensor([[-2.0], [0.5], [3.0]], dtype=T), torch.tensor([[0.3], [1.0], [2.0]], dtype=T)
    return [Gaussian(m[None], s[None]) for m, s in zip(locations, scales, strict=True)]


def test_moments_and_quantiles_are_those_of_samples():
    mixture = Mixture(members())
    generator = torch.Generator().manual_seed(0)
    parts = [m.mean + m.scale * torch.randn(200_000, 1, generator=generator, dtype=T) for m in members()]
    samples = torch.cat(parts)
    assert mixture.mean.item() == pytest.approx(samples.mean().item(), abs=0.01)
    assert mixture.scale.item() == pytest.approx(samples.std().item(), abs=0.01)
    for p in (0.01, 0.3, 0.5, 0.99):
        assert mixture.quantile(p).item() == pytest.approx(samples[:, 0].quantile(p).item(), abs=0.02)
        assert mixture.cdf(mixture.quantile(p)).item() == pytest.approx(p, abs=1e-9)


def test_its_density_integrates_to_one_and_is_the_slope_of_its_cdf():
    mixture, y = Mixture(members()), torch.linspace(-15, 15, 30_001, dtype=T)[:, None]
    density = mixture.log_prob(y).exp()
    assert float(density.sum() * 1e-3) == pytest.approx(1, abs=1e-6)
    slope = (mixture.cdf(y[2:]) - mixture.cdf(y[:-2])) / 2e-3
    torch.testing.assert_close(slope, density[1:-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("one", [members()[1], Bars.of(torch.randn(1, 20, dtype=T), 20)])
def test_a_mixture_of_one_is_that_one_also_moved(one):
    moved, expected = (d.moved(torch.tensor(5.0), torch.tensor(3.0)) for d in (Mixture([one, one]), one))
    for name in ("mean", "scale"):
        torch.testing.assert_close(getattr(moved, name), getattr(expected, name))
    torch.testing.assert_close(moved.quantile(0.9), expected.quantile(0.9))
    torch.testing.assert_close(moved.log_prob(torch.tensor([[6.0]], dtype=T)), expected.log_prob(torch.tensor([[6.0]])))


@pytest.mark.parametrize("kind", [Gaussian, Bars, Mixture])
def test_parts_are_joined_to_the_whole(kind):
    raw = torch.randn(7, 12, dtype=T)
    whole = Gaussian.of(raw, 0.1) if kind is Gaussian else Bars.of(raw, 6).moved(raw[:, :2], raw[:, 2:4].exp())
    if kind is Mixture:
        whole = Mixture([whole, whole.moved(torch.tensor(1.0), torch.tensor(2.0))])
    joined = whole.row(slice(0, 3)).joined([whole.row(slice(3, 6)), whole.row(slice(6, 7))])
    for p in (0.1, 0.5):
        assert torch.equal(joined.quantile(p), whole.quantile(p))
    assert torch.equal(whole.row(slice(0, 3)).joined([]).mean, whole.mean[:3])
    assert math.isfinite(float(joined.log_prob(whole.mean).sum()))
