"""What a person sees while a command waits: often on a terminal, seldom in a log file, where lines stay."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from distmeta.cli import console
from distmeta.cli.progress import View


def seen(monkeypatch, terminal: bool) -> list[int]:
    """Seconds at which a part of the start that lasts 100 s is shown again."""
    text = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=text, force_terminal=terminal, highlight=False, width=100), raising=False
    )
    view = View(quiet=False)
    began = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: began)
    view.phase("checking tasks and data")
    for tenth in range(1000):
        view.remind(began + tenth / 10)
    return [int(found) for found in re.findall(r"checking tasks and data: (\d+) s", text.getvalue())]


def test_a_log_has_a_line_at_growing_distances(monkeypatch):
    """It was a line every two to three seconds: forty of them in a hundred."""
    assert seen(monkeypatch, terminal=False) == [10, 20, 40, 80]


def test_a_terminal_is_never_silent_for_long(monkeypatch):
    assert len(seen(monkeypatch, terminal=True)) == 39
