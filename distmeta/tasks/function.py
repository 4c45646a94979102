"""A task distribution from one function that draws a task."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distmeta import config
from distmeta.errors import TaskContractError, line_of
from distmeta.seeding import rng
from distmeta.tasks.base import TaskDistribution
from distmeta.types import Episode, Split, TaskSpec

Drawn = Episode | tuple[Any, Any, Any, Any]


class FunctionTasks(TaskDistribution):
    """A task distribution from a function ``(random, split) -> (support_x, support_y, query_x, query_y)``.

    The function must take every random number from the ``numpy.random.Generator`` that it is given, and return arrays
    or tensors of the same shapes each time: int64 labels 0..N-1 for classification, floats for regression.

    Args:
        function: the function that draws one task.
        version: part of the fingerprint; change it when data outside the function's own source change.

    Example:
        >>> @task_distribution
        ... def lines(random, split):
        ...     slope, x = random.normal(), random.uniform(-1, 1, size=(20, 1))
        ...     return x[:10], slope * x[:10], x[10:], slope * x[10:]
        >>> lines.spec
        TaskSpec(input_shape=(1,), outputs=1, kind='regression', support=10, queries=10)
    """

    class Config(config.Config):
        """The settings of :class:`FunctionTasks`."""

        version: str = "1"

    def __init__(self, function: Callable[[np.random.Generator, Split], Drawn], **settings: Any) -> None:
        super().__init__(**settings)
        self.function = function
        # Read once: the file may change while the run goes on, and need not exist on another node.
        try:
            self._source = inspect.getsource(function)
        except (OSError, TypeError):  # typed at a prompt: there is only a name
            self._source = getattr(function, "__qualname__", type(function).__name__)
        self._spec: TaskSpec | None = None

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the tasks, inferred from a first training task."""
        if self._spec is None:
            self._spec = self._read_spec()
        return self._spec

    def _read_spec(self) -> TaskSpec:
        first = self.draw("meta_train", rng(0, "spec"))
        regression = first.query_y.is_floating_point()
        return TaskSpec(
            input_shape=tuple(first.query_x.shape[1:]),
            outputs=int(first.query_y.shape[-1]) if regression else int(first.support_y.max()) + 1,
            kind="regression" if regression else "classification",
            support=len(first.support_x),
            queries=len(first.query_x),
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the function's source text and ``version``."""
        return hashlib.sha256(f"{self._source}\0{self.config.version}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The function's name, as JSON-ready facts."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"name": name, "source": f"function {name}"}

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Call the function and convert its result to tensors.

        Raises:
            TaskContractError: the function fails, or does not return four arrays that fit together.
        """
        try:
            drawn = self.function(random, split)
        except Exception as error:
            raise TaskContractError(
                f"The task function fails: {type(error).__name__}: {error} ({line_of(error)}). It is called with a "
                f"numpy.random.Generator and the split, here '{split}'. Fix that line."
            ) from error
        if not isinstance(drawn, Episode):
            if not isinstance(drawn, tuple) or len(drawn) != 4:
                raise TaskContractError(
                    f"The task function returned {type(drawn).__name__}; expected "
                    "(support_x, support_y, query_x, query_y). Return four arrays or an Episode."
                )
            drawn = Episode(*(_tensor(part) for part in drawn))
        if drawn.query_y.is_floating_point() and drawn.query_y.dim() == 1:
            raise TaskContractError(
                f"The task function returned float targets of shape {list(drawn.query_y.shape)}; expected [n, D] for "
                "regression, or integer labels [n] for classification. Return y[:, None] for one number per input."
            )
        for half, x, y in (("support", drawn.support_x, drawn.support_y), ("query", drawn.query_x, drawn.query_y)):
            if len(x) != len(y):
                raise TaskContractError(
                    f"The task function returned {len(x)} {half} inputs and {len(y)} {half} targets; expected as many."
                )
        return drawn


def task_distribution(function: Callable[[np.random.Generator, Split], Drawn]) -> FunctionTasks:
    """Turn a function into :class:`FunctionTasks`; use it as a decorator."""
    return FunctionTasks(function)


def _tensor(value: Any) -> torch.Tensor:
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor.long()
