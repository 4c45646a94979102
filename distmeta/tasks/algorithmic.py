"""The five algorithmic tasks of the Neural Turing Machine (Graves, Wayne, Danihelka 2014, sections 4.1 to 4.5).

Every task is one sequence of bit vectors (:meth:`distmeta.Episode.sequence`): an input phase in which nothing is
scored, then an answer phase in which nothing is shown. The cost is in bits per sequence, -log2 of the probability that
the model gives to the right answer. In training the length is drawn once per outer step; validation and test tasks have
the length ``length``, so that ``tasks.length=120`` evaluates a trained model on longer sequences. Bits are drawn in the
order of time: a longer task of the same index begins with the shorter one.
"""

from __future__ import annotations

import copy
import hashlib
import math
from abc import abstractmethod
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt

from distmeta import config
from distmeta.errors import TaskContractError
from distmeta.tasks.base import TaskDistribution
from distmeta.types import Episode, Metrics, Split, TaskSpec

Array = npt.NDArray[np.float32]


class SequenceTasks(TaskDistribution):
    """Base of the algorithmic tasks: bits in, bits out, and a fingerprint of the definition.

    A subclass sets ``definition``, a text that must change whenever the tasks change, and defines its channels, its
    steps and how one sequence is drawn.
    """

    definition = ""

    @property
    @abstractmethod
    def channels(self) -> tuple[int, int]:
        """Number of input and of output channels per time step."""

    @abstractmethod
    def steps(self, split: Split) -> int:
        """L, time steps of a task of ``split``; for ``meta_train`` the largest L, until an outer step has drawn one."""

    @abstractmethod
    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Draw inputs ``[L, in]`` and targets ``[L, out]`` of one task; negative targets are not scored."""

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the test tasks."""
        return self.spec_of("meta_test")

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tasks of one split."""
        inputs, outputs = self.channels
        return TaskSpec((inputs,), outputs, "sequence", support=0, queries=self.steps(split))

    @property
    def fingerprint(self) -> str:
        """Digest of the definition, since there are no data."""
        return hashlib.sha256(self.definition.encode()).hexdigest()

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw one sequence."""
        inputs, targets = self.sequence(split, random)
        return Episode.sequence(torch.from_numpy(inputs), torch.from_numpy(targets))

    def baseline(self, episodes: Episode) -> Metrics:
        """``baseline_bits [T]`` of guessing, which is one bit for each scored bit."""
        return {"baseline_bits": (episodes.query_y >= 0).flatten(1).sum(1).to(episodes.query_y.dtype)}


class VariableLength(SequenceTasks):
    """Base of tasks whose training length is uniform in ``min_length`` to ``max_length``, drawn once per outer step."""

    config: Any  # has length, min_length and max_length

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._length: int | None = None  # drawn for the training tasks of one outer step

    def at_step(self, split: Split, random: np.random.Generator) -> Self:
        """The distribution with the lengths of one outer step drawn."""
        now = copy.copy(self)
        if split == "meta_train":
            now._draw_lengths(random)
        return now

    def _draw_lengths(self, random: np.random.Generator) -> None:
        self._length = int(random.integers(self.config.min_length, self.config.max_length + 1))

    def length(self, split: Split) -> int:
        """Length of the tasks of ``split``; for ``meta_train`` the largest, until an outer step has drawn one."""
        if split != "meta_train":
            return int(self.config.length)
        return int(self.config.max_length) if self._length is None else self._length

    def check_split(self, split: Split) -> None:
        """Check one split.

        Raises:
            TaskContractError: the range of lengths is empty.
        """
        self._require_range("length")
        super().check_split(split)

    def _require_range(self, name: str) -> None:
        low, high = getattr(self.config, f"min_{name}"), getattr(self.config, f"max_{name}")
        if low > high:
            raise TaskContractError(
                f"min_{name}={low} is above max_{name}={high}; expected a range. Set tasks.max_{name}={low} or more."
            )


