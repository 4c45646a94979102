"""Small charts as SVG inside a page: sharp at every size, in the page's own colours, also in the dark and in print.

Colours are classes (``c0`` to ``c5``) that the page's style sheet defines, most of them with dashes of their own: lines
differ by more than colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

COLOURS = 6
_WIDTH, _HEIGHT, _LOW = 440, 270, 190  # a histogram is lower
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 14, 42

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line, or the points of one kind.

    Args:
        name: in the legend; nothing is listed for the empty name.
        x: ``[n]``.
        y: ``[n]``.
        colour: 0 to 5.
        form: ``"line"``; ``"faint"`` for raw values behind a smoothed line; ``"points"``; ``"rings"``; ``"both"``.
        half_width: ``[n]`` of the interval around ``y``, drawn as a band.
    """

    name: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    colour: int = 0
    form: Literal["line", "faint", "points", "rings", "both"] = "line"
    half_width: npt.ArrayLike | None = None


def chart(
    series: Sequence[Series], *, x_label: str, y_label: str, text: str, percent: bool = False, whole: bool = False
) -> Markup:
    """Lines and points over a common axis, with a legend.

    Args:
        series: what is drawn, the first at the bottom; values that are not finite are left out.
        x_label: of the axis.
        y_label: of the axis.
        text: what the chart shows, with numbers, for who cannot see it.
        percent: whether ``y`` are fractions, to be written in per cent and kept within 0 to 1.
        whole: whether ``x`` are whole numbers.

    Example:
        >>> drawn = chart([Series("loss", [0, 1], [1.0, 0.5])], x_label="step", y_label="<loss>", text="falls")
        >>> str(drawn[:43]), "&lt;loss&gt;" in drawn
        ('<svg class="chart" viewBox="0 0 440 270" ro', True)
    """
    drawn = [_Drawn.of(one) for one in series]
    drawn = [one for one in drawn if one.x.size]
    x_low, x_high = _range([one.x for one in drawn])
    y_low, y_high = _y_limits(drawn, percent)
    across = _Axis(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    up = _Axis(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_grid(across, up, percent, x_whole=whole), _labels(x_label, y_label)]
    parts += [_shape(one, across, up) for one in drawn]
    body = Markup("").join(parts)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>{}').format(
        _WIDTH, _HEIGHT, text, body, _legend(series)
    )


def interval_bar(mean: float, half_width: float, *, chance: float | None, text: str) -> Markup:
    """A fraction from 0 to 1 with its interval on a scale of 0 to 100 %, and a mark where guessing is.

    Args:
        mean: the fraction.
        half_width: of its interval.
        chance: fraction that guessing reaches; ``None`` where that is not known.
        text: the same in words.
    """
    low, high = (min(1.0, max(0.0, end)) for end in (mean - half_width, mean + half_width))
    guess = Markup("")
    if chance is not None:
        guess = Markup('<line class="guess" x1="{0}" x2="{0}" y1="2" y2="16"/>').format(_n(4 + 192 * chance))
    return Markup(
        '<svg class="bar" viewBox="0 0 200 18" role="img" aria-label="{}"><line class="track" x1="4" x2="196" y1="9" '
        'y2="9"/>{}<line class="reach" x1="{}" x2="{}" y1="9" y2="9"/><circle class="dot" cx="{}" cy="9" r="4"/></svg>'
    ).format(text, guess, _n(4 + 192 * low), _n(4 + 192 * high), _n(4 + 192 * mean))


def histogram(values: npt.ArrayLike, *, x_label: str, text: str, percent: bool) -> Markup:
    """How many tasks have which value.

    Args:
        values: ``[tasks]``, finite.
        x_label: of the axis.
        text: the same in words.
        percent: whether the values are fractions.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = (0.0, 1.0) if percent else _range([array])
    bins = 20 if percent else max(5, min(20, int(math.sqrt(array.size)) + 1))
    counts, edges = np.histogram(array, bins=bins, range=(low, high))
    across = _Axis(low, high, _LEFT, _WIDTH - _RIGHT)
    up = _Axis(0.0, float(max(counts.max(), 1)) * 1.05, _LOW - _BOTTOM, _TOP)
    bars = Markup("").join(
        Markup('<rect class="c0 fill" x="{}" y="{}" width="{}" height="{}"/>').format(
            _n(across(left) + 1), _n(up(count)), _n(max(across(right) - across(left) - 2, 1)), _n(up(0) - up(count))
        )
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    )
    grid = _grid(across, up, False, x_percent=percent, whole=True)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        _WIDTH, _LOW, text, grid, _labels(x_label, "tasks", _LOW), bars
    )


def profile(values: npt.ArrayLike, limits: tuple[float, float], text: str) -> Markup:
    """The numbers of a vector as a small line.

    Args:
        values: ``[n]``.
        limits: lowest and highest number of all vectors that are drawn beside each other.
        text: the same in words.
    """
    array = np.asarray(values, dtype=np.float64)
    across = _Axis(0.0, max(array.size - 1.0, 1.0), 2, 62)
    up = _Axis(*limits, 42, 2)
    return Markup(
        '<svg class="profile" viewBox="0 0 64 44" role="img" aria-label="{}"><polyline class="c0" points="{}"/></svg>'
    ).format(text, _points(np.arange(array.size, dtype=np.float64), array, across, up))


@dataclass(frozen=True)
class _Drawn:
    x: Values
    y: Values
    half_width: Values | None
    series: Series

    @classmethod
    def of(cls, series: Series) -> _Drawn:
        x, y = (np.asarray(part, dtype=np.float64) for part in (series.x, series.y))
        kept = np.isfinite(x) & np.isfinite(y)
        half = None
        if series.half_width is not None:
            half = np.nan_to_num(np.asarray(series.half_width, dtype=np.float64)[kept], posinf=0.0)
        return cls(x[kept], y[kept], half, series)


@dataclass(frozen=True)
class _Axis:
    """A linear map of numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def ticks(self, most: int, *, whole: bool = False) -> list[float]:
        """Round numbers within the axis."""
        rough = (self.high - self.low) / most
        if not math.isfinite(rough) or rough <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
        step = max(step, 1.0) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _range(arrays: Sequence[Values]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(one) for one in arrays]) if arrays else np.zeros(1)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _y_limits(drawn: Sequence[_Drawn], percent: bool) -> tuple[float, float]:
    bulk = [one.y for one in drawn]
    bulk += [one.y + sign * one.half_width for one in drawn if one.half_width is not None for sign in (-1, 1)]
    low, high = _range(bulk)
    values = np.concatenate([one.y for one in drawn]) if drawn else np.zeros(1)
    if values.size >= 20:  # a single exploded step must not flatten the rest
        top = float(np.quantile(values, 0.99, method="lower"))
        if high > top + 2.0 * (top - low):
            high = top + 0.3 * (top - low)
    room = 0.05 * (high - low)
    floor = 0.0 if low >= 0 else -math.inf
    return max(low - room, floor), min(high + room, 1.0) if percent else high + room


