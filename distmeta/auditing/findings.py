"""What an audit finds, and the change that fixes it."""

from __future__ import annotations

import linecache
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distmeta.auditing.tracing import Place


@dataclass(frozen=True)
class Line:
    """A line of the user's code.

    Args:
        file: path of the file.
        number: of the line, from 1.
        reads: what the line reads that a task must not depend on, such as ``"time.time()"``.
    """

    file: str
    number: int
    reads: tuple[str, ...] = ()

    @classmethod
    def at(cls, place: Place, reads: Iterable[tuple[str, Place]] = ()) -> Line:
        """The line at ``place``, with those of ``reads`` that it makes."""
        return cls(*place, tuple(dict.fromkeys(what for what, where in reads if where == place)))

    @property
    def source(self) -> str:
        """The line's text."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        read = f"   (reads {', '.join(self.reads)})" if self.reads else ""
        return f"{self.place}: {self.source}{read}"

    @property
    def place(self) -> str:
        """File and number, relative to the current folder where it is below."""
        file = Path(self.file)
        here = Path.cwd()
        return f"{file.relative_to(here) if file.is_relative_to(here) else file}:{self.number}"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a distribution.

    Args:
        proof: title of the proof that failed.
        what: what was seen.
        fix: the change that fixes it.
        line: the line that draws or reads; ``None`` where none of the user's code is behind it.
        used: the line that uses what ``line`` made, where the user's code made it before the draw.
    """

    proof: str
    what: str
    fix: str
    line: Line | None = None
    used: Line | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        line = self.line
        return {
            "proof": self.proof,
            "what": self.what,
            "file": None if line is None else line.file,
            "line": None if line is None else line.number,
            "source": None if line is None else line.source,
            "reads": [] if line is None else list(line.reads),
            "used_at": None if self.used is None else f"{self.used.file}:{self.used.number}",
            "fix": self.fix,
        }

    def __str__(self) -> str:
        where = "" if self.line is None else f"\n{self.line}"
        used = "" if self.used is None else f"\n{self.used}   (uses it)"
        return f"{self.what}{where}{used}\n{self.fix}"


@dataclass(frozen=True)
class Proof:
    """One property that was tested.

    Args:
        title: the property.
        evidence: what was compared.
        findings: what contradicts it; empty where it holds.
        follows: the line of another proof's finding that breaks this one, too; ``None`` otherwise.
    """

    title: str
    evidence: str
    findings: tuple[Finding, ...] = field(default=())
    follows: Line | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts it."""
        return not self.findings and self.follows is None
