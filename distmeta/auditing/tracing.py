"""Which line of the user's code makes two draws differ: both are run line by line and their variables compared."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from types import FrameType
from typing import Any

import numpy as np
import torch

Place = tuple[str, int]
"""File and line number."""

_MOST_EVENTS = 20_000
_MOST_NUMBERS = 4096
_HERE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_STANDARD_LIBRARY = os.path.join(sysconfig.get_paths()["stdlib"], "")


class UserCode:
    """Tells the user's files from those of Python, of installed packages and of distmeta.

    Args:
        also: files and folders that count as the user's wherever they are; the first is the job file.
    """

    def __init__(self, also: tuple[str, ...] = ()) -> None:
        # Functions that were sent to a worker keep their line numbers, not the name of their file.
        self._also, self._known = also, dict[str, str | None]({"<dynamic-code>": also[0]} if also else {})

    def file(self, frame: FrameType) -> str | None:
        """The user's file that a frame runs; ``None`` if it runs other code."""
        file = frame.f_code.co_filename
        if file not in self._known:
            # A folder of the user's may hold a virtual environment.
            mine = any(file.startswith(own) and "-packages" not in file[len(own) :] for own in self._also)
            others = file.startswith(("<", _HERE, _STANDARD_LIBRARY)) or "-packages" in file
            self._known[file] = file if mine or not others else None
        return self._known[file]

    def place(self, frame: FrameType | None) -> Place | None:
        """The innermost line of the user's code that is being run."""
        while frame is not None:
            if (file := self.file(frame)) is not None:
                return file, frame.f_lineno
            frame = frame.f_back
        return None


@dataclasses.dataclass(frozen=True)
class Event:
    """One moment of a traced run.

    Args:
        phase: ``"load"`` or ``"draw"``.
        where: function and line that come next, and the kind of moment.
        after: the line that was run just before.
        values: digests of the variables by name; ``return`` for what a function returns.
        names: the variables and attributes that the function's code mentions.
    """

    phase: str
    where: tuple[str, str, int, str]
    after: Place
    values: Mapping[str, str]
    names: tuple[str, ...]


class Tracer:
    """Records what the user's code does, while it is on.

    Args:
        user: which files are the user's.
        wanted: called with every new variable's value; the first line for which it is true is :attr:`found`.
    """

    def __init__(self, user: UserCode, wanted: Callable[[Any], bool] | None = None) -> None:
        self.events: list[Event] = []
        self.reads: dict[tuple[str, Place], str] = {}  # what is read and where; the phase of the last time
        self.found: Place | None = None
        self._user, self._wanted = user, wanted
        self._phase, self._after, self._states = "", ("", 0), _global_states()

    def note(self, what: str) -> None:
        """Record a read that the running line of the user's code makes."""
        if (place := self._user.place(sys._getframe(1))) is not None:
            self.reads[what, place] = self._phase

    @contextmanager
    def on(self, phase: str) -> Iterator[None]:
        """Trace until the context ends."""
        before = sys.gettrace()
        self._phase, self._states = phase, _global_states()
        self._after = self._user.place(sys._getframe(1)) or ("", 0)
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)
            self._note_global_draws()
            self._phase = ""

    def _enter(self, frame: FrameType, kind: str, value: Any) -> Any:
        if (file := self._user.file(frame)) is None:
            return None
        self._record(file, frame, "call", None)
        return self._inside

    def _inside(self, frame: FrameType, kind: str, value: Any) -> Any:
        file = self._user.file(frame) or ""
        if kind == "return":  # the line that returns is the one that has just been run
            self._after = (file, frame.f_lineno)
        if kind in ("line", "return"):
            self._record(file, frame, kind, value)
        return self._inside

    def _record(self, file: str, frame: FrameType, kind: str, value: Any) -> None:
        code, variables = frame.f_code, dict(frame.f_locals)
        self._note_global_draws()
        if kind == "return":
            variables = {"return": value, **variables}
        if self._phase == "load" and hasattr(own := variables.get("self"), "__dict__"):
            variables |= {f"self.{name}": part for name, part in vars(own).items()}
        if self._wanted is not None and self.found is None and code.co_name != "<module>":
            if any(self._wanted(part) for part in variables.values()):
                self.found = self._after
        elif len(self.events) < _MOST_EVENTS:
            where = (file, code.co_name, frame.f_lineno, kind)
            values = {name: print_of(part) for name, part in variables.items() if not name.startswith("__")}
            mentioned = (*code.co_names, *code.co_freevars)
            self.events.append(Event(self._phase, where, self._after, values, mentioned))
        if kind == "return" and (caller := self._user.place(frame.f_back)) is not None:
            self._after = caller  # the rest of the caller's line comes next
        elif kind != "return":
            self._after = (file, frame.f_lineno)

    def _note_global_draws(self) -> None:
        now = _global_states()
        for name, state in now.items():
            if state != self._states[name] and self._after[0]:
                self.reads[name, self._after] = self._phase
        self._states = now


def divergence(one: list[Event], other: list[Event]) -> tuple[Place, Place | None] | None:
    """The line that makes two runs differ.

    Args:
        one: events of the first run, of loading and of drawing.
        other: events of the second run.

    Returns:
        The line, and the line of the draw that uses what it made where that is another one; ``None`` if the events do
        not differ.
    """
    draw = _first_difference(one, other, "draw")
    if draw is None:
        load = _first_difference(one, other, "load")
        return None if load is None else (load.after, None)
    # What differs after loading matters only if the function that draws mentions it.
    made = _first_difference(one, other, "load", set(draw.names))
    return (draw.after, None) if made is None else (made.after, draw.after)


def _first_difference(one: list[Event], other: list[Event], phase: str, only: set[str] | None = None) -> Event | None:
    """The first event of a phase that differs; where ``only`` is given, in one of these variables."""
    ours, theirs = ([event for event in events if event.phase == phase] for events in (one, other))
    for a, b in zip(ours, theirs, strict=False):
        differing = {name for name in {*a.values, *b.values} if a.values.get(name) != b.values.get(name)}
        if only is not None:
            differing = {name for name in differing if name.removeprefix("self.") in only}
        if differing or (only is None and a.where != b.where):
            return a
    return None


def print_of(value: Any, depth: int = 0) -> str:
    """A short digest of a value, equal for equal values in any process; of other objects than data, their type."""
    return hashlib.blake2b(_text(value, depth).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _text(value: Any, depth: int) -> str:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy() if value.layout == torch.strided else str(value)
    if isinstance(value, np.ndarray):
        return _text(value.tolist(), depth) if value.dtype.hasobject else _array_text(value)
    if isinstance(value, np.random.Generator):
        value = repr(value.bit_generator.state)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic | PurePath):
        return repr(value)
    return _items_text(value, depth + 1) if depth < 3 else type(value).__qualname__


def _array_text(value: np.ndarray[Any, Any]) -> str:
    flat = value.reshape(-1)
    sample = flat[:: max(1, flat.size // _MOST_NUMBERS)]
    return f"{value.dtype}{value.shape}{hashlib.blake2b(sample.tobytes()).hexdigest()}"


def _items_text(value: Any, depth: int) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, set | frozenset):  # the order of a set is not a value; what iterates over it has one
        return f"set{sorted(print_of(item, depth) for item in value)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{len(value)}{[print_of(item, depth) for item in value[:64]]}"
    return type(value).__qualname__


def _global_states() -> dict[str, Any]:
    numpys = np.random.get_state()
    return {
        "Python's global generator": random.getstate(),
        "numpy's global generator": (numpys[1].tobytes(), numpys[2:]),  # type: ignore[index]
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
    }
