"""The worker: turns task names into episodes and episodes into meta-gradients. A plain class; the backend places it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distmeta.errors import NonFiniteGradientError
from distmeta.learners.base import MetaLearner
from distmeta.learners.param_layout import ParamLayout
from distmeta.malloc import keep_freed_memory
from distmeta.runtime import processor
from distmeta.runtime.chunks import Share, TreeSum
from distmeta.runtime.step_time import Laps
from distmeta.seeding import torch_seed
from distmeta.tasks import controls
from distmeta.tasks.base import TaskDistribution
from distmeta.types import Chunk, ChunkResult, Episode, FloatArray, Metrics, TaskRef


@dataclass(frozen=True)
class WorkerSetup:
    """Everything that a worker is given, sent once.

    Args:
        learner: bound to its model, its engine chosen.
        tasks: the task distribution; data stay on disk.
        layout: how the flat parameter vector is read.
        seed: root of the run's random numbers.
        threads: CPU threads; a part of the result's identity.
        controls: whether evaluation also fits scikit-learn's methods to each support set.
    """

    learner: MetaLearner
    tasks: TaskDistribution
    layout: ParamLayout
    seed: int
    threads: int
    controls: bool = False


@dataclass(frozen=True)
class WorkerInfo:
    """Identity of a worker that has joined.

    Args:
        pid: process id.
        host: name of its machine.
        kernel: everything that may change the bits of a result: device (of a CPU maker, family, model and instruction
            set), torch, threads.
    """

    pid: int
    host: str
    kernel: str


class Worker:
    """Computes chunks. It keeps no state between them, so a chunk can be computed again anywhere.

    Args:
        name: for records, ``worker-0`` and so on.
        setup: see :class:`WorkerSetup`.
        gpu: whether the backend reserved a GPU.
    """

    def __init__(self, name: str, setup: WorkerSetup, *, gpu: bool = False) -> None:
        torch.set_num_threads(setup.threads)
        keep_freed_memory()
        self._name, self._setup = name, setup
        self._device = torch.device("cuda" if gpu else "cpu")
        # The same bits on every run: deterministic kernels where torch has them (several CPU threads need them too), no
        # autotuning, no TF32.
        torch.use_deterministic_algorithms(True, warn_only=True)
        # A debugging aid that would cost every empty().
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self._learner = setup.learner
        if gpu:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            self._learner = setup.learner.on(self._device)
        self._evaluator = self._learner.for_evaluation()
        self._tasks = setup.tasks

    def info(self) -> WorkerInfo:
        """Process, host and kernel fingerprint."""
        if self._device.type == "cuda":
            device = torch.cuda.get_device_name()
        else:
            device = f"{processor.kind()}, {torch.backends.cpu.get_cpu_capability()}"
        return WorkerInfo(
            os.getpid(), platform.node(), f"{device}; torch {torch.__version__}; {self._setup.threads} threads"
        )

    def train(self, share: Share, version: int, vector: FloatArray) -> tuple[tuple[ChunkResult, ...], FloatArray]:
        """Meta-gradients of a share at the given parameters.

        Args:
            share: which tasks.
            version: of the parameters.
            vector: the parameters ``[P]``.

        Returns:
            The header of each chunk, and the gradients ``[K, P]`` summed over the tasks of each of ``share.nodes``.

        Raises:
            NonFiniteGradientError: as :meth:`train_chunk`.
        """
        headers, sums, left = [], [], iter(share.chunks)
        for first, stop in share.nodes:
            tree = TreeSum(stop - first)
            for leaf in range(stop - first):
                header, gradient = self.train_chunk(next(left), version, vector)
                headers.append(header)
                tree.add(leaf, gradient)
            sums.append(tree.total)
        return tuple(headers), sums[0][None] if len(sums) == 1 else np.stack(sums)

    def evaluate(self, share: Share, version: int, vector: FloatArray, seed: int) -> tuple[ChunkResult, ...]:
        """:meth:`evaluate_chunk` of each chunk."""
        return tuple(self.evaluate_chunk(chunk, version, vector, seed) for chunk in share.chunks)

    def train_chunk(self, chunk: Chunk, version: int, vector: FloatArray) -> tuple[ChunkResult, FloatArray]:
        """Meta-gradient of a chunk at the given parameters.

        Args:
            chunk: which tasks.
            version: of the parameters.
            vector: the parameters ``[P]``.

        Returns:
            The header, and the gradient ``[P]`` summed over the tasks.

        Raises:
            NonFiniteGradientError: a task's loss or the gradient is NaN or infinite; names the task.
        """
        laps = Laps()
        params, episodes = self._prepare(chunk, chunk.refs, vector, self._setup.seed, laps)
        result = self._learner.at_step(chunk.step).meta_gradient(params, episodes)
        self._require_finite(chunk, result.metrics["loss"])
        laps.lap("compute")
        gradient = self._setup.layout.flatten(result.gradient)
        laps.lap("flatten")
        return self._header(chunk, version, dict(result.metrics), laps), gradient

    def evaluate_chunk(self, chunk: Chunk, version: int, vector: FloatArray, seed: int) -> ChunkResult:
        """Metrics of a chunk after adaptation, with the no-learning baseline of the same tasks beside them."""
        laps = Laps()
        measured = [self._measured(chunk, refs, vector, seed, laps) for refs in self._tasks.together(chunk.refs, seed)]
        metrics = {name: torch.cat([part[name] for part, _ in measured]) for name in measured[0][0]}
        self._require_finite(chunk, metrics["loss"])
        sums = [part for _, part in measured if part is not None]
        return self._header(chunk, version, metrics, laps, torch.cat(sums) if sums else None)

    def _measured(
        self, chunk: Chunk, refs: Sequence[TaskRef], vector: FloatArray, seed: int, laps: Laps
    ) -> tuple[Metrics, torch.Tensor | None]:
        """Metrics of tasks of equal shapes, with those that need no learner."""
        params, episodes = self._prepare(chunk, refs, vector, seed, laps)
        metrics, calibration = self._evaluator.measure(params, episodes)
        baseline = self._tasks.baseline(episodes)
        if "mse" in metrics and "baseline_loss" in baseline:  # the loss is a likelihood, the baseline's an error
            baseline["baseline_mse"] = baseline.pop("baseline_loss")
        if self._setup.controls:
            baseline |= controls.scores(episodes)
        metrics |= baseline | self._tasks.exact(refs, seed, episodes)
        laps.lap("compute")
        return metrics, calibration

    def _prepare(
        self, chunk: Chunk, refs: Sequence[TaskRef], vector: FloatArray, seed: int, laps: Laps
    ) -> tuple[dict[str, torch.Tensor], Episode]:
        layout = self._setup.layout
        episodes = self._tasks.episodes(refs, seed).to(self._device, layout.torch_dtype)
        laps.lap("sample")
        # Dropout and other noise inside a model: a function of the chunk, not of the worker.
        torch.manual_seed(torch_seed(seed, "noise", chunk.split, chunk.step, chunk.start))
        return layout.unflatten(vector, self._device), episodes

    @staticmethod
    def _require_finite(chunk: Chunk, losses: torch.Tensor) -> None:
        bad = torch.nonzero(~torch.isfinite(losses)).flatten()
        if len(bad):
            raise NonFiniteGradientError(
                f"The loss of {len(bad)} of {chunk.size} tasks is NaN or infinite after adaptation; expected a finite "
                "number. Lower learner.inner_lr or outer.lr, or set outer.clip_norm=10.",
                task_ref=chunk.refs[int(bad[0])],
            )

    def _header(
        self, chunk: Chunk, version: int, metrics: Metrics, laps: Laps, calibration: torch.Tensor | None = None
    ) -> ChunkResult:
        numbers = {key: value.detach().cpu().numpy() for key, value in metrics.items()}
        sums = None if calibration is None else calibration.cpu().numpy()
        return ChunkResult(chunk, version, self._name, numbers, laps.seconds, sums, tuple(laps.spans))
