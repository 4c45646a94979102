"""``bench peers``: MAML's step in learn2learn, higher, TorchOpt, plain ``vmap`` and distmeta, the same work in turn."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distmeta.bench import cases
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.peer_process import Peer
from distmeta.bench.record import Row
from distmeta.bench.statistics import interval_text, paired_ratio
from distmeta.bench.stepping import SteppedRun, Steps
from distmeta.bench.wording import counted
from distmeta.config import did_you_mean
from distmeta.data.picture_workers import cpus
from distmeta.errors import ConfigError, RuntimeFailure, listed
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.settings import Outer, Runtime
from distmeta.learners.maml import MAML
from distmeta.learners.param_layout import ParamLayout
from distmeta.models.backbones import conv4
from distmeta.run.place import Place
from distmeta.runtime.backend import Backend, LocalBackend
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.seeding import rng
from distmeta.types import Chunk, FloatArray, TaskRef

INSTALL = {
    "learn2learn": (
        'PYTHON -m pip install "cython>=3" "setuptools<81" wheel && '
        "PYTHON -m pip download --no-deps --no-build-isolation learn2learn==0.2.0 && "
        "tar xf learn2learn-0.2.0.tar.gz && "
        "(cd learn2learn-0.2.0 && PYTHON setup.py build_ext bdist_wheel) && "
        "PYTHON -m pip install --no-deps learn2learn-0.2.0/dist/*.whl"
    ),
    "higher": "PYTHON -m pip install higher==0.2.1",
    "torchopt": "PYTHON -m pip install torchopt==0.7.3",
}
"""The command that installs each peer into the environment of an interpreter with torch."""

PLAIN = "vmap"
"""The peer that is no library: torch alone, in this interpreter."""

_BEST = (
    f"The column times best peer is relative to the fastest of {', '.join(INSTALL)}; plain vmap, torch alone, is not "
    "counted among the peers and has a column of its own, times vmap, where it is measured."
)

TOLERANCE = 1e-4
"""Relative difference of losses and of meta-gradients above which a peer's speed is not reported."""

_OMNIGLOT = {"width": 64, "pool": "stride", "inner_lr": 0.4, "tasks": 32, "chunk": "auto", "checked": 2}
_SIZES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, int]]] = {
    # Finn et al. 2017: as many queries as shots. Most papers after it have 15 queries per class.
    "omniglot": (_OMNIGLOT, {"shots": 1, "queries": 1}),
    "omniglot15": (_OMNIGLOT, {"shots": 1, "queries": 15}),
    "miniimagenet": (
        # Of 100 images and five steps a task keeps 1.4 GiB in float32: one at a time, beside the peers' own.
        {"width": 32, "pool": "max", "inner_lr": 0.01, "tasks": 4, "chunk": 1, "checked": 1},
        {"shots": 5, "queries": 15, "size": 84, "channels": 3},
    ),
}


def case_named(name: str) -> Experiment:
    """The experiment of a case.

    Args:
        name: ``omniglot`` (one query per class), ``omniglot15`` (15) or ``miniimagenet``, and how many inner steps.

    Raises:
        ConfigError: there is no such case.

    Example:
        >>> case_named("omniglot-5").learner.config.inner_steps
        5
    """
    found = re.fullmatch(r"([a-z]+\d*)-(\d+)", name)
    if found is None or found[1] not in _SIZES:
        known = [f"{one}-{steps}" for one in _SIZES for steps in (1, 5)]
        raise ConfigError(
            f"--cases: there is no case {name!r}; expected a size and a number of inner steps: {', '.join(known)} or "
            f"the like.{did_you_mean(name, known)}"
        )
    size, images = _SIZES[found[1]]
    return Experiment(
        learner=MAML(conv4(size["width"], pool=size["pool"]), inner_lr=size["inner_lr"], inner_steps=int(found[2])),
        tasks=cases.RandomImages(**images),
        outer=Outer(meta_batch_size=size["tasks"]),
        runtime=Runtime(chunk_size=size["chunk"]),
        name=name,
    )


@dataclass
class _Case:
    """One case: what distmeta trains, and what the peers are given."""

    name: str
    experiment: Experiment

    @property
    def tasks(self) -> int:
        return int(self.experiment.outer.meta_batch_size)

    def prepare(self, folder: Path) -> tuple[str, FloatArray, FloatArray]:
        """Write the file for the peers; returns its path, and the losses and mean gradient of the first tasks."""
        e = self.experiment
        learner = cases.ready(e)
        params = {name: p.detach() for name, p in learner.starting_params(rng(e.seed, "init")).items()}
        layout = ParamLayout.of(params)
        episodes = e.tasks.episodes([TaskRef("meta_train", 0, i) for i in range(self.tasks)], e.seed)
        size, _ = _SIZES[self.name.partition("-")[0]]
        shapes = {"input_shape": list(e.tasks.spec.input_shape), "outputs": e.tasks.spec.outputs}
        path = folder / f"{self.name}.pt"
        torch.save(
            {
                "network": {"width": size["width"], "pool": size["pool"], **shapes},
                "theta": list(params.values()),
                **{name: getattr(episodes, name) for name in ("support_x", "support_y", "query_x", "query_y")},
                **{name: getattr(learner.config, name) for name in ("inner_lr", "inner_steps")},
                "outer_lr": e.outer.lr,
            },
            path,
        )
        exact = {name: p.double() for name, p in params.items()}
        setup = WorkerSetup(
            learner.with_model(copy.deepcopy(learner.model).double()), e.tasks, ParamLayout.of(exact), e.seed, 1
        )
        first = Chunk(0, "meta_train", 0, 0, self.checked)
        with contextlib.closing(LocalBackend()):  # puts back the settings of this process that a worker changes
            result, gradient = Worker("bench", setup).train_chunk(first, 0, layout.flatten(params).astype(np.float64))
        return str(path), result.metrics["loss"], gradient / self.checked

    @property
    def checked(self) -> int:
        return min(int(_SIZES[self.name.partition("-")[0]][0]["checked"]), self.tasks)


