"""Pictures of made-up records: what is drawn, and that nothing lies over it."""

from __future__ import annotations

import pytest

from distmeta.bench import Record, Row, picture


def record(kind, *rows, limits=()):
    return Record(kind, "made up", {}, "tasks/s", "higher", rows, limits, machine={"cpu": "one", "cores": 1})


def at_steps(*steps):
    return [Row({"steps": n}, (9.0 * n, 10.0 * n, 11.0 * n), {"predicted": 12.0 * n}) for n in steps]


def by_chunk():
    rows = [
        Row({"steps": steps, "threads": threads, "chunk": chunk}, (90.0, 100.0), {"mflop_per_task": 500.0})
        for steps in (1, 5)
        for threads in (1, 2)
        for chunk in (1, 8)
    ]
    return record("inner-loop", *rows, limits=tuple(Row({"threads": n}, (60.0 * n,)) for n in (1, 2)))


@pytest.mark.parametrize(
    ("draw", "labels"),
    [
        (lambda: picture._by_chunk(by_chunk()), ["1 thread", "2 threads", "limit, 1 thread", "limit, 2 threads"]),
        (
            lambda: picture._over_numbers(record("memory", *at_steps(1, 5)), "steps", ideal=False),
            ["measured, quartiles", "predicted"],
        ),
        (lambda: picture._bars(record("memory", Row({"chunk": 8}, (9.0,), {"predicted": 99.0}))), ["predicted"]),
    ],
)
def test_the_legend_lies_outside_of_the_axes(draw, labels):
    figure = draw()
    figure.canvas.draw()
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert sorted(text.get_text() for text in legend.get_texts()) == labels
    box, below = legend.get_window_extent(), figure._supxlabel.get_window_extent()
    assert box.y1 < min(axes.xaxis.label.get_window_extent().y0 for axes in figure.axes)
    assert box.y0 > below.y1


def test_predicted_memory_is_a_dotted_line():
    figure = picture._over_numbers(record("memory", *at_steps(1, 5)), "steps", ideal=False)
    (line,) = [one for one in figure.axes[0].lines if one.get_label() == "predicted"]
    assert list(line.get_ydata()) == [12.0, 60.0]
    assert line.get_linestyle() == ":"
    assert figure.axes[0].get_ylim()[1] > 60


def test_one_is_singular():
    figure = picture._by_chunk(by_chunk())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1 inner step", "5 inner steps"]
    assert figure._supxlabel.get_text() == "one, 1 core"
