"""One learned task as files: the support set, its labels, and what was learned from them; no pickle."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from distmeta.errors import FileDamaged, LearnerContractError
from distmeta.files import parse_record, record_bytes
from distmeta.learners.fast_model import FastModel
from distmeta.learners.labels import Labels
from distmeta.serving.sealed import SealedFolder
from distmeta.types import Params

FORMAT = 1
_TASK, _SUPPORT, _LEARNED = "task/task.json", "task/support.safetensors", "task/learned.safetensors"
_FIX = "Save the adapted model again."


@dataclass(frozen=True)
class KeptTask:
    """One learned task.

    Args:
        support_x: prepared inputs ``[S, ...]``.
        labels: ``[S]``, as they were given; floats ``[S, D]`` in regression.
        learned: what the learner learned from them.
        transductive: whether the inputs of a call are predicted together.
    """

    support_x: torch.Tensor
    labels: Labels
    learned: Params
    transductive: bool

    @classmethod
    def read(cls, folder: Path) -> KeptTask:
        """The task in a folder that :meth:`distmeta.AdaptedModel.save` wrote.

        Raises:
            FileDamaged: a file is not as it was written, or there is no task.
        """
        sealed = SealedFolder.open(folder, fix=_FIX)
        if not holds_task(folder):
            raise FileDamaged(
                f"{folder} has no learned task; expected the folder of AdaptedModel.save(). An export is loaded by "
                "distmeta.load(folder)."
            )
        values, support = parse_record(sealed.read(_TASK), folder / _TASK, fix=_FIX), sealed.tensors(_SUPPORT)
        if values.get("format") != FORMAT:
            raise FileDamaged(f"{folder / _TASK} has format {values.get('format')!r}; expected {FORMAT}. {_FIX}")
        try:
            labels, order = values["labels"], [str(name) for name in values["learned"]]
            learned = sealed.tensors(_LEARNED)
            return cls(
                support["x"],
                support["y"] if labels is None else [_read_label(label) for label in labels],
                {name: learned[name] for name in order},
                bool(values["transductive"]),
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise FileDamaged(f"{folder / _TASK} is no task: {type(error).__name__}: {error}. {_FIX}") from None


def holds_task(folder: Path) -> bool:
    """Return whether a whole folder was written by :meth:`distmeta.AdaptedModel.save`.

    Raises:
        FileDamaged: its list of files is not as it was written.
    """
    return _TASK in SealedFolder.open(folder, fix=_FIX).names


def task_files(fast: FastModel, labels: Labels) -> dict[str, bytes]:
    """The files of a learned task, by name.

    Args:
        fast: the adapted model.
        labels: of its support set, as they were given.

    Raises:
        LearnerContractError: a label cannot be written as JSON.
    """
    support, listed = {"x": fast.support_x.contiguous()}, None
    if isinstance(labels, torch.Tensor) or (isinstance(labels, np.ndarray) and labels.dtype.kind == "f"):
        support["y"] = torch.as_tensor(labels).detach().clone().contiguous()
    else:
        listed = [_written_label(label) for label in labels]
    learned = {name: p.detach().clone().contiguous() for name, p in fast.learned.items()}
    values: dict[str, Any] = {
        "format": FORMAT,
        "labels": listed,
        "learned": list(learned),
        "transductive": fast.transductive,
    }
    return {_TASK: record_bytes(values), _SUPPORT: save_tensors(support), _LEARNED: save_tensors(learned)}


def _written_label(label: Hashable) -> str | int | bool | None:
    """A label as JSON has it, and gives it back."""
    plain: Any = label.item() if isinstance(label, np.generic | torch.Tensor) else label
    if plain is None or type(plain) in (str, int, bool):
        found: str | int | bool | None = plain
        return found
    raise LearnerContractError(
        f"The label {label!r} is a {type(label).__name__}, which cannot be kept in a file; expected strings, integers, "
        "booleans or None. Adapt with str(label)."
    )


def _read_label(label: Any) -> Hashable:
    if label is not None and type(label) not in (str, int, bool):
        raise TypeError(f"{label!r} is no label")
    found: Hashable = label
    return found


__all__ = ["KeptTask", "holds_task", "task_files"]