class Peers(Benchmark):
    """Training steps of MAML: gradients of a meta-batch and Adam, in distmeta with sampling as well.

    Args:
        names: of cases, see :func:`case_named`.
        overrides: settings by dotted key, for every case.
        peers: which of them.
        python: the interpreter of an environment with the libraries; this one when left out.
        threads: of a peer, and at most as many workers of distmeta; all cores when left out.
        device: ``"cpu"`` or ``"cuda"``.
        address: a running Ray cluster; one of this machine is started when left out.

    Raises:
        ConfigError: there is no such case, peer, device or number of cores.
        DistmetaError: an experiment cannot run.
    """

    kind, unit, better = "peers", "tasks/s", "higher"
    seconds = 120.0

    def __init__(
        self,
        names: Sequence[str] = ("omniglot-1", "omniglot-5"),
        *,
        overrides: Mapping[str, Any] | None = None,
        peers: Sequence[str] = (*INSTALL, PLAIN),
        python: Path | None = None,
        threads: int | None = None,
        device: str = "cpu",
        address: str | None = None,
    ) -> None:
        super().__init__()
        unknown = [name for name in peers if name not in (*INSTALL, PLAIN)]
        if unknown:
            raise ConfigError(
                f"--peers: there is no peer {unknown[0]!r}; expected some of {', '.join((*INSTALL, PLAIN))}."
                f"{did_you_mean(unknown[0], (*INSTALL, PLAIN))}"
            )
        there = cpus()
        if (threads or 1) > there:
            raise ConfigError(
                f"--threads {threads}: this process may use {counted(there, 'core')}; expected at most as many."
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch finds no CUDA device. Leave --device out, or install its driver.")
        self.device, self._threads, self._address = torch.device(device), threads or there, address
        self._python, self._peers = python or Path(sys.executable), tuple(peers)
        where: dict[str, Any] = {"runtime.threads": 1, "runtime.gpus_per_worker": 1 if device == "cuda" else 0}
        self._cases = [
            _Case(name, case_named(name).with_overrides({**where, **(overrides or {})}))
            for name in dict.fromkeys(names)
        ]
        self._workers = 1 if device == "cuda" else self._threads
        self.case = {
            f"{one.name}.{key}": value
            for one in self._cases
            for key, value in cases.case_of(one.experiment, "learner", "tasks", "outer", "runtime").items()
        } | {"device": device, "threads": self._threads}
        cores = counted(self._threads, "thread") if device == "cpu" else "one GPU"
        self.title = f"training steps of MAML, {listed([one.name for one in self._cases])}: peers on {cores}"
        self.fixed = ("runtime.workers",)
        self._notes: list[str] = []
        self._best: tuple[str, ...] = ()

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="distmeta-bench-")))
            peers = self._start(stack, tell)
            variants: list[tuple[dict[str, str], Callable[[], float]]] = []
            for case in self._cases:
                tell(f"comparing gradients, and a first step of each: {case.name}")
                file, losses, gradient = case.prepare(folder)
                for peer in peers:
                    at = {"case": case.name, "system": peer.name}
                    try:
                        if self._agrees(peer, case, file, losses, gradient, folder / "gradient.pt"):
                            variants.append((at, self._timed(peer, case)))
                    except RuntimeFailure as error:  # its own, or ended for want of memory
                        self._notes.append(f"{peer.name} is not timed on {case.name}: {error.message}")
            for label, backend, workers in self._backends(stack, tell):
                for case in self._cases:
                    tell(f"starting {label}: {case.name}")
                    sized = case.experiment.with_overrides({"runtime.workers": workers})
                    run = stack.enter_context(SteppedRun(sized, backend, folder / backend.name / case.name))
                    variants.append(({"case": case.name, "system": label}, _TasksPerSecond(Steps(run), case.tasks)))
            variants.sort(key=lambda one: [each.name for each in self._cases].index(one[0]["case"]))
            tell(f"{counted(len(variants), 'variant')} in turn")
            found = self.beside_limits(budget, [measure for _, measure in variants], (1,))
        rows = [Row(at, values) for (at, _), values in zip(variants, found, strict=True)]
        return [found for case in self._cases for found in self._with_ratios(case, rows)]

    def _start(self, stack: ExitStack, tell: Tell) -> list[Peer]:
        """The peers that can be used."""
        found = []
        for name in self._peers:
            tell(f"starting {name}")
            python = Path(sys.executable) if name == PLAIN else self._python
            peer = stack.enter_context(Peer(name, python))
            if peer.absent:
                command = INSTALL.get(name, "").replace("PYTHON", str(python))
                self._notes.append(f"{name} is absent ({peer.absent}) and not measured. To install it: {command}")
            else:
                found.append(peer)
        told = [f"{peer.name} {peer.version} (torch {peer.torch})" for peer in found if peer.name != PLAIN]
        if told:
            self._notes.append(f"Peers: {', '.join(told)}.")
        return found

    def _agrees(
        self, peer: Peer, case: _Case, file: str, losses: FloatArray, gradient: FloatArray, place: Path
    ) -> bool:
        """Return whether the peer computes what distmeta does; note where it does not."""
        peer.ask("load", case=case.name, file=file, device=self.device.type)
        theirs = np.asarray(peer.ask("check", case=case.name, tasks=case.checked, file=str(place))["losses"])
        of_losses = float(np.abs(theirs - losses).max() / np.abs(losses).max())
        other = torch.load(place, weights_only=True).numpy()
        of_gradient = float(np.linalg.norm(other - gradient) / np.linalg.norm(gradient))
        if max(of_losses, of_gradient) <= TOLERANCE:  # not so where one is NaN
            return True
        self._notes.append(
            f"{peer.name} is not timed on {case.name}, for it computes something else: losses differ by "
            f"{of_losses:.1e} and the meta-gradient by {of_gradient:.1e} of their size; expected at most {TOLERANCE:g}."
        )
        return False

    def _timed(self, peer: Peer, case: _Case) -> Callable[[], float]:
        given = {"case": case.name, "threads": self._threads}
        # The first step is slower: a repetition of a small case has some steps too few, which does no harm.
        calls = max(1, round(0.1 / peer.ask("measure", calls=1, **given)["seconds"]))

        def measure() -> float:
            return float(case.tasks * calls / peer.ask("measure", calls=calls, **given)["seconds"])

        return measure

    def _backends(self, stack: ExitStack, tell: Tell) -> list[tuple[str, Backend, int]]:
        """The places where distmeta trains, by the name of their rows, with the number of workers."""
        local = LocalBackend()
        stack.callback(local.close)
        found: list[tuple[str, Backend, int]] = [
            ("distmeta, one GPU" if self.device.type == "cuda" else "distmeta, 1 thread", local, 1)
        ]
        if not _ray_is_installed():
            self._notes.append("ray is not installed: distmeta is measured in this process alone.")
            return found
        tell("starting Ray")
        runtime = self._cases[0].experiment.runtime.replace(workers=self._workers * len(self._cases))
        ray = stack.enter_context(Place(backend="ray", address=self._address).open(None, runtime))
        return [*found, (f"distmeta train, {counted(self._workers, 'worker')}", ray, self._workers)]

    def _with_ratios(self, case: _Case, rows: Sequence[Row]) -> list[Row]:
        """Add to the rows of a case their ratios to the best library and to plain ``vmap``; note that of the last."""
        here = [row for row in rows if row.at["case"] == case.name]
        libraries = [row for row in here if row.at["system"] in INSTALL]
        against: dict[str, Row] = {}
        if libraries:
            against["times_best_peer"] = max(libraries, key=lambda row: row.median)
            self._best = (_BEST,)
        plain = next((row for row in here if row.at["system"] == PLAIN), None)
        if plain is not None:
            against["times_vmap"] = plain
        for other in against.values():
            ratio, low, high = paired_ratio(here[-1].repetitions, other.repetitions)
            self._notes.append(
                f"{case.name}: {here[-1].at['system']} is {ratio:.2f} times as fast as {other.at['system']} ("
                f"{interval_text(f'{low:.2f}', f'{high:.2f}', len(other.repetitions))})."
            )
        return [
            replace(
                row,
                figures={key: paired_ratio(row.repetitions, one.repetitions)[0] for key, one in against.items()},
            )
            for row in here
        ]

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        on_gpu = self.device.type == "cuda"
        compared = listed(f"{one.checked} of {one.name}" for one in self._cases)
        return (
            f"Losses and meta-gradients of the first tasks ({compared}) were compared with distmeta's before, in "
            f"float64: they are at most {TOLERANCE:g} of their size apart.",
            "A step of a peer is the loop of its own example with Adam, its tasks in memory; one of distmeta also "
            "draws them. Every network has the same weights, and batch norm with the statistics of the batch.",
            *(
                ("Peers have torch's defaults, TF32 in convolutions among them; distmeta computes in float32.",)
                * on_gpu
            ),
            *self._best,
            *self._notes,
        )


def _ray_is_installed() -> bool:
    return importlib.util.find_spec("ray") is not None


@dataclass
class _TasksPerSecond:
    """A variant in tasks/s, from one in ms per step."""

    steps: Steps
    tasks: int

    def __call__(self) -> float:
        return self.tasks * 1e3 / self.steps()
