"""Images from some of their pixels, as regression from positions to colours (Garnelo et al. 2018, section 4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import PositiveInt, model_validator

from distmeta import config
from distmeta.config import NumberOrBounds
from distmeta.data.dataset import ShardDataset
from distmeta.data.shard_file import floats
from distmeta.data.verifying import verify_once
from distmeta.errors import TaskContractError
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.few_shot import FewShot
from distmeta.types import Episode, Split, TaskSpec


class ImageCompletion(TaskDistribution):
    """A task is one image: positions ``[., 2]`` in [0, 1]^2, row first, and values ``[., C]`` there.

    Random pixels are the support set; all others, or some of them, are the queries. Images of the test are of classes
    that training has not seen.

    Args:
        data: shards of images, by name or folder.
        pixels: support pixels; bounds are drawn for every step of training.
        test_pixels: those of validation and test tasks; by default the middle of ``pixels``.
        queries: other pixels that are asked for; all by default.

    Example:
        >>> tasks = ImageCompletion(data="glyphs", pixels=(10, 200), test_pixels=50)
        >>> spec = tasks.spec
        >>> spec.input_shape, spec.outputs, spec.support, spec.queries  # 28 * 28 pixels
        ((2,), 1, 50, 734)
    """

    class Config(config.Config):
        """The settings of :class:`ImageCompletion`."""

        data: str = "glyphs"
        pixels: NumberOrBounds = (10, 200)
        test_pixels: PositiveInt | None = None
        queries: PositiveInt | None = None

        @model_validator(mode="after")
        def _no_number_without_effect(self) -> Self:
            if isinstance(self.pixels, int) and self.test_pixels == self.pixels:
                raise ValueError(f"test_pixels={self.test_pixels} is pixels={self.pixels}. Leave test_pixels out")
            return self

    config: Config

    def __init__(self, data: str | Path = "glyphs", **settings: Any) -> None:
        super().__init__(data=str(data), **settings)
        self._images = FewShot(self.config.data)

    def with_config(self, **changes: Any) -> ImageCompletion:
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
        """Shapes of the test tasks."""
        return self.spec_of("meta_test")

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tasks of ``split``, the largest where the number of pixels is drawn."""
        channels, height, width = self._shape()
        most, fewest = self._pixels(split)
        queries = self.config.queries or height * width - fewest
        return TaskSpec((2,), channels, "regression", most, queries)

    def at_step(self, split: Split, random: np.random.Generator) -> ImageCompletion:
        """The tasks of one outer step: the number of support pixels is drawn where bounds are given."""
        bounds = self.config.pixels
        if split != "meta_train" or isinstance(bounds, int):
            return self
        return self.with_config(pixels=int(random.integers(bounds[0], bounds[1] + 1)), test_pixels=None)

    @property
    def fingerprint(self) -> str:
        """The dataset's fingerprint."""
        return self._images.fingerprint

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the dataset has classes in."""
        return self._images.splits

    def describe(self) -> dict[str, Any]:
        """The dataset's name, folder and shape."""
        return self._images.describe()

    def classes(self, split: Split) -> int:
        """Number of classes that the dataset has in ``split``."""
        return self._images.classes(split)

    def check_split(self, split: Split) -> None:
        """Check the numbers of pixels against the images, and read every byte of the dataset once.

        Raises:
            TaskContractError: the dataset holds no images, or images with too few pixels.
        """
        _, height, width = self._shape()
        most, asked = self._pixels(split)[0], self.config.queries or 1
        if most + asked > height * width:
            name = "pixels" if split == "meta_train" or self.config.test_pixels is None else "test_pixels"
            raise TaskContractError(
                f"{most} support pixels and {asked} queries, but the images of '{self.dataset.name}' have "
                f"{height * width} pixels; expected at most that many. Set tasks.{name}={height * width - asked} or "
                "less, or fewer tasks.queries."
            )
        verify_once(self.dataset.directory)
        super().check_split(split)

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw a class, an image of it, and an order of its pixels."""
        data = self.dataset.split(split)
        chosen = int(random.integers(data.classes))
        row = int(random.integers(data.counts[chosen]))
        image = floats(data.gather(np.array([chosen]), np.array([row])))[0]
        channels, height, width = image.shape
        support = self._pixels(split)[0]
        asked = support + (self.config.queries or height * width - support)
        order = torch.from_numpy(random.permutation(height * width)[:asked])
        places = torch.stack([order // width / max(height - 1, 1), order % width / max(width - 1, 1)], 1)
        values = image.reshape(channels, -1).T[order]
        return Episode(places[:support], values[:support], places[support:], values[support:])

    def _shape(self) -> tuple[int, int, int]:
        shape = self.dataset.input_shape
        if len(shape) != 3:
            raise TaskContractError(
                f"ImageCompletion needs images [C, H, W]; the dataset has inputs of shape {list(shape)}. Build one "
                "from images."
            )
        return shape[0], shape[1], shape[2]

    def _pixels(self, split: Split) -> tuple[int, int]:
        """The most and the fewest support pixels."""
        c = self.config
        low, high = (c.pixels, c.pixels) if isinstance(c.pixels, int) else c.pixels
        if split == "meta_train":
            return high, low
        return (c.test_pixels or (low + high) // 2,) * 2
