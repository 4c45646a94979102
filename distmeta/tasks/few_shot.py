"""N-way K-shot classification over Arrow shards (Vinyals et al. 2016, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator

from distmeta import config
from distmeta.config import NumberOrBounds
from distmeta.data.catalog import DATASETS, resolve
from distmeta.data.dataset import ClassSplit, ShardDataset
from distmeta.data.encoding import seen_classes_warning
from distmeta.data.preprocessing import Preprocessing
from distmeta.data.splits import advised_percentages, divide_again
from distmeta.data.verifying import verify_once
from distmeta.data.writer import IntArray
from distmeta.errors import DataError, TaskContractError
from distmeta.seeding import rng
from distmeta.tasks.augment import Augmentation
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.gathering import draw_rows, gathered_halves
from distmeta.types import SPLITS, Episode, Split, TaskRef, TaskSpec

_NUMBERS = ("ways", "shots", "queries")


class FewShot(TaskDistribution):
    """N-way K-shot tasks: K support and Q query examples of each of N classes, with labels 0..N-1.

    Args:
        data: a folder written by ``distmeta data build``, or the name of a dataset in the cache (``"glyphs"`` is built
            there on first use).
        ways: N, classes per task; or bounds such as ``(5, 20)``, see below.
        shots: K, support examples per class; or bounds.
        queries: Q, query examples per class; or bounds.
        train_ways, train_shots, train_queries: N, K and Q of the training tasks, if they differ: metric learners
            gain from more ways in training (Snell et al. 2017), Reptile from more shots. Numbers, or bounds.
        rotations: the splits in which a class turned by 90, 180 or 270 degrees is a class of its own (Santoro et al.
            2016): ``"none"``, ``"meta_train"`` or ``"all"``.
        augment: random change of each image of the training tasks: ``"affine"`` as in Koch et al. (2015), ``"small"``
            (turn and shift only), or ``"none"``. It is made for bright ink on a background of 0. Formerly ``distort``.
        within_group: the splits in which all classes of a task come from one group, such as an alphabet: ``"none"``,
            ``"meta_train"``, ``"evaluation"`` (validation and test) or ``"all"``. A class is named ``group/class``;
            all groups are equally likely.

    Bounds, both included, are drawn anew for every outer step of training, as in the episodes of Meta-Dataset
    (Triantafillou et al. 2020): all tasks of a step have the same N, K and Q. Validation and test tasks all have the
    same shapes, or their accuracies could not be averaged: those of the lower bounds, so ``ways=(5, 20), shots=(1, 5)``
    is tested on 5-way 1-shot tasks. Give ``train_ways=(5, 20), ways=10`` for another number, or evaluate the finished
    run on one, ``distmeta evaluate RUN --set tasks.ways=10``. On the command line bounds are
    ``--set "tasks.train_ways=[5,20]"``. A classifier such as MAML's has outputs for the largest N; in a task of fewer
    classes the others are left out.

    Example:
        >>> FewShot(data="glyphs", ways=20).config.shots
        1
        >>> tasks = FewShot(data="glyphs", ways=(5, 20), shots=(1, 5))
        >>> tasks.spec.outputs, tasks.spec_of("meta_train").outputs
        (5, 20)
    """

    class Config(config.Config):
        """The settings of :class:`FewShot`."""

        former_names: ClassVar[Mapping[str, str]] = {"distort": "augment"}

        data: str = "glyphs"
        ways: NumberOrBounds = 5
        shots: NumberOrBounds = 1
        queries: NumberOrBounds = 1
        train_ways: NumberOrBounds | None = None
        train_shots: NumberOrBounds | None = None
        train_queries: NumberOrBounds | None = None
        rotations: Literal["none", "meta_train", "all"] = "none"
        augment: Augmentation = "none"
        within_group: Literal["none", "meta_train", "evaluation", "all"] = "none"

        @model_validator(mode="after")
        def _numbers_with_effect(self) -> Self:
            for name in ("ways", "train_ways"):
                ways = getattr(self, name)
                if ways is not None and (ways[0] if isinstance(ways, tuple) else ways) < 2:
                    raise ValueError(
                        f"{name}={ways}: a task of one class has nothing to tell apart; expected 2 classes or more. "
                        f"Set {name}=2 or more"
                    )
            for name in _NUMBERS:
                bounds, train = getattr(self, name), getattr(self, f"train_{name}")
                if isinstance(bounds, tuple) and train is not None:
                    raise ValueError(
                        f"{name}={bounds} has no effect beside train_{name}={train}: validation and test tasks are all "
                        f"alike; expected one number. Set {name}={bounds[0]}, say"
                    )
            return self

    config: Config

    def __init__(self, data: str | Path = "glyphs", **settings: Any) -> None:
        super().__init__(data=str(data), **settings)
        self._opened: tuple[str, ShardDataset] | None = None
        self._expected: str | None = None

    @property
    def dataset(self) -> ShardDataset:
        """The opened dataset.

        Raises:
            DataError: the dataset is absent, damaged, or not the one that this object was made with in another process.
        """
        if self._opened is None or self._opened[0] != self.config.data:
            opened = ShardDataset.open(resolve(self.config.data))
            if self._expected is not None and opened.fingerprint != self._expected:
                raise DataError(
                    f"{opened.directory} holds the dataset {opened.fingerprint[:12]} here; the run was started with "
                    f"{self._expected[:12]}. Put the same dataset on every node."
                )
            self._opened = (self.config.data, opened)
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        # The other process opens its own copy by name or path, and checks that it holds the same data.
        c, expected = self.config, self._expected
        if self._opened is not None:
            directory, expected = self.dataset.directory, self.dataset.fingerprint
            # An absolute path, since the other process may have another current folder.
            if c.data not in DATASETS or directory == Path(c.data).absolute():
                c = c.replace(data=str(directory))
        return {"config": c, "_opened": None, "_expected": expected}

    def with_config(self, **changes: Any) -> FewShot:
        """A copy with some settings changed."""
        clone = super().with_config(**changes)
        # A copy is made of what would be sent to another process, without the opened dataset; here it is shared.
        same = clone.config.data == self.config.data
        clone._opened, clone._expected = (self._opened, self._expected) if same else (None, None)
        return clone

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the test tasks."""
        return self.spec_of("meta_test")

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tasks of one split."""
        ways, shots, queries = self._numbers(split)
        drawn = self._settings(split)[0]
        fewest = drawn[0] if isinstance(drawn, tuple) else None
        return TaskSpec(self.dataset.input_shape, ways, "classification", ways * shots, ways * queries, fewest)

    def at_step(self, split: Split, random: np.random.Generator) -> FewShot:
        """The tasks of one outer step: N, K and Q are drawn where bounds are given."""
        drawn: dict[str, int] = {}
        for name, bounds, test in zip(_NUMBERS, self._settings(split), self._settings("meta_test"), strict=True):
            if isinstance(bounds, tuple):
                drawn |= {f"train_{name}": int(random.integers(bounds[0], bounds[1] + 1)), name: test}
        return self.with_config(**drawn) if drawn else self

    def shaped(self, ref: TaskRef, seed: int) -> FewShot:
        """The tasks of the step of ``ref``; no random number is drawn where there are no bounds."""
        bounds = type(self).at_step is not FewShot.at_step or any(
            isinstance(n, tuple) for n in self._settings(ref.split)
        )
        return super().shaped(ref, seed) if bounds else self

    @property
    def fingerprint(self) -> str:
        """The dataset's fingerprint."""
        return self.dataset.fingerprint

    @property
    def preprocessing(self) -> Preprocessing:
        """How the dataset's inputs were made."""
        return Preprocessing.of(self.dataset.manifest)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the dataset has classes in."""
        present = self.dataset.manifest.splits
        return tuple(split for split in SPLITS if split in present)

    def describe(self) -> dict[str, Any]:
        """The dataset's name, folder, shape, licence and origin."""
        dataset = self.dataset
        return {
            "name": dataset.name,
            "source": str(dataset.directory),
            "input_shape": list(dataset.input_shape),
            "licence": dataset.manifest.licence,
            "origin": str(dataset.manifest.provenance.get("source", "")),
        }

    def classes(self, split: Split) -> int:
        """Number of classes that the dataset has in ``split``."""
        return self.dataset.split(split).classes

    def caution(self, split: Split) -> str:
        """A warning where inputs are features of an encoder that was trained on classes of ``meta_test``."""
        return seen_classes_warning(self.dataset.manifest.provenance) if split == "meta_test" else ""

    def check(self) -> None:
        """Check the settings against the dataset, and read every byte of it once (2 s per GB)."""
        if "meta_train" not in self.splits:
            raise TaskContractError(
                f"{self.dataset.directory} has no meta_train classes, only {', '.join(self.splits)}. Build it again "
                "with a split for training."
            )
        self._check_splits(self.splits)

    def check_split(self, split: Split) -> None:
        """Check one split; the others may lack classes or examples."""
        self._check_splits((split,))

    def _check_splits(self, splits: tuple[Split, ...]) -> None:
        c = self.config
        for split in splits:
            self._check_numbers(split)
        if c.rotations != "none" and (len(self.dataset.input_shape) != 3 or len(set(self.dataset.input_shape[1:])) > 1):
            raise TaskContractError(
                f"rotations='{c.rotations}' needs square images [C, H, H]; the dataset has inputs of shape "
                f"{list(self.dataset.input_shape)}. Set tasks.rotations=none."
            )
        if c.augment != "none" and len(self.dataset.input_shape) != 3:
            raise TaskContractError(
                f"augment='{c.augment}' needs images [C, H, W]; the dataset has inputs of shape "
                f"{list(self.dataset.input_shape)}. Set tasks.augment=none."
            )
        verify_once(self.dataset.directory)
        for split in splits:
            super().check_split(split)

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw N classes without replacement, then K + Q examples of each without replacement.

        Where bounds are given, training tasks are drawn from :meth:`at_step`'s distribution, of one N, K and Q.
        """
        return self.draw_with(split, [random]).map(lambda part: part[0])

    def draw_refs(self, refs: Sequence[TaskRef], seed: int) -> Episode:
        """Draw the tasks of a chunk together, each with the numbers of a generator of its own, as :meth:`draw` does."""
        if not self.draws_alone_as(FewShot):
            return super().draw_refs(refs, seed)
        return self.draw_with(refs[0].split, self.generators(refs, seed))

    def draw_with(self, split: Split, randoms: Sequence[np.random.Generator]) -> Episode:
        """Draw one task with each generator, stacked; images are copied once, from the shards to where they stay."""
        ways, shots, queries = self._numbers(split)
        data = self._split(split)
        chosen = self._draw_classes(split, randoms)
        rows = draw_rows(data.counts[chosen[0]], shots + queries, randoms)
        classes, turns = (np.broadcast_to(part[:, :, None], rows.shape) for part in chosen)
        augmentation = self.config.augment if split == "meta_train" else "none"
        parts = gathered_halves(data, (classes, rows, turns), shots, augmentation, randoms)
        labels = torch.arange(ways)[:, None]
        support_y, query_y = (labels.expand(len(randoms), -1, n).contiguous().flatten(1) for n in (shots, queries))
        shape = self.dataset.input_shape
        support_x, query_x = (part.view(len(randoms), -1, *shape) for part in parts)
        return Episode(support_x, support_y, query_x, query_y, ways=ways, outputs=ways)

    def class_names(self, ref: TaskRef, seed: int) -> tuple[str, ...]:
        """Names of the classes of one task, by label: those of the dataset, and by how much a class is turned."""
        now = self.at_step(ref.split, rng(seed, self.fingerprint, ref.split, ref.step, "shapes"))
        return now.names_drawn(ref.split, rng(seed, self.fingerprint, ref.split, ref.step, ref.index))

    def names_drawn(self, split: Split, random: np.random.Generator) -> tuple[str, ...]:
        """Names of the classes that :meth:`draw` takes with the same random numbers."""
        names = self._split(split).names
        (classes,), (turns,) = self._draw_classes(split, [random])
        return tuple(
            f"{names[position]}, turned by {90 * turn} degrees" if turn else names[position]
            for position, turn in zip(classes, turns, strict=True)
        )

    def _draw_classes(self, split: Split, randoms: Sequence[np.random.Generator]) -> tuple[IntArray, IntArray]:
        """Positions ``[T, N]`` of N classes, and the quarter turns of each; the first random numbers of a task."""
        ways, data, turns = self._numbers(split)[0], self._split(split), self._turns(split)
        chosen, everything = np.empty((len(randoms), ways), np.int64), data.classes * turns
        groups = list(data.groups.values()) if self._grouped(split) else []
        for i, random in enumerate(randoms):
            if groups:
                of_group = groups[int(random.integers(len(groups)))]
                picked = random.choice(len(of_group) * turns, size=ways, replace=False)
                chosen[i] = of_group[picked // turns] * turns + picked % turns
            else:
                chosen[i] = random.choice(everything, size=ways, replace=False)
        return chosen // turns, chosen % turns

    def _flaw(self, name: str, part: torch.Tensor, spec: TaskSpec) -> str | None:
        if self.draws_alone_as(FewShot) and (name[-1] == "y" or self.dataset.dtype == np.uint8):
            return None  # labels are counted from 0, and bytes are finite; to ask each takes as long as to draw it
        return super()._flaw(name, part, spec)

    def _settings(self, split: Split) -> tuple[Any, ...]:
        """N, K and Q of ``split``, as bounds where they are drawn per step."""
        if split == "meta_train":
            return tuple(getattr(self.config, f"train_{n}") or getattr(self.config, n) for n in _NUMBERS)
        found = (getattr(self.config, n) for n in _NUMBERS)
        return tuple(n[0] if isinstance(n, tuple) else n for n in found)

    def _numbers(self, split: Split) -> tuple[int, int, int]:
        """N, K and Q of ``split``, the largest ones where they are drawn per step."""
        ways, shots, queries = (n[1] if isinstance(n, tuple) else n for n in self._settings(split))
        return ways, shots, queries

    def _check_numbers(self, split: Split) -> None:
        data, turns = self._split(split), self._turns(split)
        ways, shots, queries = self._numbers(split)
        train = "train_" if split == "meta_train" else ""
        if ways > data.classes * turns:
            raise TaskContractError(
                f"ways={ways} but {split} of '{self.dataset.name}' has {data.classes * turns} "
                f"class{'' if data.classes * turns == 1 else 'es'}; expected at least as many as ways. "
                f"{self._fewer_ways(split, train)}"
            )
        if self._grouped(split):
            self._check_groups(split, ways)
        fewest = int(data.counts.argmin())
        if shots + queries > data.counts[fewest]:
            raise TaskContractError(
                f"shots + queries = {shots} + {queries} but class '{data.names[fewest]}' of {split} has "
                f"{data.counts[fewest]} examples; expected at most that many. Lower tasks.shots or tasks.queries"
                f"{' (or tasks.train_shots, tasks.train_queries)' if train else ''}."
            )

    def _fewer_ways(self, split: Split, train: str) -> str:
        """What to change where a split has fewer classes than a task."""
        ways = self._numbers(split)[0]
        shared = [s for s in self.splits if self._numbers(s)[0] == ways]  # splits with the same setting
        most, smallest = min((self._split(s).classes * self._turns(s), s) for s in shared)
        key = f"tasks.{train if self.config.train_ways else ''}ways"
        classes, provenance = {s: self.classes(s) for s in self.splits}, self.dataset.manifest.provenance
        fewest = -(-ways // min(map(self._turns, shared)))
        possible = advised_percentages(sum(classes.values()), fewest) is not None
        if most < 2:  # no number of ways would do
            again = divide_again(classes, fewest if possible else 2, provenance)
            return again if possible else f"{again} Then set {key}=2."
        which = f" (all that {smallest} has)" if smallest != split else ""
        fix = f"Set {key}={most}{' or less' if most > 2 else ''}{which}, or use a larger dataset."
        return f"{fix} {divide_again(classes, fewest, provenance)}" if possible else fix

    def _grouped(self, split: Split) -> bool:
        within = self.config.within_group
        return within in ("all", "meta_train" if split == "meta_train" else "evaluation")

    def _check_groups(self, split: Split, ways: int) -> None:
        data, turns = self._split(split), self._turns(split)
        groups = data.groups
        if "" in groups:
            raise TaskContractError(
                f"within_group='{self.config.within_group}' needs classes named group/class; {split} of "
                f"'{self.dataset.name}' has class '{data.names[groups[''][0]]}' without a group. Set "
                "tasks.within_group=none, or build the dataset with such names."
            )
        smallest = min(groups, key=lambda name: len(groups[name]))
        if ways > len(groups[smallest]) * turns:
            train, most = "train_" if split == "meta_train" else "", len(groups[smallest]) * turns
            fewer = f"tasks.{train}ways={most} or less, or " if most > 1 else ""
            raise TaskContractError(
                f"{ways}-way tasks within a group, but group '{smallest}' of {split} has "
                f"{most} class{'' if most == 1 else 'es'}; expected at least {ways}. Set {fewer}another "
                "tasks.within_group."
            )

    def _split(self, split: Split) -> ClassSplit:
        return self.dataset.split(split)

    def _turns(self, split: Split) -> int:
        turned = self.config.rotations == "all" or (self.config.rotations == "meta_train" and split == "meta_train")
        return 4 if turned else 1
