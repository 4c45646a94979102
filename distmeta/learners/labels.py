"""The labels of a task: any hashable values, as positions 0..N-1 inside and as themselves outside."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.errors import LearnerContractError, listed

Labels = torch.Tensor | npt.NDArray[Any] | Sequence[Hashable]
"""Labels of examples ``[n]``: a tensor of integers, or any hashable values (strings, say) in a list or an array. Floats
``[n, D]`` are the targets of a regression."""


class Classes:
    """The classes of one task, in a fixed order.

    Args:
        values: the different labels ``[N]``: a tensor of integers, or an array of any values.

    Example:
        >>> classes, positions = Classes.of(["cat", "ant", "cat"])
        >>> classes.values.tolist(), positions.tolist()
        (['ant', 'cat'], [1, 0, 1])
        >>> classes.named(torch.tensor([1])).tolist()
        ['cat']
    """

    def __init__(self, values: torch.Tensor | npt.NDArray[Any]) -> None:
        self.values = values
        self._position = {value: n for n, value in enumerate(values.tolist())}

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        return listed(map(str, self.values.tolist()), 10)

    @classmethod
    def of(cls, y: Labels) -> tuple[Classes, torch.Tensor]:
        """The classes of labels, and the labels as positions ``[n]`` int64.

        Classes are sorted where they can be, else in the order of their first examples.

        Raises:
            LearnerContractError: these are no labels.
        """
        if isinstance(y, torch.Tensor):
            _require_integers(y)
            found: torch.Tensor = y.long().unique()  # type: ignore[no-untyped-call]
            classes = cls(found.to(y.dtype))
            return classes, torch.searchsorted(found, y.long().contiguous())
        labels = _listed(y)
        different = dict.fromkeys(labels)
        try:
            ordered: Iterable[Hashable] = sorted(different)  # type: ignore[type-var]
        except TypeError:  # values of several types have no order
            ordered = different
        classes = cls(_array(list(ordered)))
        return classes, classes.positions(labels)

    def positions(self, y: Labels) -> torch.Tensor:
        """Positions ``[n]`` int64 of labels.

        Raises:
            LearnerContractError: these are no labels, or one of them is not among the classes.
        """
        if isinstance(y, torch.Tensor):
            _require_integers(y)
            labels = y.tolist()
        else:
            labels = _listed(y)
        unknown = list(dict.fromkeys(label for label in labels if label not in self._position))
        if unknown:
            raise LearnerContractError(
                f"The labels {listed(map(str, unknown), 10)} are not in the support set, which has "
                f"{self}; expected only those. Adapt with examples of every class, or "
                "leave these out."
            )
        device = self.values.device if isinstance(self.values, torch.Tensor) else None
        return torch.tensor([self._position[label] for label in labels], dtype=torch.long, device=device)

    def named(self, positions: torch.Tensor) -> torch.Tensor | npt.NDArray[Any]:
        """The labels at ``positions``, in the type that they were given in."""
        if isinstance(self.values, torch.Tensor):
            return self.values[positions.to(self.values.device)]
        found: npt.NDArray[Any] = self.values[positions.cpu().numpy()]
        return found


def is_regression(y: object) -> bool:
    """Return whether targets are those of a regression: floats ``[n, D]``.

    Example:
        >>> is_regression(torch.rand(4, 1)), is_regression(["a", "b"])
        (True, False)
    """
    if isinstance(y, torch.Tensor):
        return y.is_floating_point()
    return isinstance(y, np.ndarray) and np.issubdtype(y.dtype, np.floating)


def kind_of(y: object) -> str:
    """What ``y`` is, for messages: its type, and its shape where it has one."""
    shape = getattr(y, "shape", None)
    if shape is None:
        return f"a {type(y).__name__}"
    return f"{str(getattr(y, 'dtype', '')).removeprefix('torch.')} of shape {list(shape)}"


def _require_integers(y: torch.Tensor) -> None:
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.dim() != 1:
        raise LearnerContractError(
            f"Labels are {kind_of(y)}; expected integers [n], any hashable values in a list, or floats [n, D] for "
            "regression. Use y.long(), or y[:, None] for one number per input."
        )


def _listed(y: object) -> list[Hashable]:
    """``y`` as a list of hashable values."""
    if hasattr(y, "__array__"):  # a column of a data frame too
        y = np.asarray(y)
    if isinstance(y, np.ndarray):
        if y.ndim != 1 or np.issubdtype(y.dtype, np.floating):
            raise LearnerContractError(
                f"Labels are {kind_of(y)}; expected one label per input [n], integers or any hashable values, or "
                "floats [n, D] for regression. Use y.astype(int), or y[:, None] for one number per input."
            )
        y = y.tolist()
    if isinstance(y, str | bytes) or not isinstance(y, Sequence):
        raise LearnerContractError(
            f"Labels are {kind_of(y)}; expected a list of labels, one per input, a tensor or an array. Use list(...)."
        )
    labels: list[Any] = [_plain(label) for label in y]
    for label in labels:
        try:
            hash(label)
            hashable = not isinstance(label, float)  # a float is not equal to itself where it is NaN
        except TypeError:
            hashable = False
        if not hashable:
            raise LearnerContractError(
                f"A label is {label!r}, a {type(label).__name__}; expected a hashable value that is no float, such as "
                "a string or an integer. Convert the labels, or give floats [n, D] for regression."
            )
    return labels


def _plain(label: Any) -> Any:
    """A scalar of numpy or torch as Python's own: 0-d tensors are hashed by identity."""
    if isinstance(label, torch.Tensor | np.generic) and getattr(label, "ndim", 0) == 0:
        return label.item()
    return label


def _array(values: list[Any]) -> npt.NDArray[Any]:
    """Values as an array: of one type where all have it, else of objects."""
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {int, str, bool}:
        try:
            return np.asarray(values)
        except OverflowError:  # an integer beyond 64 bits
            pass
    made = np.empty(len(values), object)
    made[:] = values
    return made
