"""Sequences of images whose labels come one step late (Santoro et al. 2016, section 2 and figure 1).

At step t the input is ``(x_t, y_{t-1})`` and the target is ``y_t``. The first image of a class can only be guessed; the
later ones can be classified by remembering the label. Labels are assigned anew in each sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt

from distmeta import config
from distmeta.data.dataset import ShardDataset
from distmeta.errors import TaskContractError
from distmeta.occurrences import accuracies
from distmeta.seeding import rng
from distmeta.tasks.augment import turn_and_shift
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.few_shot import FewShot
from distmeta.types import Episode, Metrics, Split, TaskRef, TaskSpec

_MOST_NUMBERS = 2**20  # of images, at the size of the dataset, at a time

CHARACTERS = 5
"""Length of a string label, and of its alphabet: five characters, each one of five (Santoro et al., section 4.1.2)."""


class LabelSequences(TaskDistribution):
    """Sequences of L images of N classes, L/N of each, in random order, with each label in the input of the next step.

    Args:
        data: a folder written by ``distmeta data build``, or the name of a dataset in the cache.
        ways: N, classes per sequence.
        length: L, steps of a sequence; a multiple of N, at least 2N.
        labels: ``"one-hot"`` for numbers 0..N-1, targets ``[L]``; ``"strings"`` for a random string of five characters
            per class, each one of five, targets ``[L, 5]``.
        size: height and width that the images are scaled to, in pixels (20 in the paper).
        rotations: the splits in which a class turned by 90, 180 or 270 degrees is a class of its own: ``"none"``,
            ``"meta_train"`` or ``"all"``.
        augment: whether each training image is turned by up to 10 degrees and shifted by up to 5 % of its side.

    Example:
        >>> tasks = LabelSequences(data="glyphs", ways=5, length=50, size=20)
        >>> tasks.spec.input_shape, tasks.spec.outputs  # 20 * 20 pixels and one of 5 labels
        ((405,), 5)
        >>> tasks.take(1)[0].episode.query_y.bincount().tolist()
        [10, 10, 10, 10, 10]
    """

    class Config(config.Config):
        """The settings of :class:`LabelSequences`."""

        data: str = "glyphs"
        ways: Annotated[int, Field(ge=2)] = 5  # one class leaves nothing to tell apart
        length: PositiveInt = 50
        labels: Literal["one-hot", "strings"] = "one-hot"
        size: PositiveInt = 20
        rotations: Literal["none", "meta_train", "all"] = "all"
        augment: bool = True

    config: Config

    def __init__(self, data: str | Path = "glyphs", **settings: Any) -> None:
        super().__init__(data=str(data), **settings)
        self._images = FewShot(**self._image_settings)

    @property
    def _image_settings(self) -> dict[str, Any]:
        c = self.config
        shots = max(1, c.length // c.ways - 1)  # and one query: L/N of each class; check() validates the settings
        return {"data": c.data, "ways": c.ways, "shots": shots, "queries": 1, "rotations": c.rotations}

    def with_config(self, **changes: Any) -> LabelSequences:
        """A copy with some settings changed."""
        clone = super().with_config(**changes)
        clone._images = self._images.with_config(**clone._image_settings)
        return clone

    @property
    def spec(self) -> TaskSpec:
        """Shapes of every sequence."""
        c, channels = self.config, self._images.dataset.input_shape[0]
        codes = c.ways if c.labels == "one-hot" else CHARACTERS**2
        return TaskSpec((channels * c.size**2 + codes,), codes, "sequence", support=0, queries=c.length)

    @property
    def dataset(self) -> ShardDataset:
        """The opened dataset."""
        return self._images.dataset

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

    def check(self) -> None:
        """Check the settings against the dataset, and read every byte of it once."""
        self._check_settings(self.splits)
        self._images.check()
        for split in self.splits:
            super().check_split(split)

    def check_split(self, split: Split) -> None:
        """Check one split; the others may lack classes or images."""
        self._check_settings((split,))
        self._images.check_split(split)
        super().check_split(split)

    def _check_settings(self, splits: tuple[Split, ...]) -> None:
        c, dataset = self.config, self._images.dataset
        if c.length % c.ways or c.length < 2 * c.ways:
            raise TaskContractError(
                f"length={c.length} is not a multiple of ways={c.ways}, at least twice: each class is shown equally "
                f"often, and once leaves nothing to remember. Set tasks.length={max(2, c.length // c.ways) * c.ways}."
            )
        if len(dataset.input_shape) != 3 or dataset.input_shape[1] != dataset.input_shape[2]:
            raise TaskContractError(
                f"LabelSequences needs square images [C, H, H]; the dataset has inputs of shape "
                f"{list(dataset.input_shape)}. Build one from images."
            )
        for split in splits:
            data = dataset.split(split)
            fewest = int(data.counts.argmin())
            if c.length // c.ways > data.counts[fewest]:
                raise TaskContractError(
                    f"length / ways = {c.length // c.ways} images of each class, but class '{data.names[fewest]}' of "
                    f"{split} has {data.counts[fewest]}; expected at most that many. Set "
                    f"tasks.length={data.counts[fewest] * c.ways} or less."
                )
        if c.labels == "strings" and c.ways > CHARACTERS**CHARACTERS:
            raise TaskContractError(
                f"ways={c.ways} but there are {CHARACTERS**CHARACTERS} strings of {CHARACTERS} characters. Lower "
                "tasks.ways."
            )

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw N classes, L/N images of each, and a random order."""
        return self._sequence(split, random, self._images.draw(split, random))

    def draw_refs(self, refs: Sequence[TaskRef], seed: int) -> Episode:
        """Draw the sequences of a chunk: each as :meth:`draw` does, the images of several at once."""
        if not self.draws_alone_as(LabelSequences):
            return super().draw_refs(refs, seed)
        split, sequences = refs[0].split, []
        together = max(1, _MOST_NUMBERS // (self.config.length * math.prod(self.dataset.input_shape)))
        for start in range(0, len(refs), together):
            randoms = self.generators(refs[start : start + together], seed)
            images = self._images.draw_with(split, randoms)
            for i, random in enumerate(randoms):
                sequences.append(self._sequence(split, random, images.map(lambda part, i=i: part[i])))  # type: ignore[misc]
        return Episode.stack(sequences)

    def _sequence(self, split: Split, random: np.random.Generator, images: Episode) -> Episode:
        """The images of N classes, drawn in random order, so that labels are random too, as one sequence."""
        c = self.config
        order = torch.from_numpy(random.permutation(c.length))
        x = torch.cat([images.support_x, images.query_x])[order]
        y = torch.cat([images.support_y, images.query_y])[order]
        if split == "meta_train" and c.augment:
            x = turn_and_shift(x, random)
        if x.shape[-1] != c.size:
            x = F.interpolate(x, (c.size, c.size), mode="bilinear", antialias=True, align_corners=False)
        if c.labels == "strings":
            names = random.choice(CHARACTERS**CHARACTERS, size=c.ways, replace=False)
            places = CHARACTERS ** np.arange(CHARACTERS)[::-1]
            y = torch.from_numpy(names[:, None] // places % CHARACTERS)[y]
            code = F.one_hot(y, CHARACTERS).flatten(1)
        else:
            code = F.one_hot(y, c.ways)
        previous = torch.cat([torch.zeros_like(code[:1]), code[:-1]]).to(x.dtype)
        return Episode.sequence(torch.cat([x.flatten(1), previous], -1), y)

    def class_names(self, ref: TaskRef, seed: int) -> tuple[str, ...]:
        """Names of the classes of one sequence; by label where labels are numbers."""
        return self._images.names_drawn(ref.split, rng(seed, self.fingerprint, ref.split, ref.step, ref.index))

    def images(self, episode: Episode) -> torch.Tensor:
        """The images ``[L, C, size, size]`` of one sequence, without the labels that are shown beside them."""
        pixels = episode.query_x[:, : -self.spec.outputs]
        return pixels.reshape(len(pixels), -1, self.config.size, self.config.size)

    def baseline(self, episodes: Episode) -> Metrics:
        """Predict the label of the nearest earlier image by pixels.

        Returns:
            ``baseline_accuracy`` and ``baseline_accuracy_instance_k``, each ``[T]``. The first image of a sequence has
            no earlier one and counts as wrong.
        """
        x, y = episodes.query_x[..., : -self.spec.outputs], episodes.query_y
        later = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool, device=x.device).triu()
        distance = torch.cdist(x, x).masked_fill(later, torch.inf)
        nearest = distance.argmin(-1)
        codes = y.reshape(*y.shape[:2], -1)
        right = (codes.gather(1, nearest[:, :, None].expand_as(codes)) == codes).all(-1)
        right[:, 0] = False
        return accuracies(right, y, prefix="baseline_")
