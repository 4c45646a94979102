"""The commands that look, send or ask: inspect, report, check, audit, list, submit, track sync."""

from __future__ import annotations

import ast
import inspect as python_inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distmeta.cli import console
from distmeta.cli.console import print_json
from distmeta.cli.options import Data, JobFile, Json, RunDir, Set, TrackingUri, Workers, load, overrides
from distmeta.cli.progress import interruptible
from distmeta.errors import TaskContractError

if TYPE_CHECKING:
    from distmeta.auditing import Audit

track_app = typer.Typer(help="Keep MLflow's record of a run complete.", no_args_is_help=True, rich_markup_mode=None)


def inspect(run_dir: RunDir, as_json: Json = False) -> None:
    """Show what a run is and how far it got."""
    from distmeta.run.inspecting import inspect_run

    facts = inspect_run(run_dir)
    if as_json:
        print_json(facts)
        return
    best, test = facts.pop("best"), facts.pop("test")
    del facts["experiment"]
    facts["step"] = f"{facts['step']} of {facts.pop('iterations')}"
    if best is not None:
        facts["best"] = f"step {best['step']}: meta-validation {best['metric']} {abs(best['score']):.4f}"
    for name in [name for name in test or {} if not name.endswith("_ci95")]:
        facts[f"test {name}"] = f"{test[name]:.4f} ± {test[name + '_ci95']:.4f}"
    spent = facts.pop("time")
    damaged = facts.pop("damaged")
    facts |= {f"damaged {step}": damage for step, damage in damaged.items()}
    for key, value in facts.items():
        if value is not None:
            console.out.print(f"{key:<{max(map(len, facts))}}  {value}")
    if spent:
        console.out.print("a step, of the mean worker, over all steps done:")
    for line in spent:
        console.out.print(f"  {line}")
    lost = any(name.startswith("checkpoint") for name in damaged)
    if facts["status"] in ("interrupted", "failed") or lost:
        console.out.print(f"Go on with: distmeta resume {run_dir}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="One run, or several to compare.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Where to; RUN_DIR/report.html, of several the first one's evaluations folder."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report as one HTML file; of several runs side by side, with their paired differences."""
    from distmeta.run.reporting import report as write

    done = write(runs, out)
    if as_json:
        print_json(done.to_dict())
        return
    for one in done.pairings:
        if one.why_not:
            console.err.print(f"note: {done.runs[one.a]} and {done.runs[one.b]} are not paired: {one.why_not}.")
    console.out.print(f"report   {done.path}")


def check(job: JobFile, settings: Set = None, data_dir: Data = None, as_json: Json = False) -> None:
    """Probe tasks, model and learner of a job before it costs anything; check its gradient by finite differences."""
    from distmeta import testing

    experiment = load(job, settings, None, data_dir).experiment
    findings: dict[str, Any] = {"job": str(job), "learner": type(experiment.learner).__name__}
    say = console.err.print if as_json else console.out.print
    testing.check_task(experiment)
    say(f"ok  tasks: {type(experiment.tasks).__name__}, {experiment.tasks.spec}")
    slower = testing.check_model(experiment.learner, experiment)
    say(f"ok  model: shapes, batch norm policy '{experiment.learner.config.batch_norm}', every parameter used")
    stacks = experiment.learner.model_kind in ("sequence", "set")
    one = "the tasks of a chunk as one batch" if stacks else None
    usual = "a plain loop over tasks" if experiment.learner.loops else "vmap over the tasks of a chunk"
    say(f"ok  engine: {slower or one or usual}")
    precision = experiment.learner.config.precision
    if precision != "float32":
        say(f"--  precision: the checks below are in float32 and float64, training in {precision}")
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
        print_json(findings | {"ok": True})


def audit(
    job: JobFile,
    settings: Set = None,
    data_dir: Data = None,
    tasks: Annotated[int, typer.Option(min=2, help="Tasks to draw per split and step, about 20 times each.")] = 8,
    as_json: Json = False,
) -> None:
    """Prove that tasks are functions of their refs: drawn again in other surroundings; names the line that is not."""
    from distmeta.auditing import audit as run_audit

    loaded = load(job, settings, None, data_dir)
    refused: TaskContractError | None = None
    try:
        loaded.experiment.tasks.check()
    except TaskContractError as error:  # by two draws that differ, say: the audit names the line
        refused = error
    done = run_audit(loaded, tasks=tasks)
    if refused is not None and not done.findings:
        raise refused
    if as_json:
        print_json({"job": str(job), **done.to_dict()})
    else:
        _show(done)
    if done.findings:
        raise typer.Exit(1)


def _show(done: Audit) -> None:
    say, width = console.out.print, max(len(proof.title) for proof in done.proofs)
    for proof in done.proofs:
        follows = f"   (follows from {proof.follows.place})" if proof.follows is not None else ""
        say(f"{'✓' if proof.holds else '✗'} {proof.title:<{width}}  {proof.evidence}{follows}")
        for finding in proof.findings:
            say("\n".join(f"    {line}" for line in f"A task {finding}".splitlines()))
    for remark in done.remarks:
        say(f"note: {remark}")
    wrong = len(done.findings)
    say(f"{done.distribution}: {'every task is a function of its ref' if not wrong else f'{wrong} findings'}")


def list_all(as_json: Json = False) -> None:
    """List learners, task distributions, datasets and the jobs in ./jobs."""
    import distmeta
    from distmeta.data import DATASETS
    from distmeta.learners import find_learners

    learners = {name: _first_line(kind) for name, kind in sorted(find_learners().items())}
    public = (getattr(distmeta, name) for name in distmeta.__all__)
    kinds = (kind for kind in public if isinstance(kind, type) and issubclass(kind, distmeta.TaskDistribution))
    tasks = {kind.__name__: _first_line(kind) for kind in kinds if not python_inspect.isabstract(kind)}
    jobs = {str(path): _first_line_of(path) for path in sorted(Path("jobs").glob("*.py"))}
    found = {"learners": learners, "tasks": tasks, "datasets": dict(DATASETS), "jobs": jobs}
    if as_json:
        print_json(found)
        return
    for title, rows in found.items():
        console.out.print(title if rows else f"{title}: none in ./{title}")
        for name, text in rows.items():
            console.out.print(f"  {name:<24} {text}")


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

    with interruptible():
        done = submit_job(
            job,
            address=address,
            overrides=overrides(settings, workers, data_dir),
            run_dir=run_dir,
            tracking_uri=tracking_uri,
            wait=not no_wait,
            echo=(console.err if as_json else console.out).print,
        )
    if as_json:
        print_json({"submission_id": done.id, "run_dir": done.run_dir, "status": done.status})
    elif done.status == "PENDING":
        console.out.print(f"Not waiting. Follow it with: ray job logs {done.id} --address {address} --follow")
    else:
        console.out.print(f"{done.id}: {done.status}. Run directory on the head node: {done.run_dir}")
    if done.status not in ("PENDING", "SUCCEEDED"):
        raise typer.Exit(1)


@track_app.command("sync")
def track_sync(run_dir: RunDir, tracking_uri: TrackingUri = None, as_json: Json = False) -> None:
    """Send to MLflow what it lacks of a run: after an outage, or for a run that was not tracked."""
    from distmeta.tracking.tracker import sync

    report = sync(run_dir, tracking_uri)
    if as_json:
        print_json({"run_id": report.run_id, "rows_sent": report.rows_sent, "artifacts_sent": report.artifacts_sent})
    else:
        console.out.print(
            f"MLflow run {report.run_id}: sent {report.rows_sent} rows and {report.artifacts_sent} artifacts."
        )


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "")


def _first_line_of(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
    except (SyntaxError, IndexError):
        return ""
