"""The driver: THE loop. It moves names, headers and references; of data and gradients its code sees nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distmeta.errors import ChunksMissing, DistmetaError, FailureBudgetExceeded, ServerLost, WorkerLost
from distmeta.experiment.experiment import Experiment
from distmeta.intervals import EvaluationReport
from distmeta.learners.base import MetaLearner
from distmeta.learners.functional import frozen_digest
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.precision import require_for
from distmeta.learners.probe import probe, require_equal_ways
from distmeta.runtime import chunks
from distmeta.runtime.backend import SERVER, Backend, Resources
from distmeta.runtime.checkpoint import Checkpoint, CheckpointStore
from distmeta.runtime.chunks import Share
from distmeta.runtime.evaluation import cautions, evaluate, require_tasks
from distmeta.runtime.events import Event, Log, NullLog
from distmeta.runtime.outer_optimizer import require_schedulefree
from distmeta.runtime.parameter_server import ParameterServer
from distmeta.runtime.pool import Batch, WorkerPool, describe
from distmeta.runtime.resuming import as_begun, require_same_run
from distmeta.runtime.sizing import sized_by_memory
from distmeta.runtime.step_report import Calls, StepReports
from distmeta.runtime.step_time import Laps, now
from distmeta.runtime.timeline import Timeline
from distmeta.runtime.worker import WorkerInfo, WorkerSetup
from distmeta.seeding import rng
from distmeta.types import ParamVersion, Split, TaskRef

_WORK_PER_CALL = 150.0  # a call lasts at least so many times what it costs, unless that leaves workers without work
_SMALL = 2**20  # bytes of gradients that the server adds up in less time than a call of its own costs
_HELD_AT_MOST = 64  # gradients that wait for the end of the step


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


@dataclass(eq=False)
class _Leased:
    """The shares of one outer step that workers have."""

    step: int
    calls: Calls
    batch: Batch = field(init=False)


class Driver:
    """Runs one experiment. Constructing it checks everything that can be checked, before any worker starts.

    Args:
        experiment: what to run.
        store: checkpoints; the run goes on from the newest whole one.
        watch: called with every :class:`Event`.
        before_probe: called when tasks, data and settings are in order, before the model is probed.
        timeline: keeps some steps for a picture, see :mod:`distmeta.runtime.timeline`.
        may_lease_ahead: asked after each step whether the chunks of the next may be sent to the workers at once,
            before the step is reported.

    Raises:
        ContractError, DataError, ConfigError: the experiment cannot run.
        CheckpointMismatch: the checkpoints are another experiment's.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: CheckpointStore,
        watch: Callable[[Event], None] = lambda event: None,
        *,
        before_probe: Callable[[], None] = lambda: None,
        timeline: Timeline | None = None,
        may_lease_ahead: Callable[[], bool] = lambda: True,
    ) -> None:
        self.experiment: Experiment = experiment
        """The experiment, with the choice that the run began with in place of ``"auto"``."""
        self._store, self._watch = store, watch
        self._reports, self._may_lease_ahead = StepReports(timeline), may_lease_ahead
        self._ahead: _Leased | None = None  # shares of the next step that workers have already
        self._now = 0  # the step that is being done
        self._chunk_seconds: float | None = None  # of the last step's chunks, the median
        self._log: Log = NullLog()
        self._pool: WorkerPool | None = None
        self._server: Any = None
        _require_runnable(experiment)
        before_probe()
        tasks, spec = experiment.tasks, experiment.tasks.spec_of("meta_train")
        self._begin("probing the model and the learner")
        episodes = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], experiment.seed)
        found = probe(experiment.learner.bind(spec, experiment.seed).in_main_memory(), spec, episodes, tasks.spec)
        if found.message:
            self._say(0, found.message)
        self.learner: MetaLearner = found.learner
        params = self.learner.starting_params(rng(experiment.seed, "init"))
        self.layout = ParamLayout.of(params)
        frozen = frozen_digest(self.learner.model)
        begun = self._load(frozen) if store.steps() else None
        sized = sized_by_memory(self.experiment, self.learner, params, episodes)
        self.experiment, self.learner = sized.experiment, sized.learner
        for text in sized.lines:
            self._say(0 if begun is None else begun.step, text)
        self._record: dict[str, Any] = {
            # Frozen weights, such as those of a pretrained encoder, shape the result as much as the settings do.
            "identity": {**self.experiment.identity(), "frozen": frozen},
            "fingerprint": tasks.fingerprint,
            "engine": self.learner.config.vectorise,
            "gradient": getattr(self.learner.config, "gradient", None),  # of learners with several ways to it
            "kernel": None,
            "best": None if begun is None else begun.record["best"],
        }
        self._start_checkpoint = begun or Checkpoint(0, self.layout.flatten(params), self.layout, {}, self._record)
        self._server_losses = 0
        self._vector: Any = None  # reference to the newest version of the meta-parameters
        self._consistent = True  # server, log and record agree on the current step, meta-validation included

    @property
    def first_step(self) -> int:
        """The step that training goes on from: that of the newest whole checkpoint, or 0."""
        return self._start_checkpoint.step

    def start(self, backend: Backend) -> tuple[WorkerInfo, ...]:
        """Start the workers; returns their hosts and kernels.

        Raises:
            RuntimeFailure: they do not start, or differ in kind.
            ConfigError: a precision that the devices do not have.
        """
        e = self.experiment
        self._backend = backend
        if self.first_step < e.outer.iterations:  # evaluation is in float32
            on_gpus = backend.gpus() > 0 and e.runtime.gpus_per_worker != 0
            require_for(self.learner.config.precision, gpu=on_gpus)
        self._begin(f"starting workers and the parameter server on {backend.name}")
        # Before the workers: where a node's memory runs out, Ray ends the actor first that began last.
        self._spawn_server(self._start_checkpoint)
        setup = WorkerSetup(self.learner, e.tasks, self.layout, e.seed, e.runtime.threads)
        self._pool = WorkerPool(backend, setup, e.runtime, lambda text: self._say(self._now, text))
        infos = self._pool.join()
        self._record["kernel"] = infos[0].kernel
        self._say(0, describe(infos, backend))
        outer, size = e.outer, e.runtime.tasks_per_call
        parts = len(chunks.split(outer.meta_batch_size, size, split="meta_train", step=0))
        if parts < len(infos):
            self._say(
                0,
                f"A step has {parts} chunk{'s' * (parts > 1)} (outer.meta_batch_size={outer.meta_batch_size}, "
                f"runtime.chunk_size={size}): {len(infos) - parts} of {len(infos)} workers have work in evaluation "
                "only. Fewer --workers train as fast; smaller chunks train on more, with other last bits.",
            )
        return infos

    def train(self, log: Log) -> Trained:
        """The whole run: outer steps, meta-validations, checkpoints, the final meta-test.

        Raises:
            KeyboardInterrupt: passed on, after a checkpoint where nothing of the last step is still to be recorded.
            DistmetaError: what ended the run; what was done before is in the last checkpoint.
        """
        self._log = log
        step, stopped = self._start_checkpoint.step, self._out_of_patience()
        self._reports.begin(step, self.experiment.outer.iterations)
        self._warn_of_kernel(self._start_checkpoint)
        if stopped or step >= self.experiment.outer.iterations:
            self._say(step, f"Training ended at step {step} already; the meta-test follows.")
        self._checkpoint()
        try:
            while step < self.experiment.outer.iterations and not stopped:
                try:
                    self._step(step)
                    step += 1
                    stopped = self._after(step)
                except ServerLost as error:
                    step = self._recover(step, error)
        except KeyboardInterrupt:
            if self._consistent:  # otherwise resume from the last checkpoint, which reproduces the same parameters
                with suppress(DistmetaError):  # an interrupt stays an interrupt
                    self._checkpoint()
            raise
        best = self._store.best(self._store.load())
        settings = self.experiment.evaluation
        self._begin("meta-test")
        return Trained(step, stopped, best, self.evaluate(best, "meta_test", settings.test_tasks, settings.seed))

    def evaluate(self, checkpoint: Checkpoint, split: Split, tasks: int, seed: int) -> EvaluationReport | None:
        """Evaluate a checkpoint on ``tasks`` tasks of ``split``; ``None`` where the data has no such split."""
        if split not in self.experiment.tasks.splits:
            return None
        require_tasks(self.experiment.tasks, split, "--tasks", tasks)
        for text in cautions(self.experiment.tasks, split):
            self._say(checkpoint.step, text)
        return self._evaluate(split, tasks, seed, self._backend.put(checkpoint.learned), checkpoint.step)

    def close(self) -> None:
        """End the actors."""
        if self._pool is not None:
            self._pool.close()
        if self._server is not None:
            self._backend.kill(self._server)

    @property
    def _workers(self) -> WorkerPool:
        assert self._pool is not None, "start() comes before train() and evaluate()"
        return self._pool

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        """Have the shares of one meta-batch computed, sum their gradients in the server, apply them."""
        laps, self._now = Laps(), step
        leased, self._ahead = self._ahead or self._lease(step), None
        laps.lap("lease")
        results = leased.batch.results()
        laps.lap("wait")
        self._consistent = False
        header = self._apply(leased)
        laps.lap("apply")
        values = self._reports.metrics(leased.calls, results, header, laps, self._workers)
        self._chunk_seconds = statistics.median(result.seconds for result in results)
        self._log.metrics(header.version, values)
        self._watch(Event("step", header.version, values=values, of=self.experiment.outer.iterations))

    def _lease(self, step: int, *, ahead: bool = False) -> _Leased:
        """Send the first shares of a step to the workers.

        Large gradients go on to the server as they come, so that it adds them up while others are computed. Small ones
        are held, and go there with the call that takes the step.
        """
        call, vector = self._backend.call, self._vector
        leased = _Leased(step, Calls(ahead))
        small = self.layout.size * np.dtype(self.layout.dtype).itemsize <= _SMALL and self._backend.overhead > 0

        def submit(worker: Any, share: Share) -> Any:
            leased.calls.send(share)
            return call(worker, "train", share, step, vector, parts=2)

        def arrived(share: Share) -> bool:
            leased.calls.receive(share)
            return small and len(leased.batch.held) < _HELD_AT_MOST

        def deliver(share: Share, sums: Any) -> Any:
            return call(self._server, "accumulate", step, share, sums)

        leased.batch = self._workers.begin(self._shares(step), submit, deliver, holds=arrived)
        return leased

    def _shares(self, step: int) -> Sequence[Share]:
        """The chunks of a step, in as many calls as pay: their number changes no bit."""
        outer, size = self.experiment.outer, self.experiment.runtime.tasks_per_call
        parts = chunks.split(outer.meta_batch_size, size, split="meta_train", step=step)
        least = _WORK_PER_CALL * self._backend.overhead
        if not least or self._chunk_seconds is None:
            return chunks.shares(parts, len(parts))
        workers = self._workers.size
        rounds = max(1.0, self._chunk_seconds * len(parts) / workers // least)
        return chunks.shares(parts, int(min(workers * rounds, len(parts))))

    def _apply(self, leased: _Leased) -> ParamVersion:
        """Let the server take the step, and lease the shares of the next one meanwhile.

        The server does its calls in the order in which they were sent, so the arrival of the gradients is not waited
        for. Where one was lost, there is no step, and everything is done again that came of it.
        """
        step, call = leased.step, self._backend.call
        held = leased.batch.held
        while True:
            sent = now()
            shares, sums = [share for share, _ in held], [payload for _, payload in held]
            published, self._vector = call(self._server, "apply", step, shares, *sums, parts=2)
            if self._leases_ahead(step + 1):
                self._ahead = self._lease(step + 1, ahead=True)
            try:
                header: ParamVersion = self._backend.fetch(published)
            except (ChunksMissing, WorkerLost):
                if self._ahead is not None:
                    self._ahead.batch.abandon()
                self._ahead, held = None, []
                if not leased.batch.settle():
                    raise
            else:
                self._reports.applied(header, sent=sent)
                return header

    def _leases_ahead(self, step: int) -> bool:
        """Whether the chunks of ``step`` may be leased while the step before it is applied."""
        more = step < self.experiment.outer.iterations and not self._validation_is_due(step)
        return more and self._backend.overlaps and self._may_lease_ahead()

    def _after(self, step: int) -> bool:
        """Meta-validation and checkpoint where they are due; whether to stop early."""
        runtime, last = self.experiment.runtime, step == self.experiment.outer.iterations
        stop = False
        if self._validation_is_due(step):
            stop = self._validate(step)
            self._checkpoint()
        elif step % runtime.checkpoint_every == 0 or last:
            self._checkpoint()
        self._consistent = True
        return stop

    def _validation_is_due(self, step: int) -> bool:
        every = self.experiment.evaluation.every
        if not every or "meta_validation" not in self.experiment.tasks.splits:
            return False
        return step % every == 0 or step == self.experiment.outer.iterations

    def _validate(self, step: int) -> bool:
        settings = self.experiment.evaluation
        averages = self.experiment.outer.averages
        vector = self._backend.call(self._server, "learned") if averages else self._vector
        report = self._evaluate("meta_validation", settings.validation_tasks, settings.seed, vector, step)
        values = {f"validation/{name}": value for name, value in report.summary().items()}
        self._log.metrics(step, values)
        name, sign = ("accuracy", 1.0) if "accuracy" in report.metrics else ("loss", -1.0)
        score, best = sign * report.mean(name), self._record["best"]
        if best is None or score > best["score"]:
            measured = {"tasks": settings.validation_tasks, "seed": settings.seed}
            self._record["best"] = {"step": step, "score": score, "metric": name, "since": 0, **measured}
        else:
            self._record["best"] = {**best, "since": best["since"] + 1}
        self._watch(Event("validation", step, text=f"{name} {report.text(name)}", values=values))
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        """Return whether the run stops early; the checkpoint records it, so that a stopped run stays stopped."""
        patience, best = self.experiment.evaluation.patience, self._record["best"]
        return patience is not None and best is not None and best["since"] >= patience

    def _evaluate(self, split: Split, tasks: int, seed: int, vector: Any, version: int) -> EvaluationReport:
        size = self.experiment.runtime.tasks_per_call
        return evaluate(
            self._backend, self._workers, vector, version=version, split=split, tasks=tasks, seed=seed, chunk_size=size
        )

    # -- state -----------------------------------------------------------------------------------------------------

    def _load(self, frozen: str | None) -> Checkpoint:
        """The newest whole checkpoint, if this experiment may go on from it; the rest of the run is as it began."""
        checkpoint = self._newest()
        self.experiment = as_begun(self.experiment, checkpoint.record["identity"])
        require_same_run(self.experiment, checkpoint, frozen, self.layout)
        self._store.best(checkpoint)  # the end of the run needs it; better refused now than after the last step
        # The engine was probed when the run began, perhaps with another version of torch: keep it, for equal bits.
        self.learner = self.learner.with_config(vectorise=checkpoint.record["engine"])
        # So is the gradient that gradient="auto" chose by the memory of the machine that it began on.
        if checkpoint.record.get("gradient") is not None:  # older versions did not record it, and had no "auto"
            self.learner = self.learner.with_config(gradient=checkpoint.record["gradient"])
        return checkpoint

    def _newest(self) -> Checkpoint:
        found = self._store.newest()
        if found.damaged:
            self._say(found.checkpoint.step, found.notice())
        return found.checkpoint

    def _warn_of_kernel(self, checkpoint: Checkpoint) -> None:
        kernel = checkpoint.record["kernel"]
        if kernel not in (None, self._record["kernel"]):
            text = f"Started on [{kernel}], going on with [{self._record['kernel']}]: as good, with other last bits."
            self._say(checkpoint.step, text)

    def _spawn_server(self, checkpoint: Checkpoint) -> None:
        """Start a parameter server that holds ``checkpoint``."""
        e = self.experiment
        resources = Resources(cpus=0, gpus=0, timeout=e.runtime.startup_timeout)
        state = {"version": checkpoint.step, "optimizer": dict(checkpoint.optimizer)}
        self._server = self._backend.spawn(ParameterServer, SERVER, resources, e.outer, checkpoint.vector, **state)
        self._vector = self._backend.put(checkpoint.vector)
        self._consistent = True

    def _recover(self, step: int, error: ServerLost) -> int:
        """A new server from the newest whole checkpoint; the steps since then are done again, with the same bits."""
        self._server_losses += 1
        if self._server_losses > self.experiment.runtime.max_losses:
            text = f"The parameter server was lost {self._server_losses} times: {error.message}"
            raise FailureBudgetExceeded(text, raw=error.raw)
        self._backend.kill(self._server)  # it may only be out of reach
        self._ahead = None
        checkpoint = self._newest()
        self._record["best"] = checkpoint.record["best"]
        self._say(step, f"{error.message} Doing steps {checkpoint.step} to {step} again.")
        self._log.truncate(checkpoint.step)
        self._warn_of_kernel(checkpoint)
        self._spawn_server(checkpoint)
        return checkpoint.step

    def _checkpoint(self) -> None:
        version, vector, optimizer = self._backend.fetch(self._backend.call(self._server, "state"))
        self._store.save(Checkpoint(version, vector, self.layout, optimizer, self._record))

    def _begin(self, phase: str) -> None:
        self._watch(Event("phase", 0, text=phase))

    def _say(self, step: int, text: str) -> None:
        self._watch(Event("message", step, text=text))


def _require_runnable(experiment: Experiment) -> None:
    """Check tasks, data and settings; the whole dataset is read, the first time in a process."""
    tasks, evaluation = experiment.tasks, experiment.evaluation
    if experiment.outer.optimizer == "schedulefree":
        require_schedulefree()
    tasks.check()
    require_tasks(tasks, "meta_validation", "evaluation.validation_tasks", evaluation.validation_tasks)
    require_tasks(tasks, "meta_test", "evaluation.test_tasks", evaluation.test_tasks)
    require_equal_ways(experiment.learner, tasks.spec_of("meta_train"), tasks.spec)
