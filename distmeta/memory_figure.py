"""A picture of a memory at work, as figures 6, 9 and 12 of Graves, Wayne, Danihelka (2014).

What went into a network and came out of it over time, and where its heads wrote and read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

_INK, _UNSCORED = "#2b2f36", "#eceef1"


def draw_memory(path: Path, panels: Mapping[str, npt.ArrayLike], *, title: str = "") -> Path:
    """Draws matrices over a common time axis into a PNG, one above the other; dark is high.

    Args:
        path: the PNG to write; its folder is made.
        panels: name to ``[rows, L]``, as :meth:`distmeta.NTM.memory_panels` gives them. NaN is left blank. Of a panel
            with more than 30 rows (the slots of a memory) only those between the first and the last that is used are
            drawn, and all such panels show the same rows, so that places can be compared.
        title: what is seen.

    Returns:
        ``path``.

    Raises:
        ValueError: the panels have different lengths.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> draw_memory(folder / "memory.png", {"write weights": np.eye(40)[:, :9]}).name
        'memory.png'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = {name: np.asarray(values, dtype=np.float64) for name, values in panels.items()}
    lengths = {name: values.shape[1] for name, values in drawn.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"The panels have {lengths} time steps; expected as many in each.")
    first, last = _used_slots(drawn)
    shown = {name: values[first:last] if _is_memory(values) else values for name, values in drawn.items()}
    steps = next(iter(lengths.values()))
    # The same size for every cell, within reason.
    heights = [min(max(0.11 * len(values), 0.4), 4.0) for values in shown.values()]
    width = min(max(0.11 * steps, 4.5), 13.0)
    figure = Figure(figsize=(width + 1.4, sum(heights) + 0.34 * len(heights) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    grid = figure.add_gridspec(len(shown), 1, height_ratios=heights)
    top = None
    for i, (name, values) in enumerate(shown.items()):
        axes = figure.add_subplot(grid[i], sharex=top)
        top = top or axes
        low = first if _is_memory(drawn[name]) else 0
        axes.imshow(
            np.ma.masked_invalid(values),
            cmap="Greys",
            vmin=0.0,
            vmax=1.0,
            aspect="auto",
            interpolation="nearest",
            extent=(-0.5, steps - 0.5, low + len(values) - 0.5, low - 0.5),
        )
        axes.set_facecolor(_UNSCORED)  # seen through the masked cells
        axes.set_title(name, loc="left", fontsize=9, color=_INK, pad=3)
        axes.tick_params(colors=_INK, labelsize=8, labelbottom=i == len(shown) - 1, bottom=i == len(shown) - 1)
        for side in axes.spines.values():
            side.set_color("#c4c8ce")
        axes.set_ylabel("slot" if _is_memory(drawn[name]) else "channel", fontsize=8, color=_INK)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel("time step", fontsize=9, color=_INK)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=150, facecolor="white")
    return path


def _is_memory(values: npt.NDArray[np.float64]) -> bool:
    return len(values) > 30


def _used_slots(panels: Mapping[str, npt.NDArray[np.float64]]) -> tuple[int, int]:
    """First and one past the last slot to draw: those that a head looks at for half a step in all, and one beyond."""
    used = [np.flatnonzero(np.nansum(values, axis=1) >= 0.5) for values in panels.values() if _is_memory(values)]
    slots = np.concatenate(used) if used else np.array([], dtype=np.intp)
    most = max((len(values) for values in panels.values()), default=0)
    if not len(slots):
        return 0, most
    return max(int(slots.min()) - 1, 0), min(int(slots.max()) + 2, most)
