"""Randomly projected images: how many tasks a learner needs before it learns to learn (Kirsch et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt

from distmeta import config
from distmeta.data.dataset import ShardDataset
from distmeta.data.shard_file import floats
from distmeta.data.verifying import verify_once
from distmeta.errors import TaskContractError
from distmeta.seeding import rng
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.few_shot import FewShot
from distmeta.tasks.gathering import class_by_class
from distmeta.types import Episode, Split, TaskRef, TaskSpec


class Projections(TaskDistribution):
    """N-way classification of images behind a random linear map, from a set of training tasks as large as asked for.

    A task is N classes, their labels and a matrix ``[pixels, size]`` of independent normal numbers, of variance 1 /
    pixels. Training draws from ``tasks`` of them, with other examples each time; validation and test tasks have classes
    and matrices of their own. With few training tasks a network remembers them; with many it has to learn from the
    support set (Kirsch, Harrison, Sohl-Dickstein, Metz 2022, sections 3 and 4.1; their tasks are maps and labels of one
    image set of 10 classes).

    Args:
        data: shards, by name or folder.
        tasks: number of different training tasks.
        ways: N.
        shots: support examples per class.
        queries: queries per class.
        size: numbers of an input.

    Example:
        >>> Projections(tasks=64, size=32).config.ways
        5
    """

    class Config(config.Config):
        """The settings of :class:`Projections`."""

        data: str = "glyphs"
        tasks: PositiveInt = 2**16
        ways: PositiveInt = 5
        shots: PositiveInt = 5
        queries: PositiveInt = 5
        size: PositiveInt = 64

    config: Config

    def __init__(self, data: str | Path = "glyphs", **settings: Any) -> None:
        super().__init__(data=str(data), **settings)
        self._images = FewShot(self.config.data)

    def with_config(self, **changes: Any) -> Projections:
        """A copy with some settings changed."""
        clone = super().with_config(**changes)
        clone._images = self._images.with_config(data=clone.config.data)
        return clone

    @property
    def dataset(self) -> ShardDataset:
        """The opened dataset."""
        return self._images.dataset

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the tasks."""
        c = self.config
        return TaskSpec((c.size,), c.ways, "classification", c.ways * c.shots, c.ways * c.queries)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the dataset has classes in."""
        return self._images.splits

    @property
    def fingerprint(self) -> str:
        """The dataset's fingerprint."""
        return self._images.fingerprint

    def describe(self) -> dict[str, Any]:
        """The dataset's name, folder and shape."""
        return self._images.describe()

    def classes(self, split: Split) -> int:
        """Number of classes that the dataset has in ``split``."""
        return self._images.classes(split)

    def check_split(self, split: Split) -> None:
        """Check that the split has enough classes and examples, and read every byte of the dataset once."""
        c, data = self.config, self.dataset.split(split)
        if c.ways > data.classes or c.shots + c.queries > int(data.counts.min()):
            raise TaskContractError(
                f"ways={c.ways} and shots + queries={c.shots + c.queries}, but {split} of '{self.dataset.name}' has "
                f"{data.classes} classes of {int(data.counts.min())} examples or more. Lower tasks.ways, tasks.shots "
                "or tasks.queries."
            )
        verify_once(self.dataset.directory)
        super().check_split(split)

    def draw_ref(self, ref: TaskRef, seed: int) -> Episode:
        """The task that ``ref`` names: in training one of ``tasks``, with examples of its own."""
        examples = rng(seed, self.fingerprint, ref.split, ref.step, ref.index)
        if ref.split != "meta_train":
            return self._drawn(ref.split, examples, examples)
        which = int(examples.integers(self.config.tasks))
        return self._drawn(ref.split, rng(seed, self.fingerprint, "projection", which), examples)

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """A task of its own, of no list."""
        return self._drawn(split, random, random)

    def _drawn(self, split: Split, task: np.random.Generator, examples: np.random.Generator) -> Episode:
        c, data = self.config, self.dataset.split(split)
        chosen = task.choice(data.classes, size=c.ways, replace=False)
        pixels = int(np.prod(self.dataset.input_shape))
        matrix = task.standard_normal((pixels, c.size), dtype=np.float32) / np.float32(np.sqrt(pixels))
        count = c.shots + c.queries
        rows = np.concatenate([examples.choice(int(data.counts[one]), count, replace=False) for one in chosen])
        images = floats(data.gather(np.repeat(chosen, count), rows)).flatten(1)
        inputs = (images - images.mean()) @ torch.from_numpy(matrix)
        return class_by_class(inputs.reshape(c.ways, count, c.size), c.shots)
