"""The commands that compute: train, resume, evaluate, reproduce."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distmeta.cli import console
from distmeta.cli.console import print_json
from distmeta.cli.options import (
    Address,
    BackendName,
    ChangedCode,
    JobFile,
    Json,
    NewRunDir,
    RunDir,
    RunOptions,
    SplitName,
    Workers,
    load,
    numbers,
    overrides,
    with_options,
)
from distmeta.cli.progress import watching
from distmeta.errors import ConfigError

if TYPE_CHECKING:
    from distmeta.run.controls import Controls
    from distmeta.run.evaluating import Over
    from distmeta.run.results import Comparison, EvaluationResult, Sweep


@with_options
def train(
    job: JobFile,
    options: RunOptions,
    run_dir: NewRunDir = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Keep a time line of all processes, a Chrome trace; see --profile-steps.")
    ] = False,
    profile_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the time line, after the warm-up; 10. Turns --profile on.")
    ] = None,
) -> None:
    """Meta-train by a job file: progress, validation, final meta-test accuracy with its 95 % interval."""
    with watching(options.as_json) as view:
        view.phase(f"loading {job}")
        loaded = load(job, options.settings, options.workers, options.data_dir)
        from distmeta.cli import show
        from distmeta.run.training import meta_train

        steps = profile_steps or (10 if profile else None)
        result = meta_train(loaded, run_dir=run_dir, place=options.place(view), profile=steps)
    show.result(result, loaded, options.as_json)


@with_options
def resume(run_dir: RunDir, options: RunOptions, changed_code: ChangedCode = False) -> None:
    """Go on from the last checkpoint, exactly; also with another number of workers or more iterations."""
    with watching(options.as_json) as view:
        view.phase(f"loading {run_dir}")
        from distmeta.cli import show
        from distmeta.run.directory import RunDirectory
        from distmeta.run.training import meta_train

        loaded = RunDirectory.open(run_dir).job(options.overrides(), accept_changed=changed_code)
        outer = loaded.experiment.outer
        longer = any(assignment.startswith("outer.iterations") for assignment in options.settings or ())
        if outer.schedule != "constant" and longer:
            console.err.print(
                f"note: outer.schedule={outer.schedule} runs over all {outer.iterations} iterations; the steps done so "
                "far had other learning rates than in a run of this length from the start."
            )
        result = meta_train(loaded, run_dir=run_dir, resume=True, place=options.place(view))
    show.result(result, loaded, options.as_json)


def evaluate(
    run_dir: RunDir,
    tasks: Annotated[int | None, typer.Option(min=2, help="How many tasks; 600, or all where there are fewer.")] = None,
    split: Annotated[SplitName, typer.Option(help="Which classes.")] = "meta_test",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the tasks; runs with equal seeds get equal tasks.")
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
    controls: Annotated[
        bool, typer.Option("--controls", help="Is meta-training worth it? Other methods on the same tasks, paired.")
    ] = False,
    workers: Workers = None,
    backend: BackendName = "ray",
    address: Address = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Evaluate with another setting, such as tasks.ways=20."),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option("--data", help="Where the dataset is now, or another of the same shape: cross-domain."),
    ] = None,
    changed_code: ChangedCode = False,
    as_json: Json = False,
) -> None:
    """Evaluate the best parameters of a run, distributed over the workers, always on the same tasks.

    Every result is kept in RUN_DIR/evaluations.
    """
    curves: dict[Over, str | None] = {"shots": shots, "inner_steps": inner_steps, "lengths": lengths}
    modes: dict[str, object] = {"--against": against, "--controls": controls or None}
    modes |= {f"--{over.replace('_', '-')}": text for over, text in curves.items()}
    given = [option for option, value in modes.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: expected one of them at a time. Give one command for each.")
    with watching(as_json) as view:
        view.phase(f"loading {run_dir}")
        from distmeta.cli import show
        from distmeta.run import evaluating
        from distmeta.run.place import Place
        from distmeta.run.results import EvaluationRequest

        request = EvaluationRequest(
            tasks,
            split,
            seed,
            overrides(None, None, data_dir).get("tasks.data"),
            overrides(settings, workers, None),
            Place(backend, address, watch=view),
            changed_code,
        )
        found: Comparison | Controls | EvaluationResult | Sweep
        over = next((over for over, text in curves.items() if text is not None), None)
        if controls:
            from distmeta.run.controls import evaluate_controls

            found = evaluate_controls(run_dir, request)
        elif against is not None:
            found = evaluating.compare(run_dir, against, request)
        elif over is not None:
            values = numbers(given[0], curves[over] or "", 0 if over == "inner_steps" else 1)
            found = evaluating.sweep(run_dir, over, values, request)
        else:
            found = evaluating.evaluate(run_dir, request)
    if as_json:
        print_json(found.to_dict())
    else:
        show.evaluation(found)


@with_options
def reproduce(
    options: RunOptions,
    card: Annotated[
        str | None, typer.Argument(metavar="[CARD]", help="Such as maml/omniglot-5w1s; all are listed without.")
    ] = None,
    show_card: Annotated[bool, typer.Option("--show", help="Show the card, run nothing.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="A time box: as many iterations as fit, fixed before they begin.")
    ] = None,
    run_dir: NewRunDir = None,
) -> None:
    """Train and evaluate by a protocol card: ours beside the published number. Without a card, list them."""
    with watching(options.as_json) as view:
        view.phase("loading the protocol cards")
        from distmeta.cli import show
        from distmeta.experiment import cards
        from distmeta.run.reproducing import reproduce as run_card

        if card is None:
            show.cards(options.as_json)
            return
        chosen = cards.find(card)
        if show_card:
            show.card(chosen, options.as_json)
            return
        if not options.as_json:
            show.card(chosen, False)
        changes = options.overrides()
        if chosen.dataset is not None and "DISTMETA_DATA" in os.environ:
            changes = overrides(None, None, os.environ["DISTMETA_DATA"]) | changes
        done = run_card(card, overrides=changes, minutes=minutes, run_dir=run_dir, place=options.place(view))
    if options.as_json:
        print_json(done.to_dict())
        return
    for line in ("", *done.lines(), f"run  {done.result.run_dir}"):
        console.out.print(line)
