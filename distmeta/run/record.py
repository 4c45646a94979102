"""``run.json`` as a typed record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from distmeta.data.preprocessing import Preprocessing
from distmeta.experiment.experiment import Experiment
from distmeta.types import TaskSpec

Status = Literal["running", "interrupted", "failed", "finished"]


@dataclass(frozen=True)
class KeptJob:
    """The job file that a run was started from.

    Args:
        path: absolute path of the original file.
        folder: where the modules beside it are found.
        overrides: settings changed on the command line, by dotted key.
    """

    path: str
    folder: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class DatasetFacts:
    """The data that a run was trained on.

    Args:
        name: of the dataset, or of the task distribution where there is none.
        input_shape: shape of one input.
        licence: of the data, in words; empty where it is not known.
        origin: where the data come from, in words; empty where it is not known.
    """

    name: str
    input_shape: tuple[int, ...]
    licence: str = ""
    origin: str = ""

    @classmethod
    def of(cls, experiment: Experiment) -> DatasetFacts:
        """The facts of an experiment's tasks."""
        facts, shape = experiment.tasks.describe(), tuple(experiment.tasks.spec.input_shape)
        return cls(facts["name"], shape, str(facts.get("licence", "")), str(facts.get("origin", "")))


@dataclass(frozen=True)
class LearnedFrom:
    """What a learner was built for: enough to use it where the training data are absent.

    Args:
        spec: shapes of the training tasks.
        preprocessing: how the inputs were made.
    """

    spec: TaskSpec
    preprocessing: Preprocessing

    @classmethod
    def of(cls, experiment: Experiment) -> LearnedFrom:
        """That of an experiment's tasks."""
        return cls(experiment.tasks.spec_of("meta_train"), experiment.tasks.preprocessing)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LearnedFrom:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the values are none.
        """
        spec = {**values["spec"], "input_shape": tuple(int(n) for n in values["spec"]["input_shape"])}
        return cls(TaskSpec(**spec), Preprocessing.from_dict(values["preprocessing"]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        spec = {**asdict(self.spec), "input_shape": list(self.spec.input_shape)}
        return {"spec": spec, "preprocessing": self.preprocessing.to_dict()}


@dataclass(frozen=True)
class RunRecord:
    """``run.json``: what a run is and how far it got.

    Args:
        name: of the experiment.
        created: when the run was started, ISO 8601.
        dataset_fingerprint: of the training data.
        dataset: name and input shape of the training data; ``None`` in runs of older versions.
        test: summary of the meta-test report, once there is one.
        status: as last written; see :meth:`RunDirectory.status`.
        error: what ended a failed run.
        pid: process that last worked on the run.
        host: machine of that process.
        iterations: outer steps that the run is to have.
        job: the job file; ``None`` for a run started from Python.
        code: sha256 of the job file and of the modules beside it, by path; ``None`` where not recorded.
        updated: when this record was last written, ISO 8601.
        step: outer steps of the finished run.
        stopped_early: whether ``evaluation.patience`` ended it.
        learned_from: shapes and preprocessing of the training tasks; ``None`` in runs of older versions.
    """

    name: str
    created: str
    dataset_fingerprint: str
    status: Status
    pid: int
    host: str
    iterations: int
    dataset: DatasetFacts | None = None
    test: Mapping[str, float] | None = None
    error: str | None = None
    job: KeptJob | None = None
    code: Mapping[str, str] | None = None
    updated: str = ""
    step: int | None = None
    stopped_early: bool = False
    learned_from: LearnedFrom | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The record of a JSON object; keys that it lacks have their defaults, unknown ones are ignored.

        Raises:
            KeyError, TypeError: the object is no record.
        """
        known = {f.name for f in fields(cls)}
        found = {key: value for key, value in values.items() if key in known}
        if found.get("job") is not None:
            job = found["job"]
            found["job"] = KeptJob(job["path"], job["folder"], job["overrides"])
        if found.get("dataset") is not None:
            facts = found["dataset"]
            more = {key: str(facts.get(key, "")) for key in ("licence", "origin")}  # absent in earlier versions
            found["dataset"] = DatasetFacts(facts["name"], tuple(facts["input_shape"]), **more)
        if found.get("learned_from") is not None:
            found["learned_from"] = LearnedFrom.from_dict(found["learned_from"])
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        learned_from = None if self.learned_from is None else self.learned_from.to_dict()
        return {**asdict(self), "learned_from": learned_from}
