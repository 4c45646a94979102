"""Every error that distmeta raises on purpose.

::

    DistmetaError
    ├── ConfigError                  a setting: unknown key, wrong type, out of range
    ├── ContractError                an object does not keep its part of the contract
    │   ├── ModelContractError       the user's nn.Module
    │   ├── TaskContractError        a task distribution or an episode
    │   └── LearnerContractError     a learner
    ├── DataError                    a dataset on disk
    │   ├── ManifestError            manifest.json: absent, unreadable, another version
    │   ├── ShardCorrupt             an Arrow shard: truncated, flipped bytes, wrong schema
    │   └── SplitLeak                a class or a shard used outside its own split
    ├── FileDamaged                  a file is not as it was written
    ├── NonFiniteGradientError       a loss or a meta-gradient is NaN or infinite
    ├── CheckpointError
    │   ├── CheckpointNotFound       nothing to resume from
    │   ├── CheckpointDamaged        its files are not as they were written
    │   └── CheckpointMismatch       the checkpoint belongs to another experiment
    └── RuntimeFailure               the machinery, not the mathematics
        ├── WorkerLost               a process or a node died
        │   └── WorkerOutOfMemory    it had too little memory: fewer workers leave more to each
        ├── WorkerTimeout            a chunk took longer than it may
        ├── ServerLost               the parameter server's process or node died
        ├── ChunksMissing            a step cannot be applied yet: gradients were lost on their way
        ├── ClusterTooSmall          the cluster cannot hold the workers asked for
        └── FailureBudgetExceeded    too many losses in too short a time

A message states what was seen, what was expected, and the change that fixes it, in at most five lines of 100 columns.
What a library raised may be longer (Ray hands on whole logs): :func:`foreign` puts its first sentence into the message
and keeps the whole text in :attr:`DistmetaError.raw`, which a run writes to a file. An error that concerns one task
carries the :class:`~distmeta.types.TaskRef` that reproduces it. Every error survives pickling, since most cross a
process.
"""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from distmeta.types import TaskRef


