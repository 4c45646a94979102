"""The driver: THE loop. It moves names, headers and references; data and gradients never pass through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from distmeta.errors import CheckpointMismatch, FailureBudgetExceeded, ServerLost
from distmeta.learners.contract import probe
from distmeta.learners.functional import ParamLayout
from distmeta.runtime import chunks
from distmeta.runtime.backend import SERVER, Backend, Resources
from distmeta.runtime.checkpoint import Checkpoint, CheckpointStore
from distmeta.runtime.evaluation import EvaluationReport, evaluate
from distmeta.runtime.experiment import Experiment
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.runtime.pool import WorkerPool
from distmeta.runtime.worker import WorkerInfo, WorkerSetup
from distmeta.seeding import rng
from distmeta.types import ChunkResult, FloatArray, ParamVersion, Split, TaskRef


@dataclass(frozen=True)
class Event:
    """Something a watcher of the run may show.

    Args:
        kind: ``"message"``, ``"step"`` or ``"validation"``.
        step: outer steps done.
        text: for a person.
        values: numbers, by metric name.
    """

    kind: Literal["message", "step", "validation"]
    step: int
    text: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


class Log(Protocol):
    """Where numbers go by step; :class:`distmeta.runtime.tracking.Tracker` is one."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers."""

    def truncate(self, step: int) -> None:
        """Forget what was recorded after ``step``."""


@dataclass(frozen=True)
class Trained:
    """The end of the loop.

    Args:
        step: outer steps done.
        stopped_early: by ``evaluation.patience``.
        best: checkpoint that the final model is taken from: best meta-validation, or the last.
        test: meta-test report, if there is such a split.
    """

    step: int
    stopped_early: bool
    best: Checkpoint
    test: EvaluationReport | None