class CopyTask(VariableLength):
    """Copy a sequence of random bit vectors (section 4.1): n vectors, a delimiter, then the n vectors again.

    Input channels: the bits and the delimiter. L = 2n + 1 steps.

    Args:
        bits: bits per vector.
        length: n for validation and test tasks.
        min_length, max_length: range of n for training tasks.

    Example:
        >>> task = CopyTask(bits=2, length=2).take(1)[0].episode
        >>> task.query_x[:, 2].tolist()
        [0.0, 0.0, 1.0, 0.0, 0.0]
        >>> bool((task.query_y[3:] == task.query_x[:2, :2]).all())
        True
    """

    definition = "copy, version 1"

    class Config(config.Config):
        """The settings of :class:`CopyTask`."""

        bits: PositiveInt = 8
        length: PositiveInt = 20
        min_length: PositiveInt = 1
        max_length: PositiveInt = 20

    config: Config

    @property
    def channels(self) -> tuple[int, int]:
        """In: the bits and a delimiter. Out: the bits."""
        return self.config.bits + 1, self.config.bits

    def steps(self, split: Split) -> int:
        """L = 2n + 1."""
        return 2 * self.length(split) + 1

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Draw n vectors; show them and the delimiter, then ask for them."""
        n, bits = self.length(split), self.config.bits
        vectors = _random_bits(random, n, bits)
        inputs, targets = _blank(self.steps(split), *self.channels)
        inputs[:n, :bits] = vectors
        inputs[n, bits] = 1
        targets[n + 1 :] = vectors
        return inputs, targets


class RepeatCopyTask(VariableLength):
    """Copy a sequence several times (section 4.2): n vectors and a count, then r copies of them and an end marker.

    Input channels: the bits; the delimiter; the number of copies (at the delimiter's step), normalised to mean 0 and
    variance 1 over the training range, so that it can exceed that range. Output channels: the bits and the end marker.
    L = n + 1 + r n + 1 steps.

    Args:
        bits: bits per vector.
        length: n for validation and test tasks.
        repeats: r for validation and test tasks.
        min_length, max_length: range of n for training tasks.
        min_repeats, max_repeats: range of r for training tasks.

    Example:
        >>> task = RepeatCopyTask(bits=1, length=2, repeats=3).take(1)[0].episode
        >>> task.query_y[:, 1].tolist()
        [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    """

    definition = "repeat copy, version 1"

    class Config(config.Config):
        """The settings of :class:`RepeatCopyTask`."""

        bits: PositiveInt = 8
        length: PositiveInt = 10
        repeats: PositiveInt = 10
        min_length: PositiveInt = 1
        max_length: PositiveInt = 10
        min_repeats: PositiveInt = 1
        max_repeats: PositiveInt = 10

    config: Config

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._repeats: int | None = None

    @property
    def channels(self) -> tuple[int, int]:
        """In: the bits, a delimiter and the number of copies. Out: the bits and the end marker."""
        return self.config.bits + 2, self.config.bits + 1

    def steps(self, split: Split) -> int:
        """L = n + 1 + r n + 1."""
        return self.length(split) * (1 + self.repeats(split)) + 2

    def repeats(self, split: Split) -> int:
        """Copies r for ``split``; for ``meta_train`` the largest r, until an outer step has drawn one."""
        if split != "meta_train":
            return self.config.repeats
        return self.config.max_repeats if self._repeats is None else self._repeats

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Draw n vectors; show them and the number of copies, then ask for the copies and the end marker."""
        n, repeats, bits = self.length(split), self.repeats(split), self.config.bits
        vectors = _random_bits(random, n, bits)
        inputs, targets = _blank(self.steps(split), *self.channels)
        inputs[:n, :bits] = vectors
        inputs[n, bits:] = 1, self.normalised(repeats)
        targets[n + 1 :] = 0
        targets[n + 1 : -1, :bits] = np.tile(vectors, (repeats, 1))
        targets[-1, bits] = 1
        return inputs, targets

    def normalised(self, repeats: int) -> float:
        """Normalise ``repeats`` for the network's input: mean 0 and variance 1 over the training range.

        Example:
            >>> tasks = RepeatCopyTask(min_repeats=1, max_repeats=3)
            >>> [round(tasks.normalised(r), 3) for r in (1, 2, 3)]
            [-1.225, 0.0, 1.225]
        """
        low, high = self.config.min_repeats, self.config.max_repeats
        spread = math.sqrt(((high - low + 1) ** 2 - 1) / 12)  # standard deviation of the integers low..high
        return (repeats - (low + high) / 2) / (spread or 1.0)

    def check_split(self, split: Split) -> None:
        """Check one split.

        Raises:
            TaskContractError: the range of lengths or of repeats is empty.
        """
        self._require_range("repeats")
        super().check_split(split)

    def _draw_lengths(self, random: np.random.Generator) -> None:
        super()._draw_lengths(random)
        self._repeats = int(random.integers(self.config.min_repeats, self.config.max_repeats + 1))


class AssociativeRecallTask(VariableLength):
    """Recall the successor of an item (section 4.3): n items, one of them as a query, then the item after it.

    An item is ``vectors`` bit vectors with a delimiter before them; the query has a delimiter of its own before and
    after it. Input channels: the bits, the item delimiter, the query delimiter. With v vectors per item,
    L = n (v + 1) + (v + 2) + v steps.

    Args:
        bits: bits per vector.
        vectors: v, vectors per item.
        length: n, items of validation and test tasks.
        min_length, max_length: range of n for training tasks; 2 or more.

    Example:
        >>> task = AssociativeRecallTask(vectors=1, length=2).take(1)[0].episode
        >>> task.query_x[:, 6:].argmax(1).add(task.query_x[:, 6:].sum(1)).tolist()  # 1: item follows, 2: query
        [1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 2.0, 0.0]
    """

    definition = "associative recall, version 1"

    class Config(config.Config):
        """The settings of :class:`AssociativeRecallTask`."""

        bits: PositiveInt = 6
        vectors: PositiveInt = 3
        length: Annotated[int, Field(ge=2)] = 6
        min_length: Annotated[int, Field(ge=2)] = 2
        max_length: Annotated[int, Field(ge=2)] = 6

    config: Config

    @property
    def channels(self) -> tuple[int, int]:
        """In: the bits and two delimiters. Out: the bits."""
        return self.config.bits + 2, self.config.bits

    def steps(self, split: Split) -> int:
        """L = n (v + 1) + (v + 2) + v."""
        v = self.config.vectors
        return self.length(split) * (v + 1) + 2 * v + 2

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Draw the items and the queried one; show all, then ask for the item after it."""
        n, v, bits = self.length(split), self.config.vectors, self.config.bits
        asked = int(random.random() * (n - 1))  # any but the last, which has no successor
        items = _random_bits(random, n * v, bits).reshape(n, v, bits)
        inputs, targets = _blank(self.steps(split), *self.channels)
        shown = inputs[: n * (v + 1)].reshape(n, v + 1, bits + 2)  # a view
        shown[:, 0, bits] = 1
        shown[:, 1:, :bits] = items
        query = inputs[n * (v + 1) :]
        query[[0, v + 1], bits + 1] = 1
        query[1 : v + 1, :bits] = items[asked]
        targets[-v:] = items[asked + 1]
        return inputs, targets


class NGramsTask(SequenceTasks):
    """Predict the next bit of a sequence from a random n-gram table (section 4.4).

    Each task draws its own table: for each of the 2^(n-1) contexts, the probability that the next bit is 1, from
    Beta(1/2, 1/2). The first n - 1 bits are fair coins and not scored. The input at a step is a bit, the target the bit
    after it: L = ``length`` - 1 steps.

    The baseline is the optimal predictor, which counts the successors of each context so far (equation 10)::

        P(next = 1 | N1, N0) = (N1 + 1/2) / (N1 + N0 + 1)

    Args:
        order: n.
        length: bits per sequence, in every split.

    Example:
        >>> tasks = NGramsTask(length=200)
        >>> tasks.spec.queries, int((tasks.take(1)[0].episode.query_y >= 0).sum())
        (199, 195)
    """

    definition = "dynamic n-grams, version 1"

    class Config(config.Config):
        """The settings of :class:`NGramsTask`."""

        order: Annotated[int, Field(ge=2, le=16)] = 6
        length: PositiveInt = 200

    config: Config

    @property
    def channels(self) -> tuple[int, int]:
        """In: one bit. Out: one bit."""
        return 1, 1

    def steps(self, split: Split) -> int:
        """L = ``length`` - 1, since the last bit has no successor."""
        return self.config.length - 1

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Draw a table, then bits from it."""
        known = self.config.order - 1
        table = random.beta(0.5, 0.5, size=2**known).tolist()
        coins = random.random(self.config.length).tolist()
        bits, context = [], 0
        for step, coin in enumerate(coins):
            bit = coin < (table[context] if step >= known else 0.5)
            bits.append(bit)
            context = (2 * context + bit) % 2**known
        sequence = np.array(bits, np.float32)[:, None]
        targets = sequence[1:].copy()
        targets[: known - 1] = -1
        return sequence[:-1], targets

    def baseline(self, episodes: Episode) -> Metrics:
        """``baseline_bits [T]`` of the optimal predictor (equation 10)."""
        known = self.config.order - 1
        inputs, targets = episodes.query_x[..., 0].long().cpu(), episodes.query_y[..., 0].cpu()
        tasks = torch.arange(len(inputs))
        counts = torch.full((len(inputs), 2**known, 2), 0.5, dtype=torch.float64)  # the prior, Beta(1/2, 1/2)
        cost, context = torch.zeros(len(inputs), dtype=torch.float64), torch.zeros(len(inputs), dtype=torch.long)
        for step in range(inputs.shape[1]):
            context = (2 * context + inputs[:, step]) % 2**known
            if step >= known - 1:
                now, answer = counts[tasks, context], targets[:, step].long()
                cost -= (now[tasks, answer] / now.sum(1)).log2()
                counts[tasks, context, answer] += 1
        return {"baseline_bits": cost.to(episodes.query_y)}

    def check_split(self, split: Split) -> None:
        """Check one split.

        Raises:
            TaskContractError: the sequence is too short for its n-grams.
        """
        if self.config.length <= self.config.order:
            raise TaskContractError(
                f"length={self.config.length} leaves nothing to predict in {self.config.order}-grams; expected more "
                f"bits than order. Set tasks.length={10 * self.config.order}."
            )
        super().check_split(split)


class PrioritySortTask(SequenceTasks):
    """Sort vectors by priority (section 4.5): ``length`` of them, a delimiter, then the ``answers`` highest.

    Priorities are uniform in [-1, 1]; the answer begins with the highest. Input channels: the bits, the priority, the
    delimiter. L = length + 1 + answers steps.

    Args:
        bits: bits per vector.
        length: vectors shown, in every split.
        answers: vectors asked for.

    Example:
        >>> PrioritySortTask().spec
        TaskSpec(input_shape=(10,), outputs=8, kind='sequence', support=0, queries=37)
    """

    definition = "priority sort, version 1"

    class Config(config.Config):
        """The settings of :class:`PrioritySortTask`."""

        bits: PositiveInt = 8
        length: PositiveInt = 20
        answers: PositiveInt = 16

    config: Config

    @property
    def channels(self) -> tuple[int, int]:
        """In: the bits, the priority and a delimiter. Out: the bits."""
        return self.config.bits + 2, self.config.bits

    def steps(self, split: Split) -> int:
        """L = length + 1 + answers."""
        return self.config.length + 1 + self.config.answers

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Draw vectors and priorities; show them and the delimiter, then ask for the sorted vectors."""
        n, bits = self.config.length, self.config.bits
        drawn = random.random((n, bits + 1))  # row by row, so that a longer task begins with the shorter one
        inputs, targets = _blank(self.steps(split), *self.channels)
        inputs[:n, :bits] = drawn[:, :bits] < 0.5
        inputs[:n, bits] = 2 * drawn[:, bits] - 1
        inputs[n, bits + 1] = 1
        highest = np.argsort(-drawn[:, bits], kind="stable")[: self.config.answers]
        targets[n + 1 :] = inputs[highest, :bits]
        return inputs, targets

    def check_split(self, split: Split) -> None:
        """Check one split.

        Raises:
            TaskContractError: more vectors are asked for than shown.
        """
        if self.config.answers > self.config.length:
            raise TaskContractError(
                f"answers={self.config.answers} but only length={self.config.length} vectors are shown; expected at "
                f"most that many. Set tasks.answers={self.config.length} or less."
            )
        super().check_split(split)


def _random_bits(random: np.random.Generator, count: int, bits: int) -> Array:
    return (random.random((count, bits)) < 0.5).astype(np.float32)


def _blank(steps: int, inputs: int, outputs: int) -> tuple[Array, Array]:
    """Inputs and targets with nothing shown and nothing scored."""
    return np.zeros((steps, inputs), np.float32), np.full((steps, outputs), -1, np.float32)
