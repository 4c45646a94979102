"""The interval against its formula; the pictures by their pixels: written, readable, and without global state."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distmeta.figures.run_curves import _limit_to_bulk, plot_curves, smooth

TRAIN, VALIDATION, TRUTH = (0x2F, 0x6F, 0xA7), (0xC8, 0x55, 0x3D), (0x8A, 0x8F, 0x98)


def _rows(steps: int, *, every: int = 10, accuracy: bool = True) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(steps):
        row = {"step": step, "time": float(step), "train/loss": 1.6 / (1 + step / 20) + 0.05 * rng.normal()}
        if accuracy:
            row["train/accuracy"] = 1 - 0.8 / (1 + step / 20)
        rows.append(row)
        if step % every == every - 1:
            measured = {"step": step, "time": float(step), "validation/loss": 1.7 / (1 + step / 20)}
            if accuracy:
                measured |= {"validation/accuracy": 0.9 - 0.7 / (1 + step / 20), "validation/accuracy_ci95": 0.02}
            rows.append(measured)
    return rows


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def _has(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels - colour).sum(axis=-1) < 30).sum() > 20)


def test_curves_show_training_and_validation_in_two_panels(tmp_path: Path) -> None:
    path = tmp_path / "plots" / "curves.png"
    assert plot_curves(_rows(300), path, title="a run") == path
    pixels = _pixels(path)
    for half in np.array_split(pixels, 2, axis=1):
        assert _has(half, TRAIN)
        assert _has(half, VALIDATION)


def test_regression_runs_have_one_panel(tmp_path: Path) -> None:
    two = _pixels(plot_curves(_rows(50), tmp_path / "two.png", title="classification"))
    one = _pixels(plot_curves(_rows(50, accuracy=False), tmp_path / "one.png", title="regression"))
    assert one.shape[1] < 0.6 * two.shape[1]
    assert _has(one, TRAIN)
    assert _has(one, VALIDATION)


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_short_runs_are_drawn(steps: int, tmp_path: Path) -> None:
    assert _has(_pixels(plot_curves(_rows(steps, every=1), tmp_path / "short.png", title="short")), TRAIN)


def test_rows_without_validation_with_gaps_and_with_nan_are_drawn(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": step, "time": 0.0, "train/loss": 1.0 / (step + 1)} for step in range(40)]
    rows[5]["train/loss"] = math.nan
    rows[6]["train/loss"] = math.inf
    del rows[7]["train/loss"]
    pixels = _pixels(plot_curves(rows, tmp_path / "gaps.png", title="gaps"))
    assert _has(pixels, TRAIN)
    assert not _has(pixels, VALIDATION)


def test_a_run_without_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_curves([{"step": 0, "time": 0.0, "tasks_per_s": 3.0}], tmp_path / "none.png", title="none")


def test_smoothing_keeps_a_constant_and_ignores_one_exploded_step() -> None:
    steps, values = np.arange(500.0), np.full(500, 0.5)
    values[250] = 1e6
    at, smoothed = smooth(steps, values)
    assert (at[0], at[-1]) == (0, 499)
    np.testing.assert_allclose(smoothed, 0.5)


def test_one_exploded_step_does_not_flatten_the_picture() -> None:
    class Axes:
        limits: tuple[float, float] | None = None

        def set_ylim(self, low: float, high: float) -> None:
            self.limits = (low, high)

    calm, exploded = Axes(), Axes()
    values = list(np.linspace(0.5, 1.5, 200))
    _limit_to_bulk(calm, values)  # type: ignore[arg-type]
    _limit_to_bulk(exploded, [*values, 60.0])  # type: ignore[arg-type]
    assert calm.limits is None
    assert exploded.limits is not None
    assert exploded.limits[1] < 2.0


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    code = """
import sys, pathlib
from distmeta.figures.run_curves import plot_curves
assert "matplotlib" not in sys.modules
plot_curves([{"step": 0, "time": 0.0, "train/loss": 1.0}], pathlib.Path("a.png"), title="t")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)