class DistmetaError(Exception):
    """Base of the tree.

    Args:
        message: what was seen, what was expected, the change that fixes it.
        task_ref: the task that reproduces the error, where there is one.
        raw: the whole text of the error of a library or of the user's code, where one is behind this error.

    Example:
        >>> import pickle
        >>> error = ConfigError("learner.inner_lr is -1; expected a number above 0.")
        >>> str(pickle.loads(pickle.dumps(error)))
        'learner.inner_lr is -1; expected a number above 0.'
    """

    def __init__(self, message: str, *, task_ref: TaskRef | None = None, raw: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.task_ref = task_ref
        self.raw = raw

    def __str__(self) -> str:
        if self.task_ref is None:
            return self.message
        return f"{self.message} [reproduce with {self.task_ref}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.task_ref, self.raw)

    def with_note(self, note: str) -> Self:
        """Add a line to the message, unless the message has it, and return this same error.

        Args:
            note: such as the path of the file that now holds :attr:`raw`.

        Example:
            >>> print(WorkerLost("worker-3 died.").with_note("Full text: run/errors/WorkerLost.txt"))
            worker-3 died.
            Full text: run/errors/WorkerLost.txt
        """
        if note not in self.message.splitlines():
            self.message = f"{self.message}\n{note}"
            self.args = (self.message,)
        return self


def _rebuild(kind: type[DistmetaError], message: str, task_ref: TaskRef | None, raw: str) -> DistmetaError:
    return kind(message, task_ref=task_ref, raw=raw)


class ConfigError(DistmetaError):
    """A setting is unknown, of the wrong type or out of range."""


class ContractError(DistmetaError):
    """An object given by the user does not keep its part of the contract."""


class ModelContractError(ContractError):
    """The model's inputs, outputs, parameters or norm layers do not fit the learner."""


class TaskContractError(ContractError):
    """A task distribution cannot make the episodes it promises."""


class LearnerContractError(ContractError):
    """A learner breaks the contract of :class:`distmeta.learners.base.MetaLearner`."""


class DataError(DistmetaError):
    """A dataset is absent, damaged or not what the experiment was started with."""


class ManifestError(DataError):
    """``manifest.json`` is absent, unreadable or of another format version."""


class ShardCorrupt(DataError):
    """An Arrow shard is truncated, altered or has the wrong schema."""


class SplitLeak(DataError):
    """A class or a shard is used outside its own split."""


class FileDamaged(DistmetaError):
    """A file is not as it was written: a flipped bit, a cut, a change by hand."""


class NonFiniteGradientError(DistmetaError):
    """A loss or a meta-gradient is NaN or infinite; nothing was applied."""


class CheckpointError(DistmetaError):
    """A checkpoint cannot be written or read."""


class CheckpointNotFound(CheckpointError):
    """There is no checkpoint where one is needed."""


class CheckpointDamaged(CheckpointError):
    """The files of a checkpoint are not as they were written."""


class CheckpointMismatch(CheckpointError):
    """The checkpoint belongs to another experiment, dataset or kernel."""


class RuntimeFailure(DistmetaError):
    """The distributed machinery failed, not the mathematics."""


class WorkerLost(RuntimeFailure):
    """A worker's process or node died."""


class WorkerOutOfMemory(WorkerLost):
    """A worker had too little memory: its process was ended for it, or is to be, since it could not compute its tasks.

    Fewer workers on the same machine leave more to each, and give the same bits.
    """


class WorkerTimeout(RuntimeFailure):
    """A worker did not answer in the time it has."""


class ServerLost(RuntimeFailure):
    """The parameter server's process or node died."""


class ChunksMissing(RuntimeFailure):
    """A step was to be applied before the gradients of all its chunks had come; nothing was changed."""


class ClusterTooSmall(RuntimeFailure):
    """The cluster cannot hold the workers that were asked for."""


class FailureBudgetExceeded(RuntimeFailure):
    """Workers were lost more often than the failure policy allows."""


_Kind = TypeVar("_Kind", bound=DistmetaError)


def foreign(kind: type[_Kind], seen: str, error: BaseException | str, fix: str) -> _Kind:
    """Build the error for what a library raised: one short message, and the library's own text in ``raw``.

    Args:
        kind: class of the new error.
        seen: what failed, without a full stop.
        error: what the library raised, or its text.
        fix: what was expected and the change that fixes it, in whole sentences.

    Returns:
        An error whose message is ``seen``, the first sentence of ``error`` and ``fix``.

    Example:
        >>> error = OSError(28, "No space left on device")
        >>> print(foreign(RuntimeFailure, "Ray did not start", error, "Free the disk."))
        Ray did not start: [Errno 28] No space left on device. Free the disk.
    """
    if isinstance(error, str):
        cause = raw = error
    else:
        cause = str(error).strip() or type(error).__name__
        raw = "".join(traceback.format_exception(error))
    return kind(f"{seen}: {first_sentence(cause)}. {fix}", raw=raw)


def listed(names: Iterable[str], first: int = 3) -> str:
    """Name the first few of many: a network has hundreds of layers, a message has five lines.

    Args:
        names: all of them.
        first: how many are named; one more is named too, since "and 1 more" is no shorter.

    Example:
        >>> listed(f"layer{i}" for i in range(60))
        'layer0, layer1, layer2 and 57 more'
        >>> listed(["weight", "bias"])
        'weight, bias'
    """
    known = list(names)
    if len(known) <= first + 1:
        return ", ".join(known)
    return f"{', '.join(known[:first])} and {len(known) - first} more"


_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# "[2026-01-31 12:00:00,123 E 12 34] (raylet) main.cc:12: text", with or without a prefix such as "(pid=12)".
_CPP_LOG_LINE = re.compile(r"^\s*(\(\S+[^)]*\) )?\[\d{4}-\d\d-\d\d [\d:,.]+ [A-Z] \d+ \d+\]|^\s*(\*\*\*|@ +0x)")


def first_sentence(text: str, limit: int = 160) -> str:
    r"""Shorten a library's text to its first sentence, without colours, C++ log lines and the full stop.

    Args:
        text: the whole text.
        limit: characters at most.

    Example:
        >>> log = "[2026-01-31 12:00:00,123 E 12 34] (raylet) main.cc:12: check failed"
        >>> first_sentence(f"{log}\nThe actor died. Its node is gone.")
        'The actor died'
    """
    lines = [line.strip() for line in _COLOURS.sub("", text).splitlines()]
    lines = [line for line in lines if line]
    own = [line for line in lines if not _CPP_LOG_LINE.match(line)] or lines
    if not own:
        return "no message"
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", own[0], maxsplit=1)[0].rstrip(".:! ")
    return sentence if len(sentence) <= limit else sentence[: limit - 3].rstrip() + "..."


_STANDARD_LIBRARY = os.path.join(sysconfig.get_paths()["stdlib"], "")


def line_of(error: BaseException | str) -> str:
    """Location of the user's code: the last traceback frame outside installed packages.

    Args:
        error: an error that was raised, or the text of its traceback.

    Returns:
        File and line number.

    Example:
        >>> try:
        ...     [][1]
        ... except IndexError as error:
        ...     print(line_of(error).split(",")[1])
         line 2
    """
    if isinstance(error, str):
        frames = re.findall(r'File "([^"\n]+)", line (\d+)', error)
    else:
        frames = [(f.filename, str(f.lineno)) for f in traceback.extract_tb(error.__traceback__)]
    here = os.path.join(os.path.dirname(__file__), "")
    elsewhere = (here, _STANDARD_LIBRARY, "<frozen")
    own = [frame for frame in frames if "-packages" not in frame[0] and not frame[0].startswith(elsewhere)] or frames
    return f"{own[-1][0]}, line {own[-1][1]}" if own else "no line known"
