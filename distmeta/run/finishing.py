"""The end of a run: the meta-test report, pictures, ``report.html``, the best parameters in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distmeta.experiment.experiment import Experiment
from distmeta.figures import learner_pictures, run_curves
from distmeta.intervals import EvaluationReport
from distmeta.learners.functional import evaluating
from distmeta.learners.pictures import Fit, Picture, Reliability
from distmeta.run.directory import RunDirectory
from distmeta.run.place import Place
from distmeta.run.reporting import report_facts, write_report
from distmeta.run.uploaded import BEST
from distmeta.runtime.driver import Driver, Trained
from distmeta.tracking.tracker import Tracker
from distmeta.types import TaskRef


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Args:
        run_dir: its folder.
        step: outer steps done.
        params_sha256: digest of the final meta-parameters.
        best_step: the step with the best meta-validation (the last step without validation).
        test: meta-test report of the parameters of that step.
        curves: PNG of the learning curves; ``None`` after no step.
        pictures: PNGs of how the learner learns.
        how_to_open: the command that opens MLflow's record; empty without MLflow.
        report: the report, an HTML file; ``None`` where it could not be written.
        profile: the time line of some steps, a Chrome trace; ``None`` where none was asked for.
        profiled: which steps these are, in words.
        spent: five lines, where the time of those steps went.
    """

    run_dir: Path
    step: int
    params_sha256: str
    best_step: int
    test: EvaluationReport | None
    curves: Path | None
    pictures: tuple[Path, ...] = ()
    how_to_open: str = ""
    report: Path | None = None
    profile: Path | None = None
    profiled: str = ""
    spent: tuple[str, ...] = ()

    def __repr__(self) -> str:
        test = {name: self.test.text(name) for name in self.test.names} if self.test else None
        return f"RunResult({str(self.run_dir)!r}, step={self.step}, best_step={self.best_step}, test={test})"


def finish(
    directory: RunDirectory, experiment: Experiment, driver: Driver, trained: Trained, tracker: Tracker, place: Place
) -> RunResult:
    """Write and record what a run leaves behind.

    Args:
        directory: of the run.
        experiment: the experiment.
        driver: has trained it.
        trained: the end of its loop.
        tracker: records the files in MLflow.
        place: receives a message where a picture cannot be drawn.

    Raises:
        OSError: the disk refuses.
    """
    store = directory.checkpoints()
    final, test = store.load(), trained.test
    if test is not None:
        if (directory.record.step, directory.record.test) != (trained.step, test.summary()):  # else it is recorded
            tracker.metrics(trained.step, {f"test/{name}": value for name, value in test.summary().items()})
        tracker.artifact(directory.keep_result({"best_step": trained.best.step, **test.to_dict()}))
    curves = None
    if trained.step:
        curves = run_curves.plot_curves(directory.metrics(), directory.picture(), title=experiment.name)
        tracker.artifact(curves)
    drawn: list[Path] = []
    shown: dict[str, Picture] = {}
    sources: tuple[tuple[str, Callable[[Experiment, Driver, Trained], Mapping[str, Picture]]], ...] = (
        ("The fit", _fit),
        (f"{type(driver.learner).__name__}.pictures()", _pictures),
        ("The reliability picture", _reliability),
    )
    for name, make in sources:
        try:
            for key, picture in make(experiment, driver, trained).items():
                titled = replace(picture, title=f"{experiment.name}: {picture.title}")
                drawn.append(learner_pictures.draw(titled, directory.picture(key)))
                shown[key] = picture
        except Exception as error:  # noqa: BLE001 (a user's tasks and pictures() may raise anything; the run is done)
            place.say(f"{name} failed: {type(error).__name__}: {error}", trained.step)
    for path in (*directory.sources(), *drawn):
        tracker.artifact(path)
    for path in sorted(store.path(trained.best.step).iterdir()):  # a run that was resumed has one best, the last
        tracker.artifact(path, BEST)
    ended: dict[str, Any] = {
        "status": "finished",
        "step": trained.step,
        "stopped_early": trained.stopped_early,
        "test": test.summary() if test else None,
    }
    report = _report(directory, experiment, driver, trained, shown, ended, place)
    if report is not None:
        tracker.artifact(report)
    directory.update(**ended)
    for path in directory.uploads():  # now that the record is final
        tracker.artifact(path)
    return RunResult(
        directory.path,
        trained.step,
        final.params_sha256,
        trained.best.step,
        test,
        curves,
        tuple(drawn),
        report=report,
    )


