"""Fresh Python processes that draw: a start of seconds once, then a fork of milliseconds per play.

A fork has everything of its own (loaded job, environment, generators, patched clock), so no play sees another. What a
fork cannot change is how strings hash: for that there is a second interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distmeta import models, tasks
from distmeta.auditing.play import Play, play
from distmeta.errors import RuntimeFailure

HASH_SEEDS = {"first": "0", "second": "4711"}
"""``PYTHONHASHSEED`` of the two interpreters."""


class Interpreters:
    """Two fresh interpreters, a context; several audits can share them.

    Raises:
        RuntimeFailure: the platform cannot fork.
    """

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise RuntimeFailure(
                "An audit forks processes, which this platform cannot. Run it on Linux or macOS, or in a container."
            )
        self.environment = dict(os.environ)  # of the interpreters, but for what the audit itself sets
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self._log = self._files.enter_context(tempfile.TemporaryFile("w+"))
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        for name, seed in HASH_SEEDS.items():
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-c", "from distmeta.auditing.interpreter import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**self.environment, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()  # the end of its input ends it
            if kind is not None:
                process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._files.close()

    def play(self, plays: Iterable[tuple[str, Play]]) -> list[dict[str, Any]]:
        """Run plays, both interpreters at a time.

        Args:
            plays: each with the name of its interpreter, ``"first"`` or ``"second"``.

        Returns:
            The result of each, in order.

        Raises:
            RuntimeFailure: an interpreter died.
        """
        asked = list(plays)
        for name, one in asked:
            self._write(name, one)
        return [self._read(name) for name, _ in asked]

    def _write(self, name: str, one: Play) -> None:
        stdin = self._processes[name].stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(asdict(one)) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._died(name) from None

    def _read(self, name: str) -> dict[str, Any]:
        stdout = self._processes[name].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise self._died(name)
        result: dict[str, Any] = json.loads(line)
        return result

    def _died(self, name: str) -> RuntimeFailure:
        self._log.seek(0)
        text = self._log.read()
        last = text.strip().splitlines()[-1:] or ["no output"]
        return RuntimeFailure(
            f"A Python process of the audit died with code {self._processes[name].wait()}: {last[0]}. Look at what the "
            "job does when it is imported.",
            raw=text,
        )


def serve() -> None:
    """Answer every play that comes on standard input, each in a fork, until the input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints is no answer
    _import_package()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _answer(answers, json.loads(line))
        status = os.waitpid(child, 0)[1]
        if status:
            message = f"the process died with {os.waitstatus_to_exitcode(status)}"
            _write_line(answers, {"digests": {}, "again": {}, "error": {"message": message, "place": None}})


def _import_package() -> None:
    """Import what job files use of distmeta, once for all forks."""
    from distmeta.learners import find_learners

    find_learners()
    for room in (tasks, models):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)


def _answer(answers: int, given: dict[str, Any]) -> None:
    lists = {name: tuple(given[name]) for name in ("varied", "trace", "user")}
    try:
        _write_line(answers, play(Play(**given | lists)))
        sys.stdout.flush()
        os._exit(0)
    except BaseException:  # noqa: BLE001 (a fork must not go on as if it were its parent)
        import traceback

        traceback.print_exc()
        os._exit(1)


def _write_line(answers: int, result: dict[str, Any]) -> None:
    data = (json.dumps(result) + "\n").encode()
    while data:
        data = data[os.write(answers, data) :]
