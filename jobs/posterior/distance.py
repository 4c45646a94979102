"""How far a network is from the exact posterior while it trains, as a table and a picture: ``distance.py RUN``.

RUN is a run of an in-context learner on ``GaussianProcesses``, such as ``distmeta train jobs/pfn_gp.py`` makes, whose
checkpoints were kept (``runtime.keep_checkpoints``). Of each checkpoint, over the queries of 320 meta-test tasks:

- mean: the root of the mean square of (predicted mean - exact mean) / exact standard deviation;
- scale: the mean of |log(predicted standard deviation / exact standard deviation)|.

Both are 0 for the posterior itself. ``RUN/posterior_distance.png`` has the curves.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from distmeta import GaussianProcesses, InContext
from distmeta.figures.style import BLUE, INK, RED, dress, new_figure, save
from distmeta.run.finished_run import FinishedRun
from distmeta.types import Params, TaskRef

TASKS = 320

Row = tuple[int, float, float]
"""Outer step, distance of the means, distance of the scales."""


def distances(run_dir: Path | str, tasks: int = TASKS) -> list[Row]:
    """The rows of all checkpoints that a run kept, that of the untrained network first.

    Args:
        run_dir: of the run.
        tasks: meta-test tasks.

    Raises:
        SystemExit: it is a run of another kind.
    """
    run = FinishedRun.open(run_dir)
    experiment, layout, store = run.job.experiment, run.last.layout, run.directory.checkpoints()
    drawn, seed = experiment.tasks, experiment.evaluation.seed
    if not isinstance(drawn, GaussianProcesses) or not isinstance(experiment.learner, InContext):
        raise SystemExit(f"{run_dir} is no run of InContext on GaussianProcesses; expected one. Give another run.")
    learner = experiment.learner.bind(drawn.spec, experiment.seed).in_main_memory().for_evaluation()
    groups = [
        (episodes := drawn.episodes(refs, seed), *drawn.posterior(refs, seed, episodes))
        for refs in drawn.together([TaskRef("meta_test", 0, index) for index in range(tasks)], seed)
    ]

    def row(step: int, params: Params) -> Row:
        means, scales = [], []
        for episodes, mean, scale in groups:
            with torch.no_grad():
                found = learner.chunk_predictive(params, {}, episodes)
            means.append(((found.mean - mean) / scale).square().flatten())
            scales.append((found.scale / scale).log().abs().flatten())
        return step, float(torch.cat(means).mean().sqrt()), float(torch.cat(scales).mean())

    device = torch.device("cpu")
    return [row(step, layout.unflatten(store.load(step).learned, device)) for step in store.steps()]


def draw(rows: list[Row], path: Path, title: str) -> Path:
    """Write the picture of :func:`distances` to ``path``."""
    figure = new_figure(5.6, 3.6, title)
    axes = figure.add_subplot()
    steps = [step for step, _, _ in rows]
    axes.plot(steps, [mean for _, mean, _ in rows], color=BLUE, marker="o", markersize=3, label="mean")
    axes.plot(steps, [scale for _, _, scale in rows], color=RED, marker="o", markersize=3, label="scale")
    dress(axes, "outer step", "distance from the exact posterior")
    axes.set_yscale("log")
    axes.legend(frameon=False, labelcolor=INK)
    return save(figure, path)


def main() -> None:
    """Print the distances as a table in Markdown, and write the picture."""
    run_dir = Path(sys.argv[1])
    rows = distances(run_dir)
    print("| outer step | mean | scale |\n|---|---|---|")
    for step, mean, scale in rows:
        print(f"| {step:,} | {mean:.3f} | {scale:.3f} |")
    print(draw(rows, run_dir / "posterior_distance.png", f"{run_dir.name}: distance from the exact posterior"))


if __name__ == "__main__":
    main()
