"""``bench startup``: seconds until something happens, each time in a fresh process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from distmeta.bench import fresh
from distmeta.bench.benchmark import Benchmark, Budget, Tell
from distmeta.bench.record import Row


class Startup(Benchmark):
    """The help page, the import, and the first step of a local run and of a run on Ray.

    Args:
        address: a running Ray cluster; each run starts one of its own when left out.
    """

    kind, unit, better = "startup", "s", "lower"
    seconds = 60.0

    def __init__(self, *, address: str | None = None) -> None:
        super().__init__()
        first = ("-m", "distmeta.bench.first_step")
        on_ray = (*first, "ray", *((address,) if address is not None else ()))
        self._programs: Mapping[str, Sequence[str]] = {
            "distmeta --help": ("-m", "distmeta", "--help"),
            "import distmeta": ("-c", "import distmeta"),
            "first step, local": (*first, "local"),
            "first step, ray": on_ray,
        }
        self.case = {"cluster": "its own" if address is None else "given"}
        self.title = "seconds from the start of a fresh Python process"

    def rows(self, budget: Budget, tell: Tell) -> Sequence[Row]:
        """See :meth:`Benchmark.rows`."""
        # Once before: files that were never read come from the disk, and are compiled to bytecode.
        tell("warming up: the files of all imports")
        fresh.run(self._programs["first step, local"])
        tell("processes in turn")
        variants = [partial(_seconds, program) for program in self._programs.values()]
        found = self.beside_limits(budget, variants, (1,))
        return [Row({"until": name}, values) for name, values in zip(self._programs, found, strict=True)]

    def notes(self) -> Sequence[str]:
        """See :meth:`Benchmark.notes`."""
        return ("Runs are MAML on sinusoids, one worker, without MLflow; files are in the page cache.",)


def _seconds(program: Sequence[str]) -> float:
    return fresh.run(program)[0]