class Driver:
    """Runs one experiment on one backend.

    Args:
        experiment: what to run.
        backend: where.
        store: checkpoints; the run goes on from the last one.
        log: where metrics go.
        watch: called with every :class:`Event`.

    Raises:
        ContractError, DataError, ConfigError: the experiment cannot run; no worker has been started.
        CheckpointMismatch: the checkpoints are another experiment's.
    """

    def __init__(
        self,
        experiment: Experiment,
        backend: Backend,
        store: CheckpointStore,
        log: Log,
        watch: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._experiment, self._backend, self._store = experiment, backend, store
        self._log, self._watch = log, watch
        tasks = experiment.tasks
        tasks.check()
        bound = experiment.learner.bind(tasks.spec, experiment.seed)
        episodes = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], experiment.seed)
        found = probe(bound, tasks.spec, episodes)
        if found.message:
            self._say(0, found.message)
        self._learner = found.learner
        params = self._learner.init_meta_params(rng(experiment.seed, "init"))
        self._layout = ParamLayout.of(params)
        self._initial: FloatArray = self._layout.flatten(params)
        self._record: dict[str, Any] = {
            "identity": experiment.identity(),
            "digest": experiment.digest(),
            "fingerprint": tasks.fingerprint,
            "engine": self._learner.config.vectorise,
            "kernel": None,
            "best": None,
        }

    @property
    def learner(self) -> Any:
        """The learner with its model built and its engine chosen."""
        return self._learner

    @property
    def layout(self) -> ParamLayout:
        """Names and shapes of the meta-parameters."""
        return self._layout

    def train(self) -> Trained:
        """The whole run: outer steps, meta-validations, checkpoints, the final meta-test.

        Raises:
            KeyboardInterrupt: passed on after a checkpoint was written.
            DistmetaError: what ended the run; what was done before is in the last checkpoint.
        """
        outer = self._experiment.outer
        step = self._open()
        stopped = False
        try:
            while step < outer.iterations and not stopped:
                try:
                    self._step(step)
                    step += 1
                    stopped = self._after(step)
                except ServerLost as error:
                    step = self._recover(step, error)
        except KeyboardInterrupt:
            self._checkpoint()
            raise
        best = self._store.load((self._record["best"] or {}).get("step"))
        return Trained(step, stopped, best, self.evaluate("meta_test", best))

    def evaluate(self, split: Split, checkpoint: Checkpoint) -> EvaluationReport | None:
        """Judge a checkpoint on ``split``; ``None`` where the data has no such split."""
        if split not in self._experiment.tasks.splits:
            return None
        settings = self._experiment.evaluation
        return self._judge(split, settings.test_tasks, self._backend.put(checkpoint.vector), checkpoint.step)

    def close(self) -> None:
        """End the actors."""
        if hasattr(self, "_pool"):
            self._pool.close()
            self._backend.kill(self._server)

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        """Lease the chunks of one meta-batch, sum their gradients in the server, apply them."""
        outer, started = self._experiment.outer, time.perf_counter()
        parts = chunks.split(
            outer.meta_batch_size, self._experiment.runtime.chunk_size, split="meta_train", step=step
        )
        call, vector = self._backend.call, self._vector

        def deliver(header: ChunkResult, gradient: Any) -> Any:
            chunk = header.chunk
            return call(self._server, "accumulate", step, chunk.id, len(parts), chunk.size, gradient)

        results = self._pool.run(
            parts, lambda worker, chunk: call(worker, "train_chunk", chunk, step, vector, parts=2), deliver
        )
        published, self._vector = call(self._server, "apply", step, parts=2)
        header: ParamVersion = self._backend.fetch(published)
        self._report(results, header, time.perf_counter() - started)

    def _report(self, results: list[ChunkResult], header: ParamVersion, seconds: float) -> None:
        names = results[0].metrics
        columns = {name: np.concatenate([r.metrics[name] for r in results]) for name in names}
        counters = self._pool.counters
        values = {f"train/{name}": float(np.mean(column, dtype=np.float64)) for name, column in columns.items()}
        values |= {
            "train/grad_norm": header.grad_norm,
            "train/lr": header.lr,
            "runtime/tasks_per_second": sum(r.chunk.size for r in results) / seconds,
            "runtime/worker_losses": counters.losses,
            "runtime/duplicate_leases": counters.duplicates,
        }
        self._log.metrics(header.version, values)
        self._watch(Event("step", header.version, values=values))

    def _after(self, step: int) -> bool:
        """Meta-validation and checkpoint where they are due; whether to stop early."""
        evaluation, runtime = self._experiment.evaluation, self._experiment.runtime
        last = step == self._experiment.outer.iterations
        due = bool(evaluation.every) and "meta_validation" in self._experiment.tasks.splits
        stop = False
        if due and (step % evaluation.every == 0 or last):
            stop = self._validate(step)
            self._checkpoint()
        elif step % runtime.checkpoint_every == 0 or last:
            self._checkpoint()
        return stop

    def _validate(self, step: int) -> bool:
        settings = self._experiment.evaluation
        report = self._judge("meta_validation", settings.validation_tasks, self._vector, step)
        values = {f"validation/{name}": value for name, value in report.summary().items()}
        self._log.metrics(step, values)
        name, sign = ("accuracy", 1.0) if "accuracy" in report.metrics else ("loss", -1.0)
        score, best = sign * report.mean(name), self._record["best"]
        if best is None or score > best["score"]:
            self._record["best"] = {"step": step, "score": score, "metric": name, "since": 0}
        else:
            self._record["best"] = {**best, "since": best["since"] + 1}
        self._watch(Event("validation", step, text=f"{name} {report.text(name)}", values=values))
        return settings.patience is not None and self._record["best"]["since"] >= settings.patience

    def _judge(self, split: Split, tasks: int, vector: Any, version: int) -> EvaluationReport:
        return evaluate(
            self._backend,
            self._pool,
            vector,
            version=version,
            split=split,
            tasks=tasks,
            seed=self._experiment.evaluation.seed,
            chunk_size=self._experiment.runtime.chunk_size,
        )

    # -- state -----------------------------------------------------------------------------------------------------

    def _open(self) -> int:
        """Start the actors from the last checkpoint, or from the initial parameters; returns the step to go on from."""
        resumed = self._load() if self._store.steps() else None
        self.start()
        if resumed is None:
            self._start_server(Checkpoint(0, self._initial, self._layout, {}, self._record))
            self._checkpoint()
            return 0
        self._start_server(resumed)
        self._log.truncate(resumed.step)
        self._say(resumed.step, f"Going on from step {resumed.step}.")
        return resumed.step

    def _load(self) -> Checkpoint:
        checkpoint = self._store.load()
        changed = _differences(checkpoint.record["identity"], self._record["identity"])
        if changed:
            raise CheckpointMismatch(
                f"The run was started with {'; '.join(changed)}. Expected the same experiment. Resume with the old "
                "settings (only outer.iterations and how the work is spread may change), or `distmeta train` a new run."
            )
        if checkpoint.layout != self._layout:
            raise CheckpointMismatch(
                "The checkpoint's parameters have other names or shapes than the model's; expected the same model. "
                "Restore the model, or `distmeta train` a new run."
            )
        self._record["best"] = checkpoint.record["best"]
        engine = checkpoint.record["engine"]
        if engine != self._learner.config.vectorise:
            self._learner = self._learner.with_config(vectorise=engine)
        return checkpoint

    def start(self) -> tuple[WorkerInfo, ...]:
        """Start the workers; returns what they say of themselves."""
        setup = WorkerSetup(
            self._learner,
            self._experiment.tasks,
            self._layout,
            self._experiment.seed,
            self._experiment.runtime.threads,
        )
        self._pool = WorkerPool(self._backend, setup, self._experiment.runtime)
        infos = self._pool.join()
        self._record["kernel"] = infos[0].kernel
        self._say(0, f"{len(infos)} worker{'s' * (len(infos) > 1)} on {self._backend.name}: {infos[0].kernel}")
        return infos

    def _start_server(self, checkpoint: Checkpoint) -> None:
        kernel = checkpoint.record["kernel"]
        if kernel not in (None, self._record["kernel"]):
            self._say(
                checkpoint.step,
                f"The run was started on [{kernel}] and goes on with [{self._record['kernel']}]: "
                "the result will be as good, but not the same to the last bit.",
            )
        resources = Resources(cpus=0, gpus=0, timeout=self._experiment.runtime.startup_timeout)
        self._server = self._backend.spawn(
            ParameterServer,
            SERVER,
            resources,
            self._experiment.outer,
            checkpoint.vector,
            version=checkpoint.step,
            optimizer=dict(checkpoint.optimizer),
        )
        self._vector = self._backend.put(checkpoint.vector)
        self._server_losses = getattr(self, "_server_losses", 0)

    def _recover(self, step: int, error: ServerLost) -> int:
        """A new server from the last checkpoint; the steps since then are done again, with the same bits."""
        self._server_losses += 1
        if self._server_losses > self._experiment.runtime.max_losses:
            raise FailureBudgetExceeded(f"The parameter server was lost {self._server_losses} times: {error.message}")
        checkpoint = self._store.load()
        self._record["best"] = checkpoint.record["best"]
        self._start_server(checkpoint)
        self._log.truncate(checkpoint.step)
        self._say(step, f"{error.message} Doing steps {checkpoint.step} to {step} again.")
        return checkpoint.step

    def _checkpoint(self) -> None:
        version, vector, optimizer = self._backend.fetch(self._backend.call(self._server, "state"))
        self._store.save(Checkpoint(version, vector, self._layout, optimizer, self._record))

    def _say(self, step: int, text: str) -> None:
        self._watch(Event("message", step, text=text))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key=old`` (now new) for every leaf that differs."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}={a} and now has {b}")
    return found