def _report(
    directory: RunDirectory,
    experiment: Experiment,
    driver: Driver,
    trained: Trained,
    shown: Mapping[str, Picture],
    ended: Mapping[str, Any],
    place: Place,
) -> Path | None:
    """Write the report, before the run is recorded as finished; ``None``, with a message, where that fails."""
    directory.page.unlink(missing_ok=True)  # that of an earlier end of the run has other numbers
    try:
        directory.keep_report_facts(report_facts(directory, experiment, driver.learner, trained, shown))
        return write_report(directory, replace(directory.record, **ended))
    except Exception as error:  # noqa: BLE001 (a user's tasks and model may raise anything; the run is done)
        place.say(f"The report failed: {type(error).__name__}: {error}", trained.step)
        return None


def _fit(experiment: Experiment, driver: Driver, trained: Trained) -> dict[str, Picture]:
    """``fit``: the first meta-test task of a regression of one number on one number; nothing for other tasks."""
    tasks, spec, best = experiment.tasks, experiment.tasks.spec, trained.best
    if spec.kind != "regression" or spec.input_shape != (1,) or spec.outputs != 1 or "meta_test" not in tasks.splits:
        return {}
    if "queries" in type(tasks.config).model_fields:
        tasks = tasks.with_config(queries=400)  # drawn after the support set, which stays as it is
    episode = tasks.episode(TaskRef("meta_test", 0, 0), experiment.evaluation.seed)
    order = episode.query_x[:, 0].argsort()
    x, y = episode.query_x[order], episode.query_y[order]
    params, dtype = best.layout.unflatten(best.learned), best.layout.torch_dtype
    fast = driver.learner.adapt(episode.support_x.to(dtype), episode.support_y.to(dtype), params=params)
    points, shown = len(episode.support_x), (episode.support_x, episode.support_y, x, y)
    if driver.learner.model_kind == "set":
        found = fast.predict_distribution(x.to(dtype))
        ends = (found.quantile(p).detach() for p in (0.025, 0.975))
        return {"fit": Fit(f"one meta-test task, from {points} points", *shown, None, found.mean.detach(), *ends)}
    with evaluating(driver.learner.model):
        before = driver.learner.forward(params, x.to(dtype)).detach()
    title = f"one meta-test task, before and after {points} points"
    return {"fit": Fit(title, *shown, before, fast.logits(x.to(dtype)))}


def _reliability(experiment: Experiment, driver: Driver, trained: Trained) -> dict[str, Picture]:
    """``reliability`` of the meta-test; nothing where predictions have no probabilities."""
    test = trained.test
    if test is None or (c := test.calibration) is None:
        return {}
    name = next(iter(test.pooled))
    if c.kind == "confidence":
        title = f"confidence and accuracy on {test.tasks} {test.split} tasks"
        words = "confidence", "right", f"expected calibration error {test.text(name)}"
    else:
        title = f"coverage of intervals on {test.tasks} {test.split} tasks"
        words = "probability of the interval", "targets inside", f"mean distance from the level {test.text(name)}"
    return {"reliability": Reliability(title, c.expected, c.observed, c.half_width, c.count, *words)}


def _pictures(experiment: Experiment, driver: Driver, trained: Trained) -> dict[str, Picture]:
    """The learner's own pictures of the first held-out tasks."""
    settings, layout = experiment.evaluation, trained.best.layout
    split = experiment.tasks.splits[-1]
    if split == "meta_train":
        return {}
    refs = [TaskRef(split, 0, index) for index in range(min(100, settings.test_tasks))]
    refs = list(experiment.tasks.together(refs, settings.seed)[0])
    episodes = experiment.tasks.episodes(refs, settings.seed).to(torch.device("cpu"), layout.torch_dtype)
    with evaluating(driver.learner.model):  # a hook may leave the model in another mode
        return driver.learner.for_evaluation().pictures(layout.unflatten(trained.best.learned), episodes)
