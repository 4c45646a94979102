"""The commands, and the process: signals, standard output, exit codes.

Every command ends in a result, or in one message that names the fix.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated

import typer

import distmeta
from distmeta.cli import bench, console, data, look, runs, serve, use
from distmeta.errors import DistmetaError

app = typer.Typer(
    help="Distributed task-parallel meta-training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help is half of the time that `distmeta --help` would take
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "train": runs.train,
    "resume": runs.resume,
    "evaluate": runs.evaluate,
    "reproduce": runs.reproduce,
    "inspect": look.inspect,
    "report": look.report,
    "check": look.check,
    "audit": look.audit,
    "list": look.list_all,
    "submit": look.submit,
    "predict": use.predict,
    "export": use.export,
    "serve": serve.serve,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(look.track_app, name="track")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Distributed task-parallel meta-training."""
    if version:
        console.out.print(f"distmeta {distmeta.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors become one message and exit code 1; ctrl-C prints how to go on and exits with 130."""

    # A cluster ends its jobs by SIGTERM; that is an interrupt like ctrl-C: checkpoint, then leave.
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    console.results_go_to(sys.stdout)
    # What job files, Ray or MLflow print must not get between the lines of a JSON object.
    with redirect_stdout(sys.stderr if "--json" in sys.argv else sys.stdout):
        code = _run_app()
    sys.stdout.flush()
    sys.exit(code)


def _run_app() -> int:
    try:
        return app(standalone_mode=False) or 0  # typer returns the code of typer.Exit and of ctrl-C
    except DistmetaError as error:
        console.err.print(f"error: {error}", style="red")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        console.err.print("Interrupted.")
        return 130
    except Exception as error:
        # click's own usage errors have a method that prints them
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()
        return int(error.exit_code)


if __name__ == "__main__":
    main()
