"""The cases of benchmarks: the experiment of a job file, or one that needs no data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt

from distmeta import config
from distmeta.config import did_you_mean, flatten
from distmeta.errors import ConfigError
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import Job
from distmeta.experiment.settings import Outer, Runtime
from distmeta.learners import find_learners
from distmeta.learners.base import MetaLearner
from distmeta.learners.probe import probe
from distmeta.models.backbones import conv4, mlp
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.few_shot import FewShot
from distmeta.tasks.sinusoids import Sinusoids
from distmeta.types import Episode, Split, TaskRef, TaskSpec

What = Experiment | Job


class RandomImages(TaskDistribution):
    """Few-shot tasks of noise, in the shapes of real ones: a step costs the same, and there is nothing to download.

    Example:
        >>> RandomImages(ways=20).spec.support
        20
    """

    class Config(config.Config):
        """The settings of :class:`RandomImages`.

        Args:
            ways: classes per task.
            shots: support images per class.
            queries: query images per class.
            size: height and width, pixels.
            channels: 1 for grey, 3 for colour.
        """

        ways: PositiveInt = 5
        shots: PositiveInt = 1
        queries: PositiveInt = 1
        size: PositiveInt = 28
        channels: PositiveInt = 1

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the tasks."""
        c = self.config
        return TaskSpec(
            input_shape=(c.channels, c.size, c.size),
            outputs=c.ways,
            kind="classification",
            support=c.ways * c.shots,
            queries=c.ways * c.queries,
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the class's name: there are no data."""
        return hashlib.sha256(b"distmeta.bench.RandomImages").hexdigest()

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw one task: normal noise."""
        parts: list[torch.Tensor] = []
        for per_class in (self.config.shots, self.config.queries):
            labels = np.repeat(np.arange(self.config.ways), per_class)
            noise = random.standard_normal((len(labels), *self.spec.input_shape), dtype=np.float32)
            parts += [torch.from_numpy(noise), torch.from_numpy(labels)]
        return Episode(*parts)


class RandomSequences(TaskDistribution):
    """Sequences of noise with random labels, in the shapes of :class:`~distmeta.tasks.label_sequences.LabelSequences`.

    Example:
        >>> RandomSequences(length=4, ways=2, inputs=3).take(1)[0].episode.query_x.shape
        torch.Size([4, 3])
    """

    class Config(config.Config):
        """The settings of :class:`RandomSequences`.

        Args:
            ways: classes.
            length: steps.
            inputs: numbers per step: by default 20x20 pixels and a label.
        """

        ways: PositiveInt = 5
        length: PositiveInt = 50
        inputs: PositiveInt = 405

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the tasks."""
        c = self.config
        return TaskSpec(
            input_shape=(c.inputs,),
            outputs=c.ways,
            kind="sequence",
            support=0,
            queries=c.length,
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the class's name: there are no data."""
        return hashlib.sha256(b"distmeta.bench.RandomSequences").hexdigest()

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw one task: normal noise."""
        c = self.config
        noise = random.standard_normal((c.length, c.inputs), dtype=np.float32)
        return Episode.sequence(torch.from_numpy(noise), torch.from_numpy(random.integers(c.ways, size=c.length)))


def random_images(learner: str | None = None) -> Experiment:
    """The step of MAML on Omniglot (Finn et al. 2017): conv4 of 64 filters, 28x28, 5-way 1-shot, 32 tasks.

    Args:
        learner: another algorithm on the same tasks, by class name; metric learners get conv4 without its head.

    Raises:
        ConfigError: there is no such learner, or it takes no images one by one.

    Example:
        >>> random_images("ProtoNet").learner.model_kind
        'encoder'
    """
    known = find_learners()
    fits = [name for name, kind in known.items() if kind.model_kind in ("classifier", "encoder")]
    name = learner or "MAML"
    if name not in fits:
        why = f"takes no images but a {known[name].model_kind} model" if name in known else "does not exist"
        raise ConfigError(
            f"--learner {name} {why}; expected one of {', '.join(fits)}.{did_you_mean(name, fits)} Any learner with "
            "any model can be measured by a job file: give JOB.py."
        )
    kind = known[name]
    settings: dict[str, Any] = {"inner_lr": 0.4} if name == "MAML" else {}
    return Experiment(
        learner=kind(conv4(64, head=kind.model_kind == "classifier"), **settings),
        tasks=RandomImages(),
        outer=Outer(meta_batch_size=32),
        runtime=Runtime(chunk_size=8),
        name="random-images",
    )


def sinusoids() -> Experiment:
    """The step of MAML on sinusoids (Finn et al. 2017): the cheapest there is, so that all else shows most."""
    learner = find_learners()["MAML"](mlp((40, 40)), inner_lr=0.01)
    return Experiment(
        learner=learner,
        tasks=Sinusoids(shots=10, queries=10),
        outer=Outer(meta_batch_size=25),
        runtime=Runtime(chunk_size=25),
        name="sinusoids",
    )


def glyphs() -> Experiment:
    """5-way 1-shot tasks with 15 queries per class from the built-in dataset, which is built when it is absent."""
    return random_images().replace(tasks=FewShot(data="glyphs", ways=5, shots=1, queries=15), name="glyphs")


def experiment_of(what: What) -> Experiment:
    """The experiment of a job, or itself."""
    return what.experiment if isinstance(what, Job) else what


Section = Literal["learner", "tasks", "outer", "runtime"]


def case_of(
    experiment: Experiment, *sections: Section, parameters: int | None = None, varied: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The settings that a benchmark's numbers depend on, by dotted key.

    Args:
        experiment: what is measured.
        sections: which parts of it matter.
        parameters: numbers of the model's parameters, which no setting shows.
        varied: settings that the benchmark varies itself.
    """
    identity: Mapping[str, Any] = experiment.identity()
    found = flatten({name: identity[name] for name in ("seed", *sections)})
    if parameters is not None:
        found["parameters"] = parameters
    return {key: value for key, value in found.items() if key not in varied}


def ready(experiment: Experiment) -> MetaLearner:
    """The learner as a run uses it: its model built, checked, and its engine chosen.

    Raises:
        DistmetaError: the experiment cannot run.
    """
    tasks = experiment.tasks
    tasks.check_split("meta_train")
    spec = tasks.spec_of("meta_train")
    two = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], experiment.seed)
    return probe(experiment.learner.bind(spec, experiment.seed).in_main_memory(), spec, two, tasks.spec).learner


def has_inner_steps(experiment: Experiment) -> bool:
    """Return whether the learner has inner steps, whose number can be varied."""
    return "inner_steps" in type(experiment.learner.config).model_fields
