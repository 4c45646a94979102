"""The five algorithmic tasks of the Neural Turing Machine (Graves, Wayne, Danihelka 2014, sections 4.1 to 4.5).

Every task is one sequence of bit vectors (:meth:`distmeta.Episode.sequence`): first something is shown, with nothing
scored, then the answer is asked for, with nothing shown. The cost is in bits per sequence: -log2 of the probability
that the model gives to the right answer. In training the length is drawn anew for each outer step; validation and
test tasks have the length ``length``, so that ``tasks.length=120`` judges a trained model on longer sequences. Bits are
drawn in the order of time: a longer task of the same index begins like the shorter one.
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
    """What the five have in common: bits in, bits out, and a fingerprint of the definition.

    A subclass states its ``definition`` (changed whenever the tasks change), its channels and steps, and draws one
    sequence from a generator.
    """

    definition = ""

    @property
    @abstractmethod
    def channels(self) -> tuple[int, int]:
        """Numbers per time step, in and out."""

    @abstractmethod
    def steps(self, split: Split) -> int:
        """L, time steps of a task of ``split``; for ``meta_train`` of the longest, until a step has drawn its own."""

    @abstractmethod
    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Inputs ``[L, in]`` and targets ``[L, out]`` of one task; negative targets are not scored."""

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
        """Of the definition: there is no data."""
        return hashlib.sha256(self.definition.encode()).hexdigest()

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """One sequence."""
        inputs, targets = self.sequence(split, random)
        return Episode.sequence(torch.from_numpy(inputs), torch.from_numpy(targets))

    def baseline(self, episodes: Episode) -> Metrics:
        """``baseline_bits`` of guessing: one bit for each bit that is scored."""
        return {"baseline_bits": (episodes.query_y >= 0).flatten(1).sum(1).to(episodes.query_y.dtype)}


