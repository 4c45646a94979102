"""Train and evaluate by a protocol card, and put ours beside the published number."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distmeta.config import flatten
from distmeta.errors import ConfigError
from distmeta.experiment.cards import Card, Published, find
from distmeta.experiment.experiment import Experiment
from distmeta.intervals import interval
from distmeta.run.directory import RunDirectory
from distmeta.run.finishing import RunResult
from distmeta.run.place import Place
from distmeta.run.time_box import Pace, measure
from distmeta.run.training import meta_train
from distmeta.tracking.tracker import writing

_PLANNED = 0.9
"""Plan for 90 % of the remaining time: step times vary, and the limit is hard."""


@dataclass(frozen=True)
class Compared:
    """One of our numbers beside the published one.

    Args:
        published: theirs.
        mean: ours.
        ci95: half width of its 95 % interval.
    """

    published: Published
    mean: float
    ci95: float

    @property
    def difference(self) -> float:
        """Ours minus theirs."""
        return self.mean - self.published.mean

    @property
    def difference_ci95(self) -> float:
        """Half width of its interval, of two independent means; ours alone where none was published."""
        return math.hypot(self.ci95, self.published.ci95 or 0.0)

    @property
    def verdict(self) -> str:
        """``"below"``, ``"above"``, or ``"no clear difference"`` where the 95 % interval includes 0."""
        if abs(self.difference) <= self.difference_ci95:
            return "no clear difference"
        return "above" if self.difference > 0 else "below"


@dataclass(frozen=True)
class Reproduction:
    """The outcome of a card.

    Args:
        card: the card.
        result: the run.
        compared: our numbers beside theirs.
        changed: settings of the protocol that were not the card's, as sentences; the numbers are then not comparable.
        iterations: outer steps of the run.
        planned: outer steps of the card.
        minutes: the time box, if there was one.
        pace: the measurement behind ``iterations``, if there was one.
        seconds: how long it all took.
    """

    card: Card
    result: RunResult
    compared: tuple[Compared, ...]
    changed: tuple[str, ...]
    iterations: int
    planned: int
    minutes: float | None
    pace: Pace | None
    seconds: float

    @property
    def verdict(self) -> str:
        """Whether the numbers are comparable, and why not."""
        if self.changed or self.card.differs:
            return f"not comparable: {'; '.join((*self.changed, *filter(None, (self.card.differs,))))}"
        if self.iterations != self.planned:
            kind = "shorter" if self.iterations < self.planned else "longer"
            return f"{kind} than the card: {self.iterations:,} of {self.planned:,} iterations, otherwise its protocol"
        return "comparable: the card's protocol at its full length"

    def lines(self) -> list[str]:
        """For a person."""
        found = []
        for c in self.compared:
            name = c.published.metric
            source = f"  ({c.published.note})" if c.published.note else ""
            difference = interval(name, c.difference, c.difference_ci95, sign="+")
            found += [
                name,
                f"  published   {c.published.text}{source}",
                f"  ours        {interval(name, c.mean, c.ci95)}",
                f"  difference  {difference}  {c.verdict}",
            ]
        measured = {c.published.metric for c in self.compared}
        for p in self.card.published:
            if p.metric not in measured:
                found += [p.metric, f"  published   {p.text}", "  ours        these tasks have no such number"]
        return [*found, self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "card": self.card.to_dict(),
            "run_dir": str(self.result.run_dir),
            "params_sha256": self.result.params_sha256,
            "results": [
                {
                    "metric": c.published.metric,
                    "published": c.published.mean,
                    "published_ci95": c.published.ci95,
                    "ours": c.mean,
                    "ours_ci95": c.ci95,
                    "difference": c.difference,
                    "difference_ci95": c.difference_ci95,
                    "verdict": c.verdict,
                }
                for c in self.compared
            ],
            "comparable": not self.changed and not self.card.differs and self.iterations == self.planned,
            "verdict": self.verdict,
            "changed": list(self.changed),
            "iterations": self.iterations,
            "card_iterations": self.planned,
            "minutes": self.minutes,
            "pace": None
            if self.pace is None
            else {f"seconds_per_{key}": value for key, value in asdict(self.pace).items()},
            "seconds": round(self.seconds, 1),
        }


def reproduce(
    name: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    run_dir: Path | str | None = None,
    place: Place | None = None,
) -> Reproduction:
    """Train and evaluate by a card; the run directory is like any other, with ``reproduction.json`` in it.

    Args:
        name: the card, such as ``"maml/omniglot-5w1s"``.
        overrides: settings by dotted key, ``tasks.data`` among them; those of the protocol make it not comparable.
        minutes: a time box. The rate is measured first, and the number of iterations that fit is fixed before the run
            begins, so that its schedule is a whole one.
        run_dir: a new folder; ``runs/NAME-TIME`` when left out.
        place: where it computes and where it is recorded.

    Raises:
        ConfigError: there is no such card, the run directory exists, or the time is too short for a single step.
        DataError: the card's dataset is not built; the message has the command.
    """
    started, where = time.monotonic(), place or Place()
    card = find(name)
    job = card.load(overrides)
    experiment, planned = job.experiment, card.experiment().outer.iterations
    if "meta_test" not in experiment.tasks.splits:
        raise ConfigError("The dataset has no split meta_test to evaluate on. Give --data with one that has.")
    changed = changes(card, experiment)
    if run_dir is not None:
        RunDirectory.new(run_dir, experiment.name)  # refuses one that is not empty, before anything is measured
    pace = None
    if minutes is not None:
        pace = measure(job, where, seconds=min(30.0, 3.0 * minutes))
        left = 60 * minutes - (time.monotonic() - started)
        fits = pace.iterations(experiment, _PLANNED * left)
        if fits < 1:
            raise ConfigError(
                f"--minutes {minutes:g} is too short: the workers take {pace.start:.0f} s to start, a step "
                f"{pace.step:.2g} s and the meta-test {pace.task * experiment.evaluation.test_tasks:.0f} s here. Give "
                "more minutes, or evaluate on fewer tasks with --set evaluation.test_tasks=100."
            )
        iterations = min(fits, experiment.outer.iterations)
        where.say(_plan(pace, minutes, iterations, planned))
        job = job.with_overrides({"outer.iterations": iterations})
    result = meta_train(job, run_dir=run_dir, place=where)
    test = result.test
    assert test is not None, "the dataset has a meta_test split"
    compared = tuple(
        Compared(p, test.mean(p.metric), test.ci95(p.metric)) for p in card.published if p.metric in test.metrics
    )
    seconds = time.monotonic() - started
    done = Reproduction(
        card, result, compared, changed, job.experiment.outer.iterations, planned, minutes, pace, seconds
    )
    with writing(result.run_dir):
        RunDirectory.open(result.run_dir).keep_reproduction(done.to_dict())
    return done


def changes(card: Card, experiment: Experiment) -> tuple[str, ...]:
    """Settings of the protocol that are not the card's, one sentence each.

    Seeds, names, how the work is spread and on how many tasks it is evaluated are no protocol; the number of
    iterations is reported apart.

    Example:
        >>> card = find("maml/sinusoid")
        >>> changes(card, card.experiment().with_overrides({"tasks.shots": 5, "seed": 3, "outer.iterations": 10}))
        ('tasks.shots=5 (card: 10)',)
    """
    ours, theirs = _protocol(experiment), _protocol(card.experiment())
    found = [f"{key}={ours[key]} (card: {theirs[key]})" for key in theirs if ours.get(key) != theirs[key]]
    if card.dataset is not None and hasattr(type(experiment.tasks), "dataset"):
        manifest, asked = experiment.tasks.dataset.manifest, card.dataset  # type: ignore[attr-defined]
        ours_is = (manifest.name, manifest.provenance.get("split"), tuple(manifest.input_shape))
        if ours_is != (asked.name, asked.split, asked.input_shape):
            found.append(
                "data={} with split {} and images {} ".format(*ours_is[:2], list(ours_is[2]))
                + f"(card: {asked.name} with split {asked.split} and images {list(asked.input_shape)})"
            )
    return tuple(found)


def _protocol(experiment: Experiment) -> dict[str, Any]:
    settings = flatten({key: value for key, value in experiment.settings().items() if isinstance(value, Mapping)})
    free = ("outer.iterations", "tasks.data", "learner.vectorise")
    return {
        key: value
        for key, value in settings.items()
        # Stopping early changes the training, the other settings of evaluation its record.
        if key == "evaluation.patience" or (not key.startswith(("runtime.", "evaluation.")) and key not in free)
    }


def _plan(pace: Pace, minutes: float, iterations: int, planned: int) -> str:
    length = "the card's full length" if iterations == planned else f"the card has {planned:,}"
    return f"measured {pace.step:.3g} s per step: {iterations:,} iterations in {minutes:g} minutes ({length})"


__all__ = ["Compared", "Reproduction", "changes", "reproduce"]
