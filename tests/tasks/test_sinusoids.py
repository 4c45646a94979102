"""Sinusoid regression."""

import numpy as np
import pytest
import torch

from distmeta import Sinusoids
from distmeta.types import TaskRef


def test_sinusoids_have_the_papers_ranges():
    """A in [0.1, 5], b in [0, pi], x in [-5, 5]; read back by y = A cos b sin x - A sin b cos x."""
    tasks = Sinusoids(shots=10, queries=10)
    amplitudes, phases, xs = [], [], []
    for index in range(400):
        support_x, support_y, query_x, query_y = tasks.episode(TaskRef("meta_train", 0, index), 0).to(
            torch.device("cpu"), torch.float64
        )
        x, y = torch.cat([support_x, query_x]), torch.cat([support_y, query_y])
        found = torch.linalg.lstsq(torch.cat([x.sin(), -x.cos()], 1), y)
        a, b = found.solution.flatten().tolist()
        residual = torch.cat([x.sin(), -x.cos()], 1) @ found.solution - y
        assert float(residual.abs().max()) < 1e-5
        amplitudes.append(np.hypot(a, b))
        phases.append(np.arctan2(b, a))
        xs += x.flatten().tolist()
    for values, low, high in ((amplitudes, 0.1, 5.0), (phases, 0.0, np.pi), (xs, -5.0, 5.0)):
        assert low - 1e-4 <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high + 1e-4
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.06 * (high - low))


def test_more_queries_leave_the_support_set_as_it_was():
    few, many = (Sinusoids(shots=4, queries=q).episode(TaskRef("meta_test", 0, 0), 0) for q in (1, 50))
    assert torch.equal(few.support_x, many.support_x)
    assert torch.equal(few.support_y, many.support_y)