class VariableLength(SequenceTasks):
    """Tasks with a length that is drawn once per outer step in training, uniformly from ``min_`` to ``max_length``."""

    config: Any  # has length, min_length and max_length

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._length: int | None = None  # of the training tasks of one step

    def at_step(self, split: Split, random: np.random.Generator) -> Self:
        """The distribution with the lengths of one outer step."""
        now = copy.copy(self)
        if split == "meta_train":
            now._draw_lengths(random)
        return now

    def _draw_lengths(self, random: np.random.Generator) -> None:
        self._length = int(random.integers(self.config.min_length, self.config.max_length + 1))

    def length(self, split: Split) -> int:
        """The length of the tasks of ``split``; the longest one for ``meta_train``, until a step has drawn its own."""
        if split != "meta_train":
            return int(self.config.length)
        return int(self.config.max_length) if self._length is None else self._length

    def check_split(self, split: Split) -> None:
        """See the parent.

        Raises:
            TaskContractError: a range is empty.
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

    Channels in: the bits, and the delimiter. L = 2n + 1 steps.

    Args:
        bits: per vector.
        length: n of validation and test tasks.
        min_length, max_length: n of the training tasks.

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
        """The bits and a delimiter; the bits."""
        return self.config.bits + 1, self.config.bits

    def steps(self, split: Split) -> int:
        """2n + 1."""
        return 2 * self.length(split) + 1

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """n vectors, the delimiter, n vectors."""
        n, bits = self.length(split), self.config.bits
        vectors = _random_bits(random, n, bits)
        inputs, targets = _blank(self.steps(split), *self.channels)
        inputs[:n, :bits] = vectors
        inputs[n, bits] = 1
        targets[n + 1 :] = vectors
        return inputs, targets


class RepeatCopyTask(VariableLength):
    """Copy a sequence several times (section 4.2): n vectors, how often, then r copies of them and an end marker.

    Channels in: the bits; the delimiter; the number of copies (at the delimiter's step), shifted and scaled to mean 0
    and variance 1 over the training range, so that numbers beyond it can be asked for. Out: the bits and the end
    marker. L = n + 1 + r n + 1 steps.

    Args:
        bits: per vector.
        length: n of validation and test tasks.
        repeats: r of validation and test tasks.
        min_length, max_length: n of the training tasks.
        min_repeats, max_repeats: r of the training tasks.

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
        """The bits, a delimiter and the number of copies; the bits and the end marker."""
        return self.config.bits + 2, self.config.bits + 1

    def steps(self, split: Split) -> int:
        """n + 1 + r n + 1."""
        return self.length(split) * (1 + self.repeats(split)) + 2

    def repeats(self, split: Split) -> int:
        """r of the tasks of ``split``; the largest for ``meta_train``, until a step has drawn its own."""
        if split != "meta_train":
            return self.config.repeats
        return self.config.max_repeats if self._repeats is None else self._repeats

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """n vectors, the number of copies, the copies, the end marker."""
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
        """``repeats`` as the network sees it: mean 0 and variance 1 over the training range.

        Example:
            >>> tasks = RepeatCopyTask(min_repeats=1, max_repeats=3)
            >>> [round(tasks.normalised(r), 3) for r in (1, 2, 3)]
            [-1.225, 0.0, 1.225]
        """
        low, high = self.config.min_repeats, self.config.max_repeats
        spread = math.sqrt(((high - low + 1) ** 2 - 1) / 12)  # of the whole numbers low..high
        return (repeats - (low + high) / 2) / (spread or 1.0)

    def check_split(self, split: Split) -> None:
        """See the parent."""
        self._require_range("repeats")
        super().check_split(split)

    def _draw_lengths(self, random: np.random.Generator) -> None:
        super()._draw_lengths(random)
        self._repeats = int(random.integers(self.config.min_repeats, self.config.max_repeats + 1))


class AssociativeRecallTask(VariableLength):
    """Recall what followed an item (section 4.3): n items, one of them again, then the item that came after it.

    An item is ``vectors`` bit vectors with a delimiter before it; the query has a delimiter of its own before and after
    it. Channels in: the bits, the item delimiter, the query delimiter. With v vectors per item, L = n (v + 1) + (v + 2)
    + v steps.

    Args:
        bits: per vector.
        vectors: v, per item.
        length: n, items of validation and test tasks.
        min_length, max_length: n of the training tasks; 2 or more.

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
        """The bits and two delimiters; the bits."""
        return self.config.bits + 2, self.config.bits

    def steps(self, split: Split) -> int:
        """n (v + 1) + (v + 2) + v."""
        v = self.config.vectors
        return self.length(split) * (v + 1) + 2 * v + 2

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """The items, the query, the item after the queried one."""
        n, v, bits = self.length(split), self.config.vectors, self.config.bits
        asked = int(random.random() * (n - 1))  # any but the last, which nothing follows
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

    The table holds, for each of the 2^(n-1) contexts, the probability that the next bit is 1, drawn from Beta(1/2, 1/2)
    for each task anew. The first n - 1 bits are fair coins and not scored. The input at a step is a bit, the target the
    bit after it: L = ``length`` - 1 steps.

    The yardstick is the best predictor there is, that counts what followed each context so far (equation 10)::

        P(next = 1 | N1, N0) = (N1 + 1/2) / (N1 + N0 + 1)

    Args:
        order: n.
        length: bits per sequence, in training and after.

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
        """One bit; one bit."""
        return 1, 1

    def steps(self, split: Split) -> int:
        """One less than the bits: the last has no successor."""
        return self.config.length - 1

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Bits of a random table."""
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
        """``baseline_bits`` of the optimal predictor (equation 10)."""
        known = self.config.order - 1
        inputs, targets = episodes.query_x[..., 0].long().cpu(), episodes.query_y[..., 0].cpu()
        tasks = torch.arange(len(inputs))
        counts = torch.full((len(inputs), 2**known, 2), 0.5, dtype=torch.float64)  # Beta's 1/2 and 1/2
        cost, context = torch.zeros(len(inputs), dtype=torch.float64), torch.zeros(len(inputs), dtype=torch.long)
        for step in range(inputs.shape[1]):
            context = (2 * context + inputs[:, step]) % 2**known
            if step >= known - 1:
                now, answer = counts[tasks, context], targets[:, step].long()
                cost -= (now[tasks, answer] / now.sum(1)).log2()
                counts[tasks, context, answer] += 1
        return {"baseline_bits": cost.to(episodes.query_y)}

    def check_split(self, split: Split) -> None:
        """See the parent.

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

    Priorities are uniform in [-1, 1]; the answer begins with the highest. Channels in: the bits, the priority, the
    delimiter. L = length + 1 + answers steps.

    Args:
        bits: per vector.
        length: vectors shown, in training and after.
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
        """The bits, the priority and a delimiter; the bits."""
        return self.config.bits + 2, self.config.bits

    def steps(self, split: Split) -> int:
        """All shown, the delimiter, all asked for."""
        return self.config.length + 1 + self.config.answers

    def sequence(self, split: Split, random: np.random.Generator) -> tuple[Array, Array]:
        """Vectors with their priorities, the delimiter, the sorted vectors."""
        n, bits = self.config.length, self.config.bits
        drawn = random.random((n, bits + 1))  # row by row: a longer task begins alike
        inputs, targets = _blank(self.steps(split), *self.channels)
        inputs[:n, :bits] = drawn[:, :bits] < 0.5
        inputs[:n, bits] = 2 * drawn[:, bits] - 1
        inputs[n, bits + 1] = 1
        highest = np.argsort(-drawn[:, bits], kind="stable")[: self.config.answers]
        targets[n + 1 :] = inputs[highest, :bits]
        return inputs, targets

    def check_split(self, split: Split) -> None:
        """See the parent.

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
    """Nothing shown and nothing scored."""
    return np.zeros((steps, inputs), np.float32), np.full((steps, outputs), -1, np.float32)
