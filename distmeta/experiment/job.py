"""Job files: one Python file per experiment, with a module-level ``experiment = Experiment(...)``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distmeta.errors import ConfigError, DistmetaError
from distmeta.experiment.experiment import Experiment
from distmeta.files import sha256_of, without_bytecode

JOB = "job.py"
"""The name that a run keeps its job file under, and the key of that file's digest."""


@dataclass(frozen=True)
class Job:
    """A loaded job file.

    Args:
        experiment: its experiment, overrides applied.
        module: the module; its classes are sent to the workers, which cannot import it.
        path: the file.
        folder: where the modules beside it are found, here and by the workers.
        source: text of the file.
        overrides: what ``--set`` and ``--data`` changed, by dotted key.
        code: sha256 of the job and of the modules beside it that it imports, by path.
    """

    experiment: Experiment
    module: types.ModuleType
    path: Path
    folder: Path
    source: str
    overrides: Mapping[str, Any]
    code: Mapping[str, str]

    def with_overrides(self, overrides: Mapping[str, Any]) -> Job:
        """A copy with settings changed; the file is not run again.

        Args:
            overrides: settings by dotted key, see :meth:`Experiment.with_overrides`.

        Raises:
            ConfigError: an override does not fit.
        """
        changed = self.experiment.with_overrides(overrides)
        return replace(self, experiment=changed, overrides={**self.overrides, **overrides})


def jobs_folder() -> Path:
    """Where distmeta's own job files are: in an installed package, or in the repository.

    Example:
        >>> (jobs_folder() / "maml_glyphs.py").is_file()
        True
    """
    package = Path(__file__).parents[1]
    installed = package / "_jobs"
    return installed if installed.is_dir() else package.parent / "jobs"


def _no_such_job(given: Path | str) -> str:
    """The message for a job file that is absent: where it was looked for, and where distmeta's own of that name is."""
    path, here = Path(given), "" if Path(given).is_absolute() else f" in the current folder {os.getcwd()}"
    own = jobs_folder() / path.name
    if own.is_file():
        return (
            f"There is no job file {given}{here}; distmeta's own is {own}. Give that path, or go to the job's folder."
        )
    return f"There is no job file {given}{here}; expected a Python file. Give its path, or go to its folder."


def load_job(
    path: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    name: str | None = None,
) -> Job:
    """Run a job file and apply overrides.

    The file is run with torch's random numbers seeded, so that a model that it builds itself is the same every time.

    Args:
        path: the job file.
        overrides: settings by dotted key, see :meth:`Experiment.with_overrides`.
        defaults: the same, left out where the experiment has no such setting.
        folder: where modules beside the job are found; the file's own folder when left out.
        name: name for an experiment that does not name itself; the file's when left out.

    Raises:
        ConfigError: the file is absent, fails, or defines no experiment; an override does not fit.
    """
    given, path, overrides = path, Path(path).resolve(), dict(overrides or {})
    if not os.path.isfile(path):
        raise ConfigError(_no_such_job(given))
    _require_not_hidden(folder or path.parent)
    module_name = f"distmeta_job_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; expected one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before it runs, so that its classes can be pickled and its source be found
    folder = folder or path.parent
    _put_first_on_path(folder)
    try:
        with torch.random.fork_rng(devices=[]), without_bytecode():
            torch.manual_seed(0)
            spec.loader.exec_module(module)
    except DistmetaError:
        raise
    except Exception as error:
        # The line of the job itself, not of the library that it calls wrongly.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"The job file fails: {type(error).__name__}: {error} ({where}). Fix that line.") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        seen = "nothing of that name" if experiment is None else f"a {type(experiment).__name__}"
        raise ConfigError(f"{path} must define `experiment = Experiment(...)` at its top level; found {seen}.")
    if experiment.name == "experiment":
        experiment = experiment.replace(name=name or path.stem)
    source, known = path.read_text(encoding="utf-8"), experiment.keys()
    overrides = {key: value for key, value in (defaults or {}).items() if key in known} | overrides
    code = {JOB: hashlib.sha256(source.encode()).hexdigest(), **_imported(folder)}
    return Job(experiment.with_overrides(overrides), module, path, folder, source, overrides, code)


_NEEDED = frozenset({"mlflow", "numpy", "pyarrow", "pydantic", "ray", "torch", "typer"})


def _require_not_hidden(folder: Path) -> None:
    """Raise where a file beside the job, or the job itself, has the name of a module that every process needs.

    The folder comes first where modules are looked for, so that ``copy.py`` would be imported for Python's.
    """
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
            needed = path.stem in _NEEDED or (path.stem in sys.stdlib_module_names and path.stem in sys.modules)
            if is_module and needed and not _file(path.stem).is_relative_to(folder):
                whose = f"the package {path.stem}" if path.stem in _NEEDED else f"Python's own module {path.stem}"
                raise ConfigError(
                    f"{path} has the name of {whose} and would be imported in its place, since a job's folder comes "
                    "first; expected another name. Rename it."
                )


_folders: set[Path] = set()
"""Folders of the jobs that this process has loaded."""


def _put_first_on_path(folder: Path) -> None:
    """Let the modules beside a job be found first, and not those of an earlier job that have the same names."""
    with suppress(OSError):  # a folder that cannot be listed has nothing that could be imported
        beside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
        for name in [name for name in sys.modules if name.partition(".")[0] in beside - {"distmeta", "__main__"}]:
            file, top = _file(name), folder / name.partition(".")[0]
            if file != top.with_suffix(".py") and not file.is_relative_to(top) and _of_a_job(file):
                del sys.modules[name]
    _folders.add(folder)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


def _of_a_job(file: Path) -> bool:
    """Return whether ``file`` is a module beside a job that was loaded earlier; installed packages are not."""
    return any(
        file.is_relative_to(folder) and not {"site-packages", "dist-packages"} & set(file.relative_to(folder).parts)
        for folder in _folders
    )


def _file(name: str) -> Path:
    return Path(getattr(sys.modules[name], "__file__", None) or "/")


def _imported(folder: Path) -> dict[str, str]:
    """sha256 of the modules that were imported from ``folder``, by their path in it; no installed packages."""
    found = {}
    for name in sorted(sys.modules):
        file = _file(name)
        if name.startswith(("distmeta", "__main__")) or not file.is_relative_to(folder) or not file.is_file():
            continue
        path = file.relative_to(folder)
        if not {"site-packages", "dist-packages"} & set(path.parts):
            found[str(path)] = sha256_of(file)
    return found
