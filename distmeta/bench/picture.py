"""A benchmark as a picture: medians with their quartiles."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distmeta.bench.record import Record, Row
from distmeta.bench.wording import counted
from distmeta.figures.style import BLUE, FAINT, GREY, INK, RED, dress, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, RED, GREY, INK)
_LABELS_POINTS = 36  # height of the tick labels and the label below an axis
_UNITS = {"us": "microseconds per episode", "ms/step": "ms per step", "s": "seconds", "MiB": "MiB above the model"}


def plot(record: Record, path: Path) -> Path:
    """Draw a record into a PNG.

    Args:
        record: what was measured.
        path: the file to write; its folder is made.

    Returns:
        ``path``.
    """
    draw: dict[str, Callable[[Record], Figure]] = {
        "inner-loop": _by_chunk,
        "peers": _by_case,
        "scaling": lambda found: _over_numbers(found, "workers", ideal=True),
        "memory": lambda found: _over_numbers(found, "steps", ideal=False),
    }
    figure = draw.get(record.kind, _bars)(record)
    return save(figure, path)


def _figure(record: Record, width: float, height: float) -> Figure:
    """A figure with its title, and the machine below it."""
    machine = record.machine
    told = (
        str(machine.get("gpu") or machine.get("cpu", "")),
        counted(machine["cores"], "core") if "cores" in machine else "",
        f"torch {machine['torch']}" if "torch" in machine else "",
        f"load average {machine['load_average']:g}" if machine.get("load_average") is not None else "",
    )
    figure = new_figure(width, height, f"{record.title[:1].upper()}{record.title[1:]}")
    figure.supxlabel(", ".join(filter(None, told)), x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def _by_chunk(record: Record) -> Figure:
    """One panel for each number of inner steps, one line for each number of threads, tasks per second by chunk size."""
    steps = list(dict.fromkeys(row.at.get("steps") for row in record.rows))
    figure = _figure(record, max(5.2, 4.2 * len(steps)), 4.2)
    for column, step in enumerate(steps):
        axes = figure.add_subplot(1, len(steps), column + 1)
        rows = [row for row in record.rows if row.at.get("steps") == step]
        for colour, threads in zip(
            _COLOURS * len(rows), dict.fromkeys(row.at["threads"] for row in rows), strict=False
        ):
            some = [row for row in rows if row.at["threads"] == threads]
            label = counted(threads, "thread")
            _line(axes, [row.at["chunk"] for row in some], some, colour, label)
            limit = record.limit_of(some[0])
            work = some[0].figures.get("mflop_per_task")
            if limit is not None and work:
                most = limit.median * 1e3 / work
                axes.axhline(most, color=colour, linewidth=1, linestyle=":", label=f"limit, {label}")
        _ticks(axes, [row.at["chunk"] for row in rows])
        dress(axes, "tasks per chunk", record.unit if not column else "")
        axes.set_ylim(bottom=0)
        if step is not None:
            axes.set_title(counted(step, "inner step"), fontsize=10, color=INK, loc="left")
    _legend_below(figure.axes[0])  # the same lines in all panels
    return figure


def _by_case(record: Record) -> Figure:
    """One panel for each case, one bar for each system."""
    names = list(dict.fromkeys(row.at["case"] for row in record.rows))
    systems = list(dict.fromkeys(row.at["system"] for row in record.rows))
    figure = _figure(record, 2.4 + 3.0 * len(names), 1.7 + 0.4 * len(systems))
    for column, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), column + 1)
        rows = {row.at["system"]: row for row in record.rows if row.at["case"] == name}
        for i, system in enumerate(systems):
            if system not in rows:
                continue
            low, middle, high = rows[system].quartiles
            axes.barh(i, middle, height=0.55, color=BLUE if system.startswith("distmeta") else GREY, alpha=0.85)
            axes.errorbar(middle, i, xerr=[[middle - low], [high - middle]], color=INK, capsize=3, linewidth=1)
            axes.text(high, i, f"  {middle:.3g}", va="center", color=INK, fontsize=9)
        axes.set_yticks(range(len(systems)), systems if not column else [""] * len(systems))
        axes.invert_yaxis()
        dress(axes, record.unit, "")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        axes.set_xlim(0, 1.25 * max(row.quartiles[2] for row in rows.values()))
        axes.set_title(name, fontsize=10, color=INK, loc="left")
    return figure


def _over_numbers(record: Record, key: str, *, ideal: bool) -> Figure:
    """Medians over a number, with the line that the first one promises."""
    if key not in record.rows[0].at:
        return _bars(record)
    figure = _figure(record, 5.6, 3.7)
    axes = figure.add_subplot()
    at, first = [float(row.at[key]) for row in record.rows], record.rows[0].median
    if ideal:
        axes.plot(at, [first * x / at[0] for x in at], color=GREY, linewidth=1, linestyle=":", label="no loss")
    _line(axes, at, record.rows, BLUE, "measured, quartiles")
    if all("predicted" in row.figures for row in record.rows):
        predicted = [row.figures["predicted"] for row in record.rows]
        axes.plot(at, predicted, color=RED, linestyle=":", marker="o", markersize=4, mfc="white", label="predicted")
    _ticks(axes, at, log=False)
    dress(axes, "inner steps" if key == "steps" else key, _UNITS.get(record.unit, record.unit))
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    _legend_below(axes)
    return figure


def _bars(record: Record) -> Figure:
    """A bar for each variant, its median beside it."""
    rows = list(record.rows)
    figure = _figure(record, 6.4, 1.5 + 0.45 * len(rows))
    axes = figure.add_subplot()
    names = [_short(row) for row in rows]
    axes.barh(names, [row.median for row in rows], height=0.55, color=BLUE, alpha=0.85)
    top = max(max(row.quartiles[2], row.figures.get("predicted", 0)) for row in rows)
    for i, row in enumerate(rows):
        low, middle, high = row.quartiles
        axes.errorbar(middle, i, xerr=[[middle - low], [high - middle]], color=INK, capsize=3, linewidth=1)
        if "predicted" in row.figures:
            axes.vlines(row.figures["predicted"], i - 0.4, i + 0.4, color=RED, linestyle=":", label="predicted")
        number = axes.text(high + 0.015 * top, i, f"{middle:.3g}", va="center", color=INK, fontsize=9)
        number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # readable on a line
    axes.invert_yaxis()
    dress(axes, _UNITS.get(record.unit, record.unit), "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_xlim(0, 1.15 * top)
    if axes.get_legend_handles_labels()[1]:
        _legend_below(axes)
    return figure


def _short(row: Row) -> str:
    values = list(row.at.items())
    text = str(values[0][1]) if len(values) == 1 and isinstance(values[0][1], str) else row.name
    return textwrap.fill(text, 28)


def _line(axes: Axes, at: Sequence[float], rows: Sequence[Row], colour: str, label: str) -> None:
    """Medians as a line, quartiles as bars."""
    below = [row.median - row.quartiles[0] for row in rows]
    above = [row.quartiles[2] - row.median for row in rows]
    axes.errorbar(
        at,
        [row.median for row in rows],
        yerr=[below, above],
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1.6,
        capsize=3,
        label=label,
    )


def _legend_below(axes: Axes) -> None:
    """A legend below the labels of the axes, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    points = ScaledTranslation(0, -_LABELS_POINTS / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + points,
        borderaxespad=0,
        ncols=2,
        frameon=False,
        labelcolor=INK,
        fontsize=8,
    )


def _ticks(axes: Axes, values: Sequence[float], *, log: bool = True) -> None:
    """Ticks at what was measured; sizes that double are equally far apart."""
    from matplotlib.ticker import NullLocator

    if log and len(set(values)) > 1:
        axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
    axes.xaxis.set_minor_locator(NullLocator())
