"""Lake's runs as meta-test tasks: 20 one-shot runs of 20 trials (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from distmeta.data.shard_file import floats
from distmeta.data.sources.omniglot_runs import RUNS, WAYS
from distmeta.errors import TaskContractError
from distmeta.tasks.few_shot import FewShot
from distmeta.tasks.gathering import class_by_class
from distmeta.types import Episode, Split, TaskRef


class LakeRuns(FewShot):
    """Training tasks from the background alphabets; meta-test task i is run i, 20-way 1-shot within an alphabet.

    The 20 test tasks are the 400 trials that Lake et al. and Koch et al. (2015) report: ``Evaluation(test_tasks=20)``.
    Report ``accuracy_non_transductive``, since a trial has one test image. Its mean over the runs is the fraction of
    the 400 trials classified correctly; its interval is over the 20 runs, because the trials of a run share an
    alphabet and two drawers and are not independent (400 independent trials would give ``1.96 sqrt(p (1 - p) /
    400)``). Published figures are for 105x105 images: state the size with the figure.

    Args:
        data: a folder written by ``distmeta data build omniglot-runs``.
        settings: settings of :class:`FewShot` for training and validation tasks; meta-test tasks do not depend on them.

    Example:
        >>> tasks = LakeRuns(data="omniglot-runs", train_ways=20, train_queries=2, augment="affine")
        >>> tasks.config.ways, tasks.count("meta_test")
        (20, 20)
    """

    class Config(FewShot.Config):
        """The settings of :class:`LakeRuns`."""

        data: str = "omniglot-runs"
        ways: PositiveInt = WAYS

    config: Config

    def __init__(self, data: str | Path = "omniglot-runs", **settings: Any) -> None:
        super().__init__(data, **settings)
        self._require_protocol()

    def with_config(self, **changes: Any) -> LakeRuns:
        """A copy with some settings changed."""
        clone = super().with_config(**changes)
        assert isinstance(clone, LakeRuns)
        clone._require_protocol()
        return clone

    def check(self) -> None:
        """Check that the data hold the runs, then all that :class:`FewShot` checks."""
        self._check_numbers("meta_test")
        super().check()

    def count(self, split: Split) -> int | None:
        """20 for ``meta_test``; no limit for the other splits."""
        return RUNS if split == "meta_test" else None

    def draw_ref(self, ref: TaskRef, seed: int) -> Episode:
        """Return run ``ref.index`` for ``meta_test``, whatever the seed; draw training and validation tasks."""
        if ref.split != "meta_test":
            return super().draw_ref(ref, seed)
        if ref.index >= RUNS:
            raise TaskContractError(
                f"There are {RUNS} runs, 0 to {RUNS - 1}; run {ref.index} was asked for. Set evaluation.test_tasks="
                f"{RUNS}, or give --tasks {RUNS}.",
                task_ref=ref,
            )
        classes = np.arange(ref.index * WAYS, (ref.index + 1) * WAYS)
        images = floats(self._split(ref.split).gather(classes.repeat(2), np.tile([0, 1], WAYS)))
        return class_by_class(images.reshape(WAYS, 2, *images.shape[1:]), shots=1)

    def class_names(self, ref: TaskRef, seed: int) -> tuple[str, ...]:
        """Names of the classes of one task, by label."""
        if ref.split != "meta_test":
            return super().class_names(ref, seed)
        return self._split(ref.split).names[ref.index * WAYS : (ref.index + 1) * WAYS]

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw a task; a meta-test task is one of the runs."""
        if split == "meta_test":
            return self.draw_ref(TaskRef(split, 0, int(random.integers(RUNS))), 0)
        return super().draw(split, random)

    def _check_numbers(self, split: Split) -> None:
        if split != "meta_test":
            super()._check_numbers(split)
            return
        names = self._split(split).names
        expected = tuple(f"run{run:02d}/class{way:02d}" for run in range(1, RUNS + 1) for way in range(1, WAYS + 1))
        if names != expected:
            raise TaskContractError(
                f"meta_test of '{self.dataset.name}' has {len(names)} classes from {names[:1]}; expected the "
                f"{len(expected)} of Lake's runs from 'run01/class01'. Build them with: distmeta data build "
                "omniglot-runs --from DIR --out DIR, or use FewShot for this dataset."
            )

    def _require_protocol(self) -> None:
        c = self.config
        if (c.ways, c.shots, c.queries) != (WAYS, 1, 1) or c.rotations == "all":
            raise TaskContractError(
                f"ways={c.ways}, shots={c.shots}, queries={c.queries}, rotations={c.rotations}: Lake's runs are "
                f"{WAYS}-way 1-shot with 1 query per class, upright. Set tasks.train_ways, tasks.train_shots, "
                "tasks.train_queries and rotations=meta_train for the training tasks instead."
            )