def _grid(
    across: _Axis, up: _Axis, percent: bool, *, x_percent: bool = False, whole: bool = False, x_whole: bool = False
) -> Markup:
    lines = Markup("").join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{}" class="end">{}</text>'
        ).format(_LEFT, _WIDTH - _RIGHT, _LEFT - 7, _n(up(tick) + 4), _number(tick, percent), y=_n(up(tick)))
        for tick in up.ticks(6 if up.start > _LOW else 4, whole=whole)
    )
    marks = Markup("").join(
        Markup('<text x="{}" y="{}" class="mid">{}</text>').format(
            _n(across(tick)), _n(up.start + 17), _number(tick, x_percent)
        )
        for tick in across.ticks(6, whole=x_whole)
    )
    base = Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
        _LEFT, _WIDTH - _RIGHT, y=_n(up.start)
    )
    return lines + marks + base


def _labels(x: str, y: str, height: int = _HEIGHT) -> Markup:
    return Markup(
        '<text class="mid name" x="{}" y="{}">{}</text><text class="mid name" transform="translate(12 {}) rotate(-90)">'
        "{}</text>"
    ).format((_LEFT + _WIDTH - _RIGHT) / 2, height - 6, x, (_TOP + height - _BOTTOM) / 2, y)


def _shape(one: _Drawn, across: _Axis, up: _Axis) -> Markup:
    colour, form = f"c{one.series.colour % COLOURS}", one.series.form
    order = np.argsort(one.x, kind="stable")
    x, y = one.x[order], np.clip(one.y[order], up.low, up.high)
    parts = []
    if one.half_width is not None and x.size > 1:
        half = one.half_width[order]
        there = _points(x, np.clip(one.y[order] + half, up.low, up.high), across, up)
        back = _points(x[::-1], np.clip(one.y[order] - half, up.low, up.high)[::-1], across, up)
        parts.append(Markup('<polygon class="{} band" points="{} {}"/>').format(colour, there, back))
    if form not in ("points", "rings") and x.size > 1:
        faint = " faint" if form == "faint" else ""
        parts.append(Markup('<polyline class="{}{}" points="{}"/>').format(colour, faint, _points(x, y, across, up)))
    if form in ("points", "rings", "both") or x.size == 1:
        look = f"{colour} {'ring' if form == 'rings' else 'fill'}"
        parts += [
            Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>').format(look, _n(across(a)), _n(up(b)))
            for a, b in zip(x, y, strict=True)
        ]
    return Markup("").join(parts)


def _legend(series: Sequence[Series]) -> Markup:
    named = [one for one in series if one.name]
    if not named:
        return Markup("")
    keys = Markup("").join(Markup("<li>{}{}</li>").format(_key(one), one.name) for one in named)
    return Markup('<ul class="legend">{}</ul>').format(keys)


def _key(one: Series) -> Markup:
    colour, form = f"c{one.colour % COLOURS}", one.form
    line, dot = Markup(""), Markup("")
    if form not in ("points", "rings"):
        line = Markup('<line class="{}" x1="1" x2="25" y1="6" y2="6"/>').format(colour)
    if form in ("points", "rings", "both"):
        look = f"{colour} {'ring' if form == 'rings' else 'fill'}"
        dot = Markup('<circle class="{}" cx="13" cy="6" r="3"/>').format(look)
    return Markup('<svg class="key" viewBox="0 0 26 12" aria-hidden="true">{}{}</svg>').format(line, dot)


def _points(x: Values, y: Values, across: _Axis, up: _Axis) -> str:
    return " ".join(f"{_n(across(float(a)))},{_n(up(float(b)))}" for a, b in zip(x, y, strict=True))


def _n(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough, and equal on every machine."""
    return f"{value:.1f}".removesuffix(".0")


def _number(value: float, percent: bool) -> str:
    text = f"{100 * value:.3g} %" if percent else f"{value:g}" if abs(value) < 1e5 else f"{value:.0e}"
    return text.replace("-", "\N{MINUS SIGN}")


__all__ = ["COLOURS", "Series", "chart", "histogram", "interval_bar", "profile"]
