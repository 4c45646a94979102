"""The style of all pictures: colours, axes, and how a figure is written.

Pictures are drawn with matplotlib's ``Figure`` alone: no pyplot, so no global state, no window and no display.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BLUE, RED, GREY = "#2f6fa7", "#c8553d", "#8a8f98"


INK, FAINT = "#2b2f36", "#d9dce1"


_DPI = 150


def new_figure(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches without pyplot, its title at the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    # A line of 11 points has about 12 characters per inch; a longer title would run out of the picture.
    figure.suptitle(textwrap.fill(title, max(20, int(11 * width))), x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def dress(axes: Axes, x: str, y: str) -> None:
    """Labels, and the look that all our pictures share."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, color=GREY)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG; returns ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The format is fixed, whatever the ending of the name: a PNG is promised.
    figure.savefig(path, format="png", dpi=_DPI, facecolor="white")
    return path
