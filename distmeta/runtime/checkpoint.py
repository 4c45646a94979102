"""Checkpoints: safetensors and JSON in a folder that appears by one atomic rename, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from distmeta.errors import CheckpointError, CheckpointNotFound
from distmeta.files import sync
from distmeta.learners.param_layout import ParamLayout
from distmeta.types import FloatArray

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` outer steps.

    Args:
        step: outer steps applied; the task cursor too, since tasks are a function of the step.
        vector: meta-parameters ``[P]``.
        layout: names and shapes of the parameters.
        optimizer: optimizer arrays by name.
        record: JSON-ready facts: identity of the experiment, dataset fingerprint, kernel, best validation, run id.
    """

    step: int
    vector: FloatArray
    layout: ParamLayout
    optimizer: Mapping[str, FloatArray]
    record: Mapping[str, Any]

    @property
    def params_sha256(self) -> str:
        """Digest of the meta-parameters in canonical order."""
        return self.layout.sha256(self.vector)


class CheckpointStore:
    """The checkpoints of one run, ``DIR/step-00000100`` and so on.

    Args:
        directory: ``RUN_DIR/checkpoints``.
        keep: how many of the last are kept, beside the best.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self._directory, self._keep = directory, keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write, then show by rename, then forget old ones; a crash at any moment leaves the last one whole.

        Raises:
            CheckpointError: the disk refuses.
        """
        final = self.path(checkpoint.step)
        if final.exists():
            return final  # the same step of the same experiment has the same bits
        partial = self._directory / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
            partial.mkdir(parents=True)
            params = checkpoint.layout.unflatten(checkpoint.vector)
            save_file({name: p.contiguous().numpy() for name, p in params.items()}, partial / "params.safetensors")
            arrays = {name: np.asarray(value, order="C") for name, value in checkpoint.optimizer.items()}
            save_file(arrays, partial / "optimizer.safetensors")
            state = {
                "format": FORMAT,
                "step": checkpoint.step,
                "names": list(checkpoint.layout.names),
                **checkpoint.record,
            }
            (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
            for name in os.listdir(partial):
                sync(partial / name)
            sync(partial)
            partial.rename(final)
            sync(self._directory)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"Could not write the checkpoint of step {checkpoint.step} to {final}: {error}. Free the disk or fix "
                "its permissions, then `distmeta resume RUN_DIR`."
            ) from None
        self._prune()
        return final

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        if not os.path.isdir(self._directory):
            return []
        found = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self._directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def load(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the last one.

        Raises:
            CheckpointNotFound: there is none.
            CheckpointError: it is damaged.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            have = f"it has the steps {steps}" if steps else "it has none"
            raise CheckpointNotFound(
                f"{self._directory} has no checkpoint{'' if step is None else f' of step {step}'}; {have}. "
                "Start the run again with `distmeta train`."
            )
        path = self.path(steps[-1] if step is None else step)
        try:
            state = dict(json.loads((path / "state.json").read_text(encoding="utf-8")))
            if state.pop("format", None) != FORMAT:
                raise CheckpointError(
                    f"The checkpoint {path} is of another format; expected {FORMAT}. Use the distmeta that wrote it."
                )
            params, optimizer = load_file(path / "params.safetensors"), load_file(path / "optimizer.safetensors")
            names, at = tuple(state.pop("names")), int(state.pop("step"))
            arrays = [params[name] for name in names]
            layout = ParamLayout(names, tuple(a.shape for a in arrays), arrays[0].dtype.name)
            vector = np.concatenate([a.reshape(-1) for a in arrays])
        except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
            raise CheckpointError(
                f"The checkpoint {path} is damaged: {type(error).__name__}: {error}. Delete this folder; the run then "
                "goes on from the one before."
            ) from None
        return Checkpoint(at, vector, layout, optimizer, state)

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of ``step``."""
        return self._directory / f"step-{step:08d}"

    def _prune(self) -> None:
        """Keep the last ones, and the best as each of them knows it: a run may go on from any of them."""
        steps = self.steps()
        kept: set[int | None] = set(steps[-self._keep :])
        for step in steps[-self._keep :]:
            with suppress(OSError, ValueError):
                state = json.loads((self.path(step) / "state.json").read_text(encoding="utf-8"))
                kept.add((state.get("best") or {}).get("step"))
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)
