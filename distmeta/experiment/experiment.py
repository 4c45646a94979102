"""An experiment: everything that determines a result, and how the work is spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import NonNegativeInt

from distmeta.config import Config, did_you_mean, differences, digest
from distmeta.errors import ConfigError
from distmeta.experiment.settings import Evaluation, Outer, Runtime
from distmeta.learners.base import MetaLearner
from distmeta.tasks.base import TaskDistribution


class Experiment(Config):
    """One experiment, as a job file defines it.

    Args:
        learner: the algorithm around a model.
        tasks: p(T).
        outer: the outer loop.
        runtime: how the work is spread.
        evaluation: when and on what the learner is evaluated.
        seed: the root of every random number of the run.
        name: of the run and of its MLflow experiment.

    Example:
        >>> import distmeta
        >>> experiment = Experiment(learner=distmeta.MAML(distmeta.mlp((40, 40))), tasks=distmeta.Sinusoids())
        >>> experiment.with_overrides({"learner.inner_lr": 0.01, "seed": 7}).seed
        7
    """

    learner: MetaLearner
    tasks: TaskDistribution
    outer: Outer = Outer()
    runtime: Runtime = Runtime()
    evaluation: Evaluation = Evaluation()
    seed: NonNegativeInt = 0
    name: str = "experiment"

    def with_overrides(self, overrides: Mapping[str, Any]) -> Experiment:
        """A copy with settings changed by dotted key, as on the command line.

        Raises:
            ConfigError: a key does not exist (names the nearest), or a value does not fit.
        """
        changes: dict[str, dict[str, Any]] = {}
        known = self.keys()
        for given, value in overrides.items():
            key = self._present_key(given)
            if key not in known:
                raise ConfigError(f"--set {key}: there is no such setting.{_nearest(key, known)}")
            section, _, field = key.rpartition(".")
            changes.setdefault(section, {})[field] = value
        updated: dict[str, Any] = changes.pop("", {})
        for section, values in changes.items():
            part = getattr(self, section)
            updated[section] = part.replace(**values) if isinstance(part, Config) else part.with_config(**values)
        return self.replace(**updated)

    def keys(self) -> tuple[str, ...]:
        """Every key that can be set, dotted."""
        nested = {name: getattr(self, name) for name in ("learner", "tasks", "outer", "runtime", "evaluation")}
        return (
            *(f"{name}.{key}" for name, part in nested.items() for key in type(_config(part)).model_fields),
            "seed",
            "name",
        )

    def _present_key(self, key: str) -> str:
        """``key`` by the present name of its setting: the overrides of an older run may have a former one."""
        section, dot, field = key.rpartition(".")
        part = getattr(self, section, None)
        settings = getattr(part, "config", part)
        return section + dot + settings.present_name(field) if isinstance(settings, Config) else key

    def settings(self) -> dict[str, Any]:
        """All settings, nested and JSON-ready."""
        return {
            "name": self.name,
            "seed": self.seed,
            "learner": {"kind": type(self.learner).__name__, **self.learner.config.to_dict()},
            "tasks": {"kind": type(self.tasks).__name__, **self.tasks.config.to_dict()},
            "outer": self.outer.to_dict(),
            "runtime": self.runtime.to_dict(),
            "evaluation": self.evaluation.to_dict(),
        }

    def identity(self) -> dict[str, Any]:
        """The settings that a result depends on, nothing else: what must be equal for a run to be resumed."""
        settings = self.settings()
        del settings["name"], settings["evaluation"], settings["outer"]["iterations"]
        settings["runtime"] = {key: settings["runtime"][key] for key in ("chunk_size", "threads")}
        settings["tasks"].pop("data", None)  # the place may change, the fingerprint may not
        settings["tasks"]["fingerprint"] = self.tasks.fingerprint
        return settings

    def changed(self, recorded: Mapping[str, Any], frozen: str | None) -> list[str]:
        """List what differs from the identity that a run was started with: ``key=old and now has new``.

        Args:
            recorded: that identity. A setting that it lacks did not exist then and counts as its default; a
                renamed one counts by its present name.
            frozen: digest of the weights that are not trained, see :func:`distmeta.learners.functional.frozen_digest`.
        """
        now, was = {**self.identity(), "frozen": frozen}, dict(recorded)
        for name in ("learner", "tasks", "outer"):
            kind = type(_config(getattr(self, name)))
            fields, was[name] = kind.model_fields, kind.renamed(was[name])
            later = {key: fields[key].default for key in now[name] if key in fields and key not in was[name]}
            was[name] = {**later, **was[name]}
        return differences(was, now)

    def digest(self) -> str:
        """sha256 of :meth:`identity`."""
        return digest(self.identity())


def _nearest(key: str, known: Sequence[str]) -> str:
    """The nearest setting and those of its part; all of them where none is near."""
    near = did_you_mean(key, known)
    part = near.partition("'")[2].partition(".")[0]
    of_part = [name for name in known if name.startswith(f"{part}.")]
    if near and of_part:
        return f"{near} Settings of {part}: {', '.join(name.partition('.')[2] for name in of_part)}."
    return f"{near} Settings: {', '.join(known)}."


def _config(part: Any) -> Config:
    return part if isinstance(part, Config) else part.config
