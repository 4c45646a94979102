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
        ├── WorkerTimeout            a chunk took longer than it may
        ├── ServerLost               the parameter server's process or node died
        ├── ClusterTooSmall          the cluster cannot hold the workers asked for
        └── FailureBudgetExceeded    too many losses in too short a time

A message says what was seen, what was expected, and the change that fixes it. An error that concerns one task carries
the :class:`~distmeta.types.TaskRef` that reproduces it. Every error survives pickling, since most cross a process.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.types import TaskRef


class DistmetaError(Exception):
    """Base of the tree.

    Args:
        message: what was seen, what was expected, the change that fixes it.
        task_ref: the task that reproduces the error, where there is one.

    Example:
        >>> import pickle
        >>> error = ConfigError("learner.inner_lr is -1; expected a number above 0.")
        >>> str(pickle.loads(pickle.dumps(error)))
        'learner.inner_lr is -1; expected a number above 0.'
    """

    def __init__(self, message: str, *, task_ref: TaskRef | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.task_ref = task_ref

    def __str__(self) -> str:
        if self.task_ref is None:
            return self.message
        return f"{self.message} [reproduce with {self.task_ref}]"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.task_ref)


def _rebuild(kind: type[DistmetaError], message: str, task_ref: TaskRef | None) -> DistmetaError:
    return kind(message, task_ref=task_ref)


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


class WorkerTimeout(RuntimeFailure):
    """A worker did not answer in the time it has."""


class ServerLost(RuntimeFailure):
    """The parameter server's process or node died."""


class ClusterTooSmall(RuntimeFailure):
    """The cluster cannot hold the workers that were asked for."""


class FailureBudgetExceeded(RuntimeFailure):
    """Workers were lost more often than the failure policy allows."""


def line_of(error: BaseException) -> str:
    """Where somebody's own code failed: the last file and line of the traceback that is no installed package's.

    Example:
        >>> try:
        ...     [][1]
        ... except IndexError as error:
        ...     print(line_of(error).split(",")[1])
         line 2
    """
    frames = traceback.extract_tb(error.__traceback__)
    here = os.path.dirname(__file__)
    own = [f for f in frames if "-packages" not in f.filename and not f.filename.startswith(here)] or list(frames)
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else "no line known"
