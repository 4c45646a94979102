"""What generators of tables return, in the forms of the field, as one table after the other.

::

    PFNs, TICL       (x [R, B, F], y [R, B], target_y [R, B]), or a Batch with these and single_eval_pos; rows first
    TabICL           (X [B, R, F], y [B, R], d [B], seq_lens [B], train_sizes [B]), X and y nested where R differs
    TFM-Playground   {"x": [B, R, F], "y": [B, R], "target_y": [B, R], "train_test_split_index": S}
    plain            (x [B, R, F], y [B, R]) or (x, y, S)

Which axis counts the tables is read off their number, which the caller has asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distmeta.errors import TaskContractError

_SPLIT_NAMES = ("train_test_split_index", "single_eval_pos", "split")
_FORMS = (
    "(x [B, R, F], y [B, R], split), the forms of PFNs, TICL, TabICL or TFM-Playground. Give an adapter, a function of "
    "the returned value that returns (x, y, split)"
)


@dataclass(frozen=True)
class Table:
    """One table as a generator made it.

    Args:
        x: ``[R, F]``.
        y: ``[R]`` or ``[R, D]``, targets as the support set shows them.
        target: like ``y``, targets as queries ask for them.
        split: rows of the support set, the first ones; ``None`` where the generator leaves that open.
    """

    x: torch.Tensor
    y: torch.Tensor
    target: torch.Tensor
    split: int | None


def read_tables(returned: Any, count: int) -> list[Table]:
    """The tables that a generator returned.

    Args:
        returned: in one of the forms above.
        count: B, tables that it was asked for.

    Raises:
        TaskContractError: the value has none of the forms.

    Example:
        >>> x, y = torch.rand(50, 2, 3), torch.rand(50, 2)  # rows first
        >>> [table.x.shape for table in read_tables((x, y, y), 2)]
        [torch.Size([50, 3]), torch.Size([50, 3])]
    """
    x, y, target, split, more = _parts(returned)
    xs, ys = _one_by_one(x, y, count)
    targets = ys if target is None else _one_by_one(x, target, count)[1]
    splits = _splits(split, count)
    tables = [Table(*parts) for parts in zip(xs, ys, targets, splits, strict=True)]
    if more is not None:  # TabICL's: columns and rows beyond these are padding
        columns, rows = (_whole(part, count) for part in more)
        tables = [
            replace(table, x=table.x[:r, :c], y=table.y[:r], target=table.target[:r])
            for table, r, c in zip(tables, rows, columns, strict=True)
        ]
    return tables


def _parts(returned: Any) -> tuple[Any, Any, Any, Any, tuple[Any, Any] | None]:
    """x, y, target, split, and TabICL's numbers of columns and rows."""
    if isinstance(returned, Mapping) or hasattr(returned, "target_y"):
        names = ("x", "y", "target_y", *_SPLIT_NAMES)
        mapping = isinstance(returned, Mapping)
        x, y, target, *splits = (returned.get(n) if mapping else getattr(returned, n, None) for n in names)
        if x is not None and y is not None:
            return x, y, target, next((split for split in splits if split is not None), None), None
    elif isinstance(returned, Sequence) and not isinstance(returned, str):
        if len(returned) == 5:
            x, y, columns, rows, split = returned
            return x, y, None, split, (columns, rows)
        if len(returned) == 3:
            x, y, third = returned
            is_target = hasattr(third, "shape") and len(third.shape) > 1
            return (x, y, third, None, None) if is_target else (x, y, None, third, None)
        if len(returned) == 2:
            return returned[0], returned[1], None, None, None
    what = type(returned).__name__
    if isinstance(returned, tuple | list):
        what = f"{what} of {len(returned)}"
    elif isinstance(returned, Mapping):
        what = f"dictionary of {', '.join(map(str, returned))}"
    raise TaskContractError(f"get_batch returned a {what}; expected {_FORMS}.")


def _one_by_one(x: Any, y: Any, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """``[R, F]`` and ``[R]`` or ``[R, D]`` of each table."""
    if getattr(x, "is_nested", False):
        return [part.detach().cpu() for part in x.unbind()], [part.detach().cpu() for part in y.unbind()]
    x, y = (torch.as_tensor(part).detach().cpu() for part in (x, y))
    if x.dim() != 3 or y.dim() not in (2, 3) or x.shape[:2] != y.shape[:2]:
        raise TaskContractError(
            f"get_batch returned x of shape {list(x.shape)} and y of shape {list(y.shape)}; expected {_FORMS}."
        )
    axes = [axis for axis in (0, 1) if x.shape[axis] == count]
    if len(axes) != 1:
        raise TaskContractError(
            f"get_batch was asked for {count} tables and returned x of shape {list(x.shape)}; expected one axis of "
            f"{count}. "
            + (
                "Set tasks.tables_per_call to another number than that of the rows."
                if axes
                else "Give a generator that makes as many tables as its first argument asks for."
            )
        )
    return list(x.unbind(axes[0])), list(y.unbind(axes[0]))


def _splits(split: Any, count: int) -> list[int | None]:
    return [None] * count if split is None else list(_whole(split, count))


def _whole(part: Any, count: int) -> list[int]:
    """One whole number per table."""
    found = np.atleast_1d(np.asarray(torch.as_tensor(part).detach().cpu()))
    if found.ndim != 1 or len(found) not in (1, count):
        raise TaskContractError(
            f"get_batch returned {list(found.shape)} numbers of rows for {count} tables; expected {_FORMS}."
        )
    return [int(number) for number in np.broadcast_to(found, count)]
