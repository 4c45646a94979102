"""The frame of all benchmarks: variants take turns within a budget of seconds, and the result is a record."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch

from distmeta.bench import machine
from distmeta.bench.machine import MatmulLimit
from distmeta.bench.record import Record, Row
from distmeta.bench.statistics import FEWEST, Better
from distmeta.bench.wording import counted, settings_text
from distmeta.seeding import rng

Tell = Callable[[str], None]
"""Receives what begins, in words."""

_MOST_ROUNDS = 200


class Budget:
    """The time that a benchmark may take, from when it begins. Half of it is for measuring, whatever came before.

    Args:
        seconds: all of it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def interleave(self, variants: Sequence[Callable[[], float]]) -> list[tuple[float, ...]]:
        """Let the variants take turns, in another order each round, for as long as a whole round fits.

        Args:
            variants: each measures once.

        Returns:
            The repetitions of each variant, equally many: one at least, 200 at most.

        Example:
            >>> Budget(0).interleave([lambda: 1.0, lambda: 2.0])
            [(1.0,), (2.0,)]
        """
        found: list[list[float]] = [[] for _ in variants]
        longest, deadline = 0.0, max(self._deadline, time.monotonic() + self._seconds / 2)
        for number in range(_MOST_ROUNDS):
            started = time.monotonic()
            if number and started + longest > deadline:
                break
            for i in rng(0, "order", number).permutation(len(variants)):
                found[i].append(variants[i]())
            longest = max(longest, time.monotonic() - started)
        return [tuple(one) for one in found]


class Benchmark(ABC):
    """One benchmark; constructing it checks everything that can be checked before it is run."""

    kind: ClassVar[str]
    unit: ClassVar[str]
    better: ClassVar[Better]
    seconds: ClassVar[float] = 20.0

    title: str
    case: Mapping[str, Any]
    fixed: tuple[str, ...] = ()
    """Settings that the benchmark sets itself: overrides of them have no effect."""
    device = torch.device("cpu")

    def __init__(self) -> None:
        self._limits: list[Row] = []

    @abstractmethod
    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """Measure every variant."""

    @final
    def beside_limits(
        self, budget: Budget, variants: Sequence[Callable[[], float]], threads: Sequence[int], size: int = 1024
    ) -> list[tuple[float, ...]]:
        """Let the variants take turns with the machine's limits, which the record keeps.

        Args:
            budget: of the benchmark.
            variants: each measures once.
            threads: numbers of threads whose limits are measured.
            size: rows of the matrices.

        Returns:
            The repetitions of each variant; those of the limits, of the same rounds, are in the record.
        """
        before = torch.get_num_threads()
        try:
            found = budget.interleave([*(MatmulLimit(n, self.device, size) for n in threads), *variants])
        finally:
            torch.set_num_threads(before)
        self._limits = [Row({"threads": n}, values) for n, values in zip(threads, found[: len(threads)], strict=True)]
        return found[len(threads) :]

    def notes(self) -> Sequence[str]:
        """Definitions and cautions, whole sentences, after the measurement."""
        return ()

    @final
    def run(
        self,
        seconds: float | None = None,
        tell: Tell = lambda text: None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Record:
        """Measure.

        Args:
            seconds: for the repetitions, see :class:`Budget`; each variant is measured once even if that takes longer.
            tell: receives what begins.
            overrides: settings by dotted key that the user changed, for the title.
        """
        began, facts = time.monotonic(), machine.facts(self.device)
        shown = {key: value for key, value in (overrides or {}).items() if key not in self.fixed}
        title = ", ".join(filter(None, (self.title, settings_text(shown))))
        tell(f"measuring: {title}")
        rows = tuple(self.rows(Budget(seconds or self.seconds), tell))
        facts |= {"load_average_after": machine.load(), "seconds": round(time.monotonic() - began, 1)}
        notes = list(self.notes())
        fewest = min(len(row.repetitions) for row in rows)
        if fewest < FEWEST:
            notes.append(
                f"Only {counted(fewest, 'repetition')} fitted into {seconds or self.seconds:g} s; --against "
                f"needs {FEWEST} to tell a change. Give more --seconds, or measure fewer variants."
            )
        before = facts["load_average"]
        if before is not None and before > facts["cores"] / 2:
            notes.append(
                f"The load average was {before:g} on {counted(facts['cores'], 'core')} when this began: other work "
                "took part of the machine. Ratios within this run count more than its absolute numbers."
            )
        return Record(
            self.kind, title, self.case, self.unit, self.better, rows, tuple(self._limits), tuple(notes), facts
        )
