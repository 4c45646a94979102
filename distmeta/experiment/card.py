"""A protocol card: one published table cell that we aim at, and the job that reproduces it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job, jobs_folder, load_job
from distmeta.intervals import interval


@dataclass(frozen=True)
class Published:
    """A published number.

    Args:
        metric: the number of ours that it is compared with.
        mean: the value; accuracies from 0 to 1.
        ci95: half width of its 95 % interval; ``None`` where none was published.
        note: where it comes from, when that is not the card's paper.

    Example:
        >>> Published("accuracy", 0.987, 0.004).text
        '98.70 % ± 0.40'
    """

    metric: str
    mean: float
    ci95: float | None = None
    note: str = ""

    @property
    def text(self) -> str:
        """``mean ± half width``, or the mean alone."""
        return interval(self.metric, self.mean, self.ci95)


@dataclass(frozen=True)
class Dataset:
    """The dataset of a card.

    Args:
        name: as in its manifest, and as ``--data`` takes it.
        split: of its classes, as in its manifest; ``None`` where it has one split only.
        classes: in each split, for a person.
        input_shape: of an image.
    """

    name: str
    split: str | None
    classes: str
    input_shape: tuple[int, ...]


OMNIGLOT = Dataset(
    "omniglot", "vinyals", "Vinyals split: 1,028 / 172 / 423 characters for training, validation, test", (1, 28, 28)
)


@dataclass(frozen=True)
class Card:
    """One table cell; :mod:`distmeta.experiment.cards` shows how to write one.

    Args:
        name: ``learner/dataset-cell``.
        paper: authors, year and table.
        job: name of the job file in ``jobs/``.
        dataset: what it needs built, if anything.
        network: in words; the experiment holds a factory.
        published: the numbers aimed at.
        overrides: settings on top of the job's.
        notes: where paper and code disagree, and what we do differently.
        differs: what makes this another experiment than the paper's, if it is: the numbers are then not comparable even
            at full length.
    """

    name: str
    paper: str
    job: str
    dataset: Dataset | None
    network: str
    published: tuple[Published, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    differs: str = ""

    def load(self, overrides: Mapping[str, Any] | None = None) -> Job:
        """The job with the card's overrides, and ``overrides`` on top.

        Raises:
            ConfigError: an override does not fit.
        """
        return _job(self.job).with_overrides(
            {"name": self.name.replace("/", "-"), **self.overrides, **(overrides or {})}
        )

    def experiment(self) -> Experiment:
        """The full-length experiment.

        Example:
            >>> from distmeta.experiment.cards import find
            >>> find("maml/omniglot-20w1s").experiment().learner.config.inner_steps
            5
        """
        return self.load().experiment

    def protocol(self) -> dict[str, str]:
        """The facts to compare with the paper, by heading."""
        e = self.experiment()
        learner, outer = e.learner.config.to_dict(), e.outer
        tasks = {key: value for key, value in e.tasks.config.to_dict().items() if value is not None and key != "data"}
        own = {key: value for key, value in learner.items() if key not in ("batch_norm", "vectorise")}
        job = " ".join((f"jobs/{self.job}.py", *(f"--set {key}={value}" for key, value in self.overrides.items())))
        return {
            "paper": self.paper,
            **({"data": f"{self.dataset.name}, {self.dataset.classes}"} if self.dataset else {}),
            "tasks": _listed(tasks),
            "network": self.network,
            "batch norm": f"'{learner['batch_norm']}': statistics of the batch at hand, in training and at test",
            "learner": f"{type(e.learner).__name__}: {_listed(own)}",
            "outer loop": (
                f"{outer.optimizer} {outer.lr:g}, {outer.schedule}, {outer.iterations:,} iterations of "
                f"{outer.meta_batch_size} tasks"
            ),
            "evaluated": f"on {e.evaluation.test_tasks} meta-test tasks",
            "job": job,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            **self.protocol(),
            "published": [
                {"metric": p.metric, "mean": p.mean, "ci95": p.ci95, "note": p.note or None} for p in self.published
            ],
            "notes": list(self.notes),
            "differs": self.differs or None,
        }


@cache
def _job(name: str) -> Job:
    """The job file of a card; run once however often the card is asked for its protocol."""
    return load_job(jobs_folder() / f"{name}.py")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)
