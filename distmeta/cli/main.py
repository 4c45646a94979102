"""The command line. Every command ends in a result, or in one message that names the fix."""

from __future__ import annotations

import ast
import datetime
import inspect
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import distmeta
from distmeta import data, testing
from distmeta.config import did_you_mean, parse_overrides
from distmeta.data.sources.image_folder import build_image_folder
from distmeta.data.sources.omniglot import OmniglotSplit, build_omniglot
from distmeta.errors import ConfigError, DistmetaError
from distmeta.experiment import cards
from distmeta.experiment.job import Job, load_job
from distmeta.intervals import EvaluationReport
from distmeta.learners import find_learners
from distmeta.occurrences import INSTANCES
from distmeta.run import evaluating as judging
from distmeta.run import reproducing
from distmeta.run import training as api
from distmeta.runtime.events import Event
from distmeta.types import SPLITS, Split

app = typer.Typer(
    help="Distributed task-parallel meta-training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Build, inspect and verify datasets of Arrow shards.", no_args_is_help=True)
track_app = typer.Typer(help="Keep MLflow's record of a run complete.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(track_app, name="track")

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.py", help="Job file with `experiment = Experiment(...)`.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, as `distmeta train` printed it.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat for more.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; as many as fit when left out.")]
BackendName = Annotated[str, typer.Option("--backend", help="ray, or local: everything in this process.")]
Address = Annotated[
    str | None,
    typer.Option(help="Running Ray cluster: auto or HOST:PORT; one of this machine is started when left out."),
]
Data = Annotated[
    str | None, typer.Option("--data", help="Dataset folder or name, in place of the job's own and of DISTMETA_DATA.")
]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow; MLFLOW_TRACKING_URI or MLflow's default when left out.")]
Tracking = Annotated[bool, typer.Option("--tracking/--no-tracking", help="Record the run in MLflow.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]
Out = Annotated[Path, typer.Option(help="Folder for the dataset.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Distributed task-parallel meta-training."""
    if version:
        out.print(f"distmeta {distmeta.__version__}")
        raise typer.Exit


# -- data -----------------------------------------------------------------------------------------------------------


@data_app.command("build")
def data_build(
    source: Annotated[str, typer.Argument(metavar="omniglot|omniglot-runs|glyphs|image-folder", help="What to build.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the dataset; must not hold one yet.")],
    from_dir: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with the official zips (omniglot*) or the images (image-folder)."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="omniglot: vinyals or background-evaluation; image-folder: 64/16/20 or a JSON of class lists."
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(min=4, help="Height and width in pixels.")] = None,
    instances: Annotated[int, typer.Option(min=2, help="glyphs: images per class.")] = 20,
    channels: Annotated[int | None, typer.Option(help="image-folder: 1 for grey, 3 for colour.")] = None,
    as_json: Json = False,
) -> None:
    """Build a dataset: Omniglot (downloaded, or --from the zips), glyphs, or a folder of images."""
    with _bar(f"building {source}", quiet=as_json) as progress:
        if source == "omniglot":
            chosen: OmniglotSplit = "vinyals"
            if split == "background-evaluation":
                chosen = "background-evaluation"
            elif split not in (None, "vinyals"):
                raise ConfigError(f"--split {split} for omniglot; expected vinyals or background-evaluation.")
            build_omniglot(out_dir, source=from_dir, split=chosen, size=size or 28, progress=progress)
        elif source == "omniglot-runs":
            if from_dir is None:
                raise ConfigError(
                    "omniglot-runs needs --from DIR, the folder with all_runs.zip, images_background.zip and "
                    "images_evaluation.zip."
                )
            data.build_omniglot_runs(out_dir, source=from_dir, size=size or 28, progress=progress)
        elif source == "glyphs":
            data.build_glyphs(out_dir, size=size or 28, instances=instances, progress=progress)
        elif source == "image-folder":
            if from_dir is None:
                raise ConfigError(
                    "image-folder needs --from ROOT, the folder with ROOT/class/*.png or ROOT/split/class/*.png."
                )
            if channels not in (None, 1, 3):
                raise ConfigError(f"--channels {channels}; expected 1 or 3.")
            colours: Literal[1, 3] | None = None if channels is None else 1 if channels == 1 else 3
            build_image_folder(from_dir, out_dir, split=split, size=size, channels=colours, progress=progress)
        else:
            known = ("omniglot", "omniglot-runs", "glyphs", "image-folder")
            raise ConfigError(
                f"There is no source {source!r}.{did_you_mean(source, known)} Give one of {', '.join(known)}."
            )
    _show_dataset(out_dir, as_json)


@data_app.command("inspect")
def data_inspect(directory: Annotated[Path, typer.Argument(metavar="DIR")], as_json: Json = False) -> None:
    """Show what a dataset holds."""
    _show_dataset(directory, as_json)


@data_app.command("verify")
def data_verify(directory: Annotated[Path, typer.Argument(metavar="DIR")], as_json: Json = False) -> None:
    """Read every byte of a dataset and compare it with the manifest."""
    report = data.verify(directory)
    if as_json:
        _print_json(
            {
                "ok": True,
                "fingerprint": report.fingerprint,
                "classes": sum(report.classes.values()),
                "images": sum(report.images.values()),
                "shards": report.shards,
                "bytes": report.bytes,
            }
        )
        return
    out.print(
        f"OK: {sum(report.classes.values()):,} classes, {sum(report.images.values()):,} images, "
        f"{report.shards} shards, {report.bytes / 2**20:.1f} MiB; every checksum agrees."
    )
    out.print(f"fingerprint {report.fingerprint}")


# -- runs -----------------------------------------------------------------------------------------------------------


@app.command()
def train(
    job: JobFile,
    workers: Workers = None,
    backend: BackendName = "ray",
    address: Address = None,
    run_dir: Annotated[Path | None, typer.Option(help="New folder for the run; runs/NAME-TIME when left out.")] = None,
    settings: Set = None,
    data_dir: Data = None,
    tracking_uri: TrackingUri = None,
    tracking: Tracking = True,
    tracking_required: Annotated[bool, typer.Option(help="Fail when MLflow cannot be reached at the start.")] = False,
    as_json: Json = False,
) -> None:
    """Meta-train by a job file: progress, validation, final meta-test accuracy with its 95 % interval."""
    loaded = _load(job, settings, workers, data_dir)
    with _watching(as_json) as watch:
        place = api.Place(backend, address, tracking, tracking_uri, tracking_required, watch)  # type: ignore[arg-type]
        result = api.meta_train(loaded, run_dir=run_dir, place=place)
    _show_result(result, loaded, as_json)


@app.command()
def resume(
    run_dir: RunDir,
    workers: Workers = None,
    backend: BackendName = "ray",
    address: Address = None,
    settings: Set = None,
    data_dir: Data = None,
    tracking_uri: TrackingUri = None,
    tracking: Tracking = True,
    as_json: Json = False,
) -> None:
    """Go on from the last checkpoint, exactly; also with another number of workers or more iterations."""
    loaded = api.job_of(run_dir, _overrides(settings, workers, data_dir))
    outer = loaded.experiment.outer
    if outer.schedule != "constant" and any(assignment.startswith("outer.iterations") for assignment in settings or ()):
        err.print(
            f"note: outer.schedule={outer.schedule} runs over all {outer.iterations} iterations; the steps done so far "
            "had other learning rates than in a run of this length from the start."
        )
    with _watching(as_json) as watch:
        place = api.Place(backend, address, tracking, tracking_uri, False, watch)  # type: ignore[arg-type]
        result = api.meta_train(loaded, run_dir=run_dir, resume=True, place=place)
    _show_result(result, loaded, as_json)


@app.command()
def evaluate(
    run_dir: RunDir,
    tasks: Annotated[int | None, typer.Option(min=2, help="How many tasks; 600, or all where there are fewer.")] = None,
    split: Annotated[str, typer.Option(help="meta_train, meta_validation or meta_test.")] = "meta_test",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the tasks; runs with equal seeds get equal tasks.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Another run: the mean paired difference on the same tasks.")
    ] = None,
    shots: Annotated[
        str | None, typer.Option(metavar="1,2,5,10", help="A data-efficiency curve over numbers of shots.")
    ] = None,
    inner_steps: Annotated[
        str | None, typer.Option(metavar="0,1,3,5", help="A curve over numbers of inner steps.")
    ] = None,
    lengths: Annotated[str | None, typer.Option(metavar="10,20,50", help="A curve over lengths of sequences.")] = None,
    workers: Workers = None,
    backend: BackendName = "ray",
    address: Address = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Judge with another setting, such as tasks.ways=20."),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option("--data", help="Where the dataset is now, or another of the same shape: cross-domain."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge the best parameters of a run, distributed over the workers, always on the same tasks.

    What is found is kept in RUN_DIR/evaluations.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split {split}; expected one of {', '.join(SPLITS)}.")
    curves: dict[judging.Over, str | None] = {"shots": shots, "inner_steps": inner_steps, "lengths": lengths}
    modes = {"--against": against} | {f"--{over.replace('_', '-')}": text for over, text in curves.items()}
    given = [option for option, value in modes.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: expected one of them at a time. Give one command for each.")
    over = next((over for over, text in curves.items() if text is not None), None)
    values = _numbers(given[0], curves[over] or "", 0 if over == "inner_steps" else 1) if over else ()
    chosen: Split = split
    where = _overrides(None, None, data_dir).get("tasks.data")
    found: judging.Comparison | judging.Sweep | judging.Judgement
    with _watching(as_json) as watch:
        place = api.Place(backend, address, watch=watch)  # type: ignore[arg-type]
        by = judging.Yardstick(tasks, chosen, seed, where, _overrides(settings, workers, None), place)
        if against is not None:
            found = judging.compare(run_dir, against, by)
        elif over is not None:
            found = judging.sweep(run_dir, over, values, by)
        else:
            found = judging.judge(run_dir, by)
    if as_json:
        _print_json(found.to_dict())
    elif isinstance(found, judging.Comparison):
        _show_comparison(found)
    elif isinstance(found, judging.Sweep):
        _show_sweep(found)
    else:
        _show_report(found.report, found.title)


@app.command()
def reproduce(
    card: Annotated[
        str | None, typer.Argument(metavar="[CARD]", help="Such as maml/omniglot-5w1s; all are listed without.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the card, run nothing.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="A time box: as many iterations as fit, fixed before they begin.")
    ] = None,
    workers: Workers = None,
    backend: BackendName = "ray",
    address: Address = None,
    run_dir: Annotated[Path | None, typer.Option(help="New folder for the run; runs/NAME-TIME when left out.")] = None,
    settings: Set = None,
    data_dir: Data = None,
    tracking_uri: TrackingUri = None,
    tracking: Tracking = True,
    as_json: Json = False,
) -> None:
    """Train and judge by a protocol card: ours beside the published number. Without a card, list them."""
    if card is None:
        _show_cards(as_json)
        return
    if show:
        _show_card(cards.find(card), as_json)
        return
    chosen = cards.find(card)
    if not as_json:
        _show_card(chosen, False)
    overrides = _overrides(settings, workers, data_dir)
    if chosen.dataset is not None and "DISTMETA_DATA" in os.environ:
        overrides = _overrides(None, None, os.environ["DISTMETA_DATA"]) | overrides
    with _watching(as_json) as watch:
        place = api.Place(backend, address, tracking, tracking_uri, False, watch)  # type: ignore[arg-type]
        done = reproducing.reproduce(card, overrides=overrides, minutes=minutes, run_dir=run_dir, place=place)
    if as_json:
        _print_json(done.to_dict())
        return
    for line in ("", *done.lines(), f"run  {done.result.run_dir}"):
        out.print(line)


@app.command("inspect")
def inspect_command(run_dir: RunDir, as_json: Json = False) -> None:
    """Show what a run is and how far it got."""
    facts = api.inspect_run(run_dir)
    if as_json:
        _print_json(facts)
        return
    best, test = facts.pop("best"), facts.pop("test")
    del facts["experiment"]
    facts["step"] = f"{facts['step']} of {facts.pop('iterations')}"
    if best is not None:
        facts["best"] = f"step {best['step']}: meta-validation {best['metric']} {abs(best['score']):.4f}"
    for name in [name for name in test or {} if not name.endswith("_ci95")]:
        facts[f"test {name}"] = f"{test[name]:.4f} ± {test[name + '_ci95']:.4f}"
    for key, value in facts.items():
        if value is not None:
            out.print(f"{key:<{max(map(len, facts))}}  {value}")
    if facts["status"] in ("interrupted", "failed"):
        out.print(f"Go on with: distmeta resume {run_dir}")


@app.command()
def check(job: JobFile, settings: Set = None, data_dir: Data = None, as_json: Json = False) -> None:
    """Probe tasks, model and learner of a job before it costs anything; check its gradient by finite differences."""
    experiment = _load(job, settings, None, data_dir).experiment
    findings: dict[str, Any] = {"job": str(job), "learner": type(experiment.learner).__name__}
    say = err.print if as_json else out.print
    testing.check_task(experiment)
    say(f"ok  tasks: {type(experiment.tasks).__name__}, {experiment.tasks.spec}")
    slower = testing.check_model(experiment.learner, experiment)
    say(f"ok  model: shapes, batch norm policy '{experiment.learner.config.batch_norm}', every parameter used")
    one = "the tasks of a chunk as one batch" if experiment.learner.network == "sequence" else None
    say(f"ok  engine: {slower or one or 'vmap over the tasks of a chunk'}")
    adapted = testing.check_adaptation(experiment)
    if adapted is not None:
        before, after = findings["adaptation"] = adapted
        if after > before or not math.isfinite(after):
            say(
                f"!!  inner loop: raises the query loss of an untrained model from {before:.3g} to {after:.3g}. Lower "
                "learner.inner_lr, or scale the inputs to about zero mean and unit variance"
            )
        else:
            say(f"ok  inner loop: lowers the query loss of an untrained model from {before:.4g} to {after:.4g}")
    gradient = testing.check_gradient(experiment)
    gradient.require()
    findings |= {"engine": gradient.engine, "loop_error": gradient.loop_error}
    findings["difference_errors"] = dict(gradient.difference_errors)
    say(f"ok  meta-gradient against a plain loop, float64: relative error {gradient.loop_error:.1e}")
    if gradient.difference_errors:
        name, worst = max(gradient.difference_errors.items(), key=lambda item: item[1])
        say(f"ok  meta-gradient against finite differences: at most {worst:.1e} ({name})")
    else:
        say("--  finite differences: left out, this learner's gradient is first-order by choice")
    if as_json:
        _print_json(findings | {"ok": True})


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List learners, task distributions, datasets and the jobs in ./jobs."""
    learners = {name: _first_line(kind) for name, kind in sorted(find_learners().items())}
    public = (getattr(distmeta, name) for name in distmeta.__all__)
    kinds = (kind for kind in public if isinstance(kind, type) and issubclass(kind, distmeta.TaskDistribution))
    tasks = {kind.__name__: _first_line(kind) for kind in kinds if not inspect.isabstract(kind)}
    jobs = {str(path): _first_line_of(path) for path in sorted(Path("jobs").glob("*.py"))}
    found = {"learners": learners, "tasks": tasks, "datasets": dict(data.DATASETS), "jobs": jobs}
    if as_json:
        _print_json(found)
        return
    for title, rows in found.items():
        out.print(title if rows else f"{title}: none here")
        for name, text in rows.items():
            out.print(f"  {name:<24} {text}")


@app.command()
def submit(
    job: JobFile,
    address: Annotated[str, typer.Option(help="Dashboard of a running Ray cluster, http://HOST:8265.")],
    workers: Workers = None,
    settings: Set = None,
    data_dir: Annotated[str | None, typer.Option("--data", help="Dataset folder on the cluster, or name.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Folder for the run, on the cluster's head node.")] = None,
    tracking_uri: TrackingUri = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
    as_json: Json = False,
) -> None:
    """Run a job file on a running Ray cluster and follow its log."""
    from distmeta.run.submitting import submit as submit_job

    with _interruptible():
        done = submit_job(
            job,
            address=address,
            overrides=_overrides(settings, workers, data_dir),
            run_dir=run_dir,
            tracking_uri=tracking_uri,
            wait=not no_wait,
            echo=(err if as_json else out).print,
        )
    if as_json:
        _print_json({"submission_id": done.id, "run_dir": done.run_dir, "status": done.status})
    elif done.status == "PENDING":
        out.print(f"Not waiting. Follow it with: ray job logs {done.id} --address {address} --follow")
    else:
        out.print(f"{done.id}: {done.status}. Run directory on the head node: {done.run_dir}")
    if done.status not in ("PENDING", "SUCCEEDED"):
        raise typer.Exit(1)


@track_app.command("sync")
def track_sync(run_dir: RunDir, tracking_uri: TrackingUri = None, as_json: Json = False) -> None:
    """Send to MLflow what it lacks of a run: after an outage, or for a run that was not tracked."""
    from distmeta.tracking.tracker import sync

    report = sync(run_dir, tracking_uri)
    if as_json:
        _print_json({"run_id": report.run_id, "rows_sent": report.rows_sent, "artifacts_sent": report.artifacts_sent})
    else:
        out.print(f"MLflow run {report.run_id}: sent {report.rows_sent} rows and {report.artifacts_sent} artifacts.")


# -- how things are shown ---------------------------------------------------------------------------------------------


def _load(job: Path, settings: list[str] | None, workers: int | None, data_dir: str | None) -> Job:
    given = os.environ.get("DISTMETA_DATA")
    defaults = _overrides(None, None, given) if given else {}
    return load_job(job, _overrides(settings, workers, data_dir), defaults=defaults)


def _overrides(settings: list[str] | None, workers: int | None, data_dir: str | None) -> dict[str, Any]:
    overrides = parse_overrides(settings or ())
    if workers is not None:
        overrides["runtime.workers"] = workers
    if data_dir is not None:
        overrides["tasks.data"] = str(Path(data_dir).resolve()) if os.path.exists(data_dir) else data_dir
    return overrides


def _numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """``"1,2,5"`` as numbers in ascending order, each once."""
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        values = []
    if not values or values[0] < least:
        raise ConfigError(
            f"{option} {text!r}: expected whole numbers of at least {least} with commas between them, such as "
            f"{option} 1,2,5,10."
        )
    return tuple(values)


@contextmanager
def _bar(text: str, *, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    if not err.is_terminal:
        shown = time.monotonic()

        def line(done: int, total: int | None) -> None:
            nonlocal shown
            if not quiet and time.monotonic() - shown >= 5:
                shown = time.monotonic()
                err.print(f"{text}: {done:,}{f' of {total:,}' if total else ''}")

        with _interruptible():
            yield line
        return
    with _interruptible(), Progress(*columns, console=err, disable=quiet, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _watching(quiet: bool) -> Iterator[Callable[[Event], None]]:
    """A progress bar on a terminal; a line every few seconds where there is none, as in a job's log."""
    view = _View(quiet)
    with _interruptible(), view.progress:
        yield view


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        err.print(str(interrupt) or "Interrupted.")
        raise typer.Exit(130) from None


class _View:
    def __init__(self, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._quiet, self._lines = quiet, not err.is_terminal
        self.progress = Progress(*columns, console=err, disable=quiet or self._lines)
        self._task: Any = None
        self._last = 0.0
        self._first: tuple[float, int] | None = None  # when lines began, and at which step

    def __call__(self, event: Event) -> None:
        if event.kind == "step":
            self._step(event)
        elif not self._quiet:
            prefix = f"step {event.step}: validation " if event.kind == "validation" else ""
            self.progress.console.print(f"{prefix}{event.text}")

    def _step(self, event: Event) -> None:
        values = event.values
        numbers = f"{values['runtime/tasks_per_second']:.0f} tasks/s  loss {values['train/loss']:.3f}"
        if "train/accuracy" in values:
            numbers += f"  acc {values['train/accuracy']:.1%}"
        total = event.of
        if self._lines and not self._quiet:
            now = time.monotonic()
            if now - self._last >= 10 or event.step == total:
                self._last = now
                self._first = self._first or (now, event.step)
                since, step = self._first
                time_left = ""
                if step < event.step < total:
                    left = (total - event.step) * (now - since) / (event.step - step)
                    time_left = f"  left {datetime.timedelta(seconds=round(left))}"
                err.print(f"step {event.step}/{total}  {numbers}{time_left}")
            return
        if self._task is None:
            self._task = self.progress.add_task("meta-training", total=total, numbers="")
        self.progress.update(self._task, completed=event.step, numbers=numbers)


def _show_dataset(directory: Path, as_json: bool) -> None:
    facts = data.inspect(directory)
    if as_json:
        _print_json(facts)
        return
    out.print(
        f"{facts['name']}: {facts['classes']:,} classes, {facts['images']:,} images of shape {facts['input_shape']} "
        f"{facts['dtype']} in {directory}"
    )
    table = Table(box=None)
    for column in ("split", "classes", "images", "shards", "MiB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, row in facts["splits"].items():
        table.add_row(
            split, f"{row['classes']:,}", f"{row['images']:,}", str(row["shards"]), f"{row['bytes'] / 2**20:.1f}"
        )
    out.print(table)
    out.print(f"fingerprint {facts['fingerprint']}")


_LABELS = {
    "accuracy": "accuracy, transductive (all queries in one batch)",
    "accuracy_non_transductive": "accuracy, non-transductive (each query alone)",
    "baseline_accuracy": "nearest neighbour on raw inputs, same tasks",
    "accuracy_verification": "accuracy of same or different, pairs",
    "bits": "bits per sequence",
    "bit_errors": "wrong bits per sequence",
    "baseline_bits": "bits per sequence of the task's baseline",
    "loss": "loss on the queries",
    "baseline_loss": "predicting the mean of the support targets",
}


_BY_INSTANCE = {"accuracy": "accuracy", "baseline_accuracy": "nearest earlier image"}


def _labelled(metrics: Iterable[str]) -> dict[str, str]:
    """Metric to what it is called for people, in the order to show them; a metric of the user's keeps its name."""
    metrics = list(metrics)
    labels = _LABELS | {
        f"{name}_instance_{k}": f"{text}, instance {k}" for name, text in _BY_INSTANCE.items() for k in INSTANCES
    }
    if "accuracy_non_transductive" not in metrics:
        labels["accuracy"] = "accuracy"
    if "bits" in metrics or any("_instance_" in name for name in metrics):  # a sequence has no queries
        labels["loss"] = "loss"
    order = list(labels)
    metrics.sort(key=lambda name: order.index(name) if name in labels else len(order))
    return {name: labels.get(name, name) for name in metrics}


def _show_report(report: EvaluationReport, title: str) -> None:
    out.print(title)
    labels = _labelled(report.metrics)
    width = max(map(len, labels.values()))
    for name, text in labels.items():
        out.print(f"  {text:<{width}}  {report.text(name)}")


def _warn_of_guessing(report: EvaluationReport, ways: int | None) -> None:
    """Say so when the result is no better than guessing although the tasks can be done."""
    if ways is None or not {"accuracy", "baseline_accuracy"} <= report.metrics.keys():
        return
    guess = 1 / ways
    if report.mean("accuracy") - report.ci95("accuracy") <= 1.01 * guess < report.mean("baseline_accuracy"):
        err.print(
            f"warning: the accuracy is no better than guessing ({guess:.0%}), while nearest neighbour does better: the "
            "model has not learned. Try another outer.lr (and learner.inner_lr, where there is one), more "
            "outer.iterations, and `distmeta check`.",
            style="yellow",
        )


def _show_comparison(comparison: judging.Comparison) -> None:
    a, b = comparison.a, comparison.b
    out.print(a.title)
    rows = [("", f"A  {a.run_dir}", f"B  {b.run_dir}", "A - B, paired", "")]
    differences = comparison.differences
    for name, label in _labelled(differences).items():
        difference = differences[name]
        verdict = "A and B differ" if difference.clear else "no clear difference"
        numbers = (a.report.text(name), b.report.text(name), difference.text())
        rows.append((label, *numbers, "" if name.startswith("baseline") else verdict))
    _show_rows(rows)
    out.print(f"kept in  {a.run_dir / 'evaluations'}")


def _show_sweep(sweep: judging.Sweep) -> None:
    out.print(sweep.title)
    reports = [judgement.report for judgement in sweep.judgements]
    names = [name for name in reports[0].metrics if all(name in report.metrics for report in reports)]
    rows = [(sweep.key, *names)]
    for value, report in zip(sweep.values, reports, strict=True):
        rows.append((str(value), *(report.text(name) for name in names)))
    _show_rows(rows)
    out.print(f"curve  {sweep.picture}")


def _show_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Aligned columns that are never cut: a log or a pipe has 80 columns for rich, numbers need them all."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        out.print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _show_cards(as_json: bool) -> None:
    if as_json:
        _print_json([card.to_dict() for card in cards.CARDS])
        return
    for card in cards.CARDS:
        numbers = ", ".join(f"{p.metric.replace('_', ' ')} {p.text}" for p in card.published)
        out.print(f"{card.name:<27}  {numbers}  {card.paper}")
    out.print("Show one with: distmeta reproduce CARD --show; run it with: distmeta reproduce CARD [--minutes M]")


def _show_card(card: cards.Card, as_json: bool) -> None:
    if as_json:
        _print_json(card.to_dict())
        return
    out.print(card.name)
    for heading, text in card.protocol().items():
        out.print(f"  {heading:<11} {text}")
    for p in card.published:
        out.print(f"  {'published':<11} {p.metric} {p.text}{f' ({p.note})' if p.note else ''}")
    for note in card.notes:
        out.print(f"  {'note':<11} {note}")
    if card.differs:
        out.print(f"  {'differs':<11} {card.differs}: not comparable with the paper")


def _show_result(result: api.RunResult, job: Job, as_json: bool) -> None:
    if as_json:
        _print_json(
            {
                "run_dir": str(result.run_dir),
                "step": result.step,
                "params_sha256": result.params_sha256,
                "best_step": result.best_step,
                "test": result.test.summary() if result.test else None,
            }
        )
        return
    tasks, learner = job.experiment.tasks, job.experiment.learner
    what = tasks.describe()["name"]
    if hasattr(tasks.config, "ways") and hasattr(tasks.config, "shots"):
        what = f"{tasks.config.ways}-way {tasks.config.shots}-shot"
    out.print()
    if result.test is not None:
        # The policy of batch norm is what makes the two accuracies differ.
        policy = f"batch norm '{learner.config.batch_norm}', " * ("accuracy_non_transductive" in result.test.metrics)
        title = (
            f"meta-test: {what}, {result.test.tasks} tasks, mean ± 95 % interval "
            f"({policy}parameters of step {result.best_step})"
        )
        _show_report(result.test, title)
        _warn_of_guessing(result.test, getattr(tasks.config, "ways", None))
    out.print(f"run      {result.run_dir}")
    out.print(f"curves   {result.run_dir / 'curves.png'}")
    for path in sorted(result.run_dir.glob("*.png")):
        if path.name != "curves.png":
            out.print(f"picture  {path}")
    if result.how_to_open:
        out.print(f"browser  {result.how_to_open}")


def _print_json(values: Any) -> None:
    out.file.write(json.dumps(values, indent=1) + "\n")


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "")


def _first_line_of(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
    except (SyntaxError, IndexError):
        return ""


def main() -> None:
    """Entry point: errors become one message and exit code 1; ctrl-C says how to go on and exits with 130."""

    # A cluster ends its jobs by SIGTERM; that is an interrupt like ctrl-C: checkpoint, then leave.
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    out.file = sys.stdout
    # What job files, Ray or MLflow print must not get between the lines of a JSON object.
    with redirect_stdout(sys.stderr if "--json" in sys.argv else sys.stdout):
        code = _run_app()
    sys.stdout.flush()
    sys.exit(code)


def _run_app() -> int:
    try:
        return app(standalone_mode=False) or 0  # typer returns the code of typer.Exit and of ctrl-C
    except DistmetaError as error:
        err.print(f"error: {error}", style="red")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        err.print("Interrupted.")
        return 130
    except Exception as error:
        # click's own usage errors know how to show themselves
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        return int(error.exit_code)


if __name__ == "__main__":
    main()
