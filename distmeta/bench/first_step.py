"""A run of one step: ``python -m distmeta.bench.first_step local|ray [ADDRESS]``, timed from outside."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal


def main(backend: Literal["local", "ray"], address: str | None = None) -> None:
    """Train a sinusoid learner, show when its first step is done, and end.

    Args:
        backend: where.
        address: a running Ray cluster; one of this machine is started when left out.
    """
    from distmeta.bench.cases import sinusoids
    from distmeta.bench.fresh import READY
    from distmeta.run.place import Place
    from distmeta.run.training import meta_train
    from distmeta.runtime.events import Event

    def watch(event: Event) -> None:
        if event.kind == "step":
            print(READY, flush=True)

    settings = {"outer.iterations": 1, "runtime.workers": 1, "evaluation.every": 0, "evaluation.test_tasks": 2}
    with tempfile.TemporaryDirectory(prefix="distmeta-bench-") as folder:
        place = Place(backend=backend, address=address, watch=watch)
        meta_train(sinusoids().with_overrides(settings), run_dir=Path(folder) / "run", place=place)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
