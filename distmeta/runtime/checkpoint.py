"""Checkpoints: safetensors and JSON in a folder that appears by one atomic rename, or not at all.

::

    step-00000100/params.safetensors       by name
    step-00000100/optimizer.safetensors    by name
    step-00000100/state.json               step, order of the parameters, the record
    step-00000100/manifest.json            size and sha256 of each of them and of itself, written last

Format 1, of earlier versions, had no manifest. It is still read; damage to it is found by shapes, numbers that are not
finite and steps that do not fit, not by digests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from distmeta.errors import CheckpointDamaged, CheckpointError, CheckpointNotFound
from distmeta.files import MANIFEST, damage_in, is_damage, sync, write_digests
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime.outer_optimizer import AVERAGE
from distmeta.types import FloatArray

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` outer steps.

    Args:
        step: outer steps applied; the task cursor too, since tasks are a function of the step.
        vector: meta-parameters ``[P]`` that training goes on from.
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
    def learned(self) -> FloatArray:
        """The meta-parameters ``[P]`` that the run is evaluated by: their average, where ``outer`` asks for one."""
        return self.optimizer.get(AVERAGE, self.vector)

    @property
    def params_sha256(self) -> str:
        """Digest of :attr:`learned` in canonical order."""
        return self.layout.sha256(self.learned)

    @property
    def best_step(self) -> int | None:
        """The step that was best on meta-validation so far; ``None`` before the first one."""
        best: int | None = (self.record.get("best") or {}).get("step")
        return best


@dataclass(frozen=True)
class Newest:
    """The newest whole checkpoint of a run.

    Args:
        checkpoint: the state to go on from.
        damaged: the newer checkpoints that were passed over: what is damaged, by step, newest first.
    """

    checkpoint: Checkpoint
    damaged: Mapping[int, str]

    def notice(self, then: str = "going on from") -> str:
        """One line for people about what was passed over; empty where nothing was.

        Args:
            then: what is done with the whole checkpoint.

        Example:
            >>> whole = Checkpoint(80, np.zeros(1, np.float32), ParamLayout(("a",), ((1,),), "float32"), {}, {})
            >>> Newest(whole, {100: "params.safetensors has 7 bytes, expected 96"}).notice()
            'Checkpoint step-00000100 (params.safetensors has 7 bytes, expected 96) is damaged; going on from step 80.'
        """
        if not self.damaged:
            return ""
        each = ", ".join(f"{_name(step)} ({damage})" for step, damage in self.damaged.items())
        many = len(self.damaged) > 1
        which = f"Checkpoints {each} are damaged" if many else f"Checkpoint {each} is damaged"
        return f"{which}; {then} step {self.checkpoint.step}."


class CheckpointStore:
    """The checkpoints of one run, ``DIR/step-00000100`` and so on.

    Args:
        directory: ``RUN_DIR/checkpoints``.
        keep: how many of the last are kept, beside the best.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self._directory, self._keep = directory, keep
        # Best step by step of the checkpoints that this process found whole, and their files' sizes and times then.
        self._whole: dict[int, tuple[list[tuple[str, int, int]], int | None]] = {}

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write, then show by rename, then remove old ones; a crash at any moment leaves the last one whole.

        A whole checkpoint of the same step is kept as it is: the same step of the same experiment has the same bits. A
        damaged one is replaced: it is renamed out of the way just before the new one takes its name.

        Returns:
            The checkpoint's folder.

        Raises:
            CheckpointError: the disk refuses.
        """
        final, step = self.path(checkpoint.step), checkpoint.step
        partial = self._directory / f".partial-{step}-{uuid.uuid4().hex}"
        try:
            if os.path.lexists(final) and self._is_whole(step):
                return final
            self._remove_leftovers()  # of a process that was killed: the disk may need their place
            partial.mkdir(parents=True)
            self._write(checkpoint, partial)
            self._discard(step)
            partial.rename(final)
            sync(self._directory)
            self._whole[step] = self._files(step), checkpoint.best_step
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"Could not write the checkpoint of step {step} to {final}: {error}. Free the disk or fix "
                "its permissions, then `distmeta resume RUN_DIR`."
            ) from None
        self._prune()
        self._remove_leftovers()
        return final

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or damaged, ascending.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            if not os.path.lexists(self._directory):
                return []
            raise CheckpointError(
                f"The checkpoints in {self._directory} cannot be listed: {error.strerror}; expected a folder that may "
                "be read. Fix its permissions, or restore it from a copy."
            ) from None
        matches = [match for name in names if (match := re.fullmatch(r"step-(\d{8,})", name))]
        return sorted(int(match[1]) for match in matches if _name(int(match[1])) == match[0])

    def load(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of ``step``, or the last one, after every byte of it was checked.

        Raises:
            CheckpointNotFound: there is none, or it was removed while it was read.
            CheckpointDamaged: a file of it is not as it was written.
            CheckpointError: it is of another format, or cannot be read now.
        """
        steps = self._require(step)
        at = steps[-1] if step is None else step
        try:
            return self._read(at)
        except _Damage as damage:
            raise CheckpointDamaged(
                f"The checkpoint {self.path(at)} is damaged: {damage}. Restore it from a copy, or delete it and all "
                "later ones: `distmeta resume` then does their steps again, with the same bits."
            ) from None

    def newest(self) -> Newest:
        """The newest whole checkpoint, and what is wrong with the newer ones.

        One that a training run removes meanwhile is passed over: there is a newer one then.

        Raises:
            CheckpointNotFound: there is none.
            CheckpointDamaged: all are damaged; each is named.
            CheckpointError: one is of another format, or cannot be read now.
        """
        damaged: dict[int, str] = {}
        steps, gone = self._require(), set[int]()
        while steps:
            step = steps.pop()
            try:
                return Newest(self._read(step), damaged)
            except CheckpointNotFound:
                gone.add(step)
                damaged.clear()
                steps = [step for step in self._require() if step not in gone]
            except _Damage as damage:
                damaged[step] = str(damage)
        if not damaged:
            self._refuse_gone(max(gone))
        each = "; ".join(f"{_name(step)}: {damage}" for step, damage in damaged.items())
        raise CheckpointDamaged(
            f"Every checkpoint in {self._directory} is damaged: {each}. Restore one from a copy, or delete them all: "
            "`distmeta resume` then starts again from step 0, with the same bits."
        )

    def best(self, last: Checkpoint) -> Checkpoint:
        """The best checkpoint by meta-validation, as ``last`` has it; ``last`` itself where none was validated.

        Raises:
            CheckpointNotFound, CheckpointDamaged: the best one is absent or damaged.
        """
        return last if last.best_step in (None, last.step) else self.load(last.best_step)

    def damage(self) -> dict[int, str]:
        """Find what is damaged in all checkpoints, by step; empty where all are whole. Every byte is read.

        Raises:
            CheckpointError: one is of another format, or cannot be read now.
        """
        found = {}
        for step in self.steps():
            try:
                self._read(step)
            except CheckpointNotFound:
                continue
            except _Damage as damage:
                found[step] = str(damage)
        return found

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of ``step``."""
        return self._directory / _name(step)

    def _require(self, step: int | None = None) -> list[int]:
        """All steps, at least one of them, and ``step`` among them."""
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            have = f"it has the steps {steps}" if steps else "it has none"
            raise CheckpointNotFound(
                f"{self._directory} has no checkpoint{'' if step is None else f' of step {step}'}; {have}. "
                "Start the run again with `distmeta train`."
            )
        return steps

    def _write(self, checkpoint: Checkpoint, folder: Path) -> None:
        params = checkpoint.layout.unflatten(checkpoint.vector)
        save_file({name: p.contiguous().numpy() for name, p in params.items()}, folder / "params.safetensors")
        arrays = {name: np.asarray(value, order="C") for name, value in checkpoint.optimizer.items()}
        save_file(arrays, folder / "optimizer.safetensors")
        state = {"format": FORMAT, "step": checkpoint.step, "names": list(checkpoint.layout.names), **checkpoint.record}
        (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        names = sorted(os.listdir(folder))
        for name in names:
            sync(folder / name)
        write_digests(folder, names)

    def _read(self, step: int) -> Checkpoint:
        """The checkpoint of ``step``.

        Raises:
            _Damage: it is not whole.
            CheckpointNotFound: it was removed while it was read.
            CheckpointError: it is of another format, or cannot be read now.
        """
        try:
            return self._parse(step)
        except (_Damage, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            if not os.path.lexists(self.path(step)):
                self._refuse_gone(step)
            if isinstance(error, OSError) and not is_damage(error):
                raise self._unreadable(step, error) from None
            raise _Damage(str(error) if isinstance(error, _Damage) else f"{type(error).__name__}: {error}") from None

    def _unreadable(self, step: int, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {self.path(step)} cannot be read: {error}; expected files that can be read, damaged or "
            "not. Fix their permissions, or what else the system names, and try again."
        )

    def _refuse_gone(self, step: int) -> NoReturn:
        raise CheckpointNotFound(
            f"The checkpoint {self.path(step)} was removed while it was read, as a training run removes old ones; "
            "expected one that stays. Try again: the run has a newer one."
        )

    def _parse(self, step: int) -> Checkpoint:
        folder = self.path(step)
        digests = _exists(folder / MANIFEST)
        if digests and (found := damage_in(folder)):
            raise _Damage("; ".join(found))
        state = dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
        written = state.pop("format", None)
        if digests and written != FORMAT:
            raise CheckpointError(
                f"The checkpoint {folder} is of format {written!r}; expected {FORMAT}. Use the distmeta that wrote it."
            )
        if not digests and written != 1:
            raise _Damage(f"{MANIFEST} is absent")
        params, optimizer = _load(folder / "params.safetensors"), _load(folder / "optimizer.safetensors")
        names, at = tuple(state.pop("names")), int(state.pop("step"))
        if at != step:
            raise _Damage(f"state.json has step {at}, expected {step}")
        arrays = [params[name] for name in names]
        layout = ParamLayout(names, tuple(a.shape for a in arrays), arrays[0].dtype.name)
        checkpoint = Checkpoint(at, np.concatenate([a.reshape(-1) for a in arrays]), layout, optimizer, state)
        if not digests:
            _require_plausible(checkpoint, params)
        return checkpoint

    def _is_whole(self, step: int) -> bool:
        """Return whether it is whole. Its bytes are read again only where the sizes or times of files changed.

        Raises:
            CheckpointError: it is of another format, or cannot be read now: whole or not, it is to be kept.
        """
        try:
            now = self._files(step)
            if step not in self._whole or self._whole[step][0] != now:
                self._whole[step] = now, self._read(step).best_step
        except (_Damage, CheckpointNotFound):
            return False
        except OSError as error:
            if not is_damage(error):
                raise self._unreadable(step, error) from None
            return False
        return True

    def _files(self, step: int) -> list[tuple[str, int, int]]:
        """Name, size and time of change of the files of a checkpoint."""
        files = sorted(os.scandir(self.path(step)), key=lambda file: file.name)
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def _prune(self) -> None:
        """Keep the last whole ones, and the best as each of them has it: a run may go on from any of them.

        A damaged one counts for nothing; it is removed once a newer one is whole, unless it is a best: its name is then
        what an error is about. One that cannot be read now, or is of another format, is kept.
        """
        steps, whole, unread = self.steps(), [], []
        for step in steps:
            try:
                if self._is_whole(step):
                    whole.append(step)
            except CheckpointError:
                unread.append(step)
        last = whole[-self._keep :]
        kept = {*last, *unread, *(self._whole[step][1] for step in last)}
        for step in steps:
            if step not in kept and step < max(last, default=0):
                with suppress(OSError):
                    self._discard(step)

    def _discard(self, step: int) -> None:
        """Rename what has the name of a checkpoint, if anything does, so that no reader finds half of it."""
        if os.path.lexists(self.path(step)):
            # A name of its own: an earlier one may still be there, held open by a reader on a network file system.
            self.path(step).rename(self._directory / f".discarded-{step}-{uuid.uuid4().hex}")

    def _remove_leftovers(self) -> None:
        """Remove what was discarded or never finished, as far as the disk allows; the next call tries the rest."""
        with suppress(OSError):
            for name in os.listdir(self._directory):
                if name.startswith((".partial", ".discarded")):
                    _remove(self._directory / name)


class _Damage(Exception):
    """A checkpoint is damaged; the message names each file and its fault."""


def _require_plausible(checkpoint: Checkpoint, params: Mapping[str, FloatArray]) -> None:
    """Check what a checkpoint without digests lets be checked.

    Raises:
        _Damage: a shape, a type or a number cannot be what was written.
    """
    if not isinstance(checkpoint.record["identity"], dict) or not isinstance(checkpoint.record["best"], dict | None):
        raise _Damage("state.json has no identity or best of the expected type")
    if set(params) != set(checkpoint.layout.names):
        raise _Damage("params.safetensors has other names than state.json")
    for file, arrays in (("params", params), ("optimizer", checkpoint.optimizer)):
        for name, array in arrays.items():
            if file == "optimizer" and array.shape not in ((), checkpoint.vector.shape):
                raise _Damage(f"{file}.safetensors: {name} has shape {list(array.shape)}")
            if not np.isfinite(array).all():
                raise _Damage(f"{file}.safetensors: {name} has numbers that are not finite")


def _exists(path: Path) -> bool:
    """Return whether the file exists; an error that leaves this open is raised, which ``Path.exists`` hides."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _load(path: Path) -> dict[str, FloatArray]:
    """The arrays of a safetensors file."""
    with path.open("rb"):  # safetensors names a file absent whatever keeps it from being opened
        try:
            arrays: dict[str, FloatArray] = load_file(path)
        except SafetensorError as error:
            raise _Damage(f"SafetensorError: {error}") from None
    return arrays


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _remove(path: Path) -> None:
    """Remove a folder or a file, as far as the disk allows."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
