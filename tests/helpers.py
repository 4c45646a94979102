"""What several tests share: a small experiment, its job file, and one command line run in this process."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import distmeta
from distmeta import cli

SINES = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=distmeta.Sinusoids(shots=4, queries=4),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
    name="sines",
)
"""
"""A job file: two steps of MAML on sines, in a moment."""


def sines(overrides: Mapping[str, Any] | None = None, *, tasks: Any = None) -> distmeta.Experiment:
    """The experiment of :data:`SINES`.

    Args:
        overrides: settings by dotted key, as on the command line.
        tasks: a task distribution in place of the sines.
    """
    namespace: dict[str, Any] = {}
    exec(SINES, namespace)
    experiment = namespace["experiment"]
    return (experiment if tasks is None else experiment.replace(tasks=tasks)).with_overrides(overrides or {})


@dataclass(frozen=True)
class Done:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_command(*words: object, folder: Path | str = ".") -> Done:
    """Run one command line of distmeta in this process; what it changes in the process is undone.

    Args:
        words: the command line without the program's name.
        folder: where it is run.
    """
    handler = signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "argv", ["distmeta", *map(str, words)])
            for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
                patch.delenv(name, raising=False)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
                cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Done(int(end.value.code or 0), out.getvalue(), err.getvalue())


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback interface on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
