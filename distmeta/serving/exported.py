"""A trained learner as files, without a pickle: what ``distmeta export`` writes and :func:`distmeta.load` reads.

::

    OUT/export.json           what it is: shapes, preprocessing, seed, engine, card
        params.safetensors    the meta-parameters, by name
        frozen.safetensors    parameters that are not trained, and buffers, where the model has any
        code/job.py, ...      the job file and the modules beside it
        requirements.txt      the versions that it was exported with
        README.md             the card: what it learned, how well, how to use it
        manifest.json         size and sha256 of each of them, written last
"""

from __future__ import annotations

import ast
import atexit
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from distmeta.errors import ConfigError, FileDamaged
from distmeta.experiment.job import JOB, load_job
from distmeta.files import parse_record, record_bytes
from distmeta.learners.base import MetaLearner
from distmeta.run.record import LearnedFrom
from distmeta.serving.card import card_text
from distmeta.serving.rebuilt import rebuilt
from distmeta.serving.sealed import SealedFolder
from distmeta.types import Params

FORMAT = 1
_EXPORT, _PARAMS, _FROZEN, _CODE = "export.json", "params.safetensors", "frozen.safetensors", "code"
_REQUIREMENTS, _CARD = "requirements.txt", "README.md"
_NEEDED = ("torch", "numpy", "pyarrow", "pydantic", "pyyaml", "safetensors", "pillow", "filelock", "matplotlib")
FIX = "Export the run again, or copy the folder again."


@dataclass(frozen=True)
class Exported:
    """All that a trained learner is made of.

    Args:
        learned_from: shapes and preprocessing of the training tasks.
        seed: of the run; it starts the model.
        engine: how the learner computes.
        params: the meta-parameters that the run was evaluated by.
        fixed: parameters that are not trained, and buffers.
        frozen: digest of the parameters that are not trained.
        overrides: settings that were changed on the command line, by dotted key.
        code: source of the job file and of the modules beside it, by path.
        card: JSON-ready facts for people.
    """

    learned_from: LearnedFrom
    seed: int
    engine: str
    params: Params
    fixed: Mapping[str, torch.Tensor]
    frozen: str | None
    overrides: Mapping[str, Any]
    code: Mapping[str, bytes]
    card: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Exported:
        """Read an export; every byte that is used is checked, and nothing is run.

        Raises:
            FileDamaged: a file is not as it was written, or is not what its name tells.
            ConfigError: the format is another one.
        """
        sealed = SealedFolder.open(folder, fix=FIX)
        values = parse_record(sealed.read(_EXPORT), folder / _EXPORT, fix=FIX)
        if values.get("format") != FORMAT:
            raise ConfigError(
                f"{folder} has export format {values.get('format')!r}; this distmeta reads {FORMAT}. Install the "
                "version that wrote it, or export the run again."
            )
        try:
            names = [str(name) for name in values["params"]]
            params = sealed.tensors(_PARAMS)
            if set(params) != set(names):
                raise FileDamaged(f"{folder / _PARAMS} has other parameters than {_EXPORT} lists. {FIX}")
            return cls(
                LearnedFrom.from_dict(values),
                int(values["seed"]),
                str(values["engine"]),
                {name: params[name] for name in names},
                sealed.tensors(_FROZEN) if _FROZEN in sealed.names else {},
                values["frozen"],
                dict(values["overrides"]),
                sealed.below(_CODE),
                dict(values["card"]),
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise FileDamaged(f"{folder / _EXPORT} is no export: {type(error).__name__}: {error}. {FIX}") from None

    def files(self, *, learned: str = "") -> dict[str, bytes]:
        """The files of the export, by name.

        Args:
            learned: what is learned of one task, for the card, where that is kept beside them.
        """
        values = {
            "format": FORMAT,
            **self.learned_from.to_dict(),
            "seed": self.seed,
            "engine": self.engine,
            "frozen": self.frozen,
            "overrides": dict(self.overrides),
            "params": list(self.params),
            "card": dict(self.card),
        }
        needed = requirements(self.code)
        found = {
            _EXPORT: record_bytes(values),
            _PARAMS: save_tensors({name: p.detach().cpu().contiguous() for name, p in self.params.items()}),
            **{f"{_CODE}/{name}": source for name, source in self.code.items()},
            _REQUIREMENTS: "".join(f"{line}\n" for line in needed).encode(),
            _CARD: card_text(self.card, self.learned_from, needed, learned).encode(errors="backslashreplace"),
        }
        if self.fixed:
            found[_FROZEN] = save_tensors(dict(self.fixed))
        return found

    def learner(self) -> MetaLearner:
        """Run the job file and give its learner what was learned.

        The code runs from a copy of the bytes that were read: nothing that was laid beside it is imported.

        Raises:
            ConfigError: the job file is absent, or does not run.
            CheckpointMismatch: the model is not the one that was trained.
        """
        if JOB not in self.code:
            raise ConfigError(f"The export has no {_CODE}/{JOB}; expected the job file that builds the model. {FIX}")
        name = str(self.card.get("name") or "job")
        try:
            job = load_job(self._unpacked / JOB, self.overrides, folder=self._unpacked, name=name)
        except ConfigError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                error.with_note("Files beside it are no part of an export; weights are. Read a file only if it exists.")
            raise
        return rebuilt(
            job.experiment.learner,
            self.learned_from.spec,
            self.seed,
            self.engine,
            self.params,
            self.frozen,
            whose="the export",
            versions=f"Install the versions of its {_REQUIREMENTS}.",
            source=FIX,
            fixed=self.fixed,
        )

    @cached_property
    def _unpacked(self) -> Path:
        """The code in a folder of this process's own, which is removed when it ends."""
        folder = Path(tempfile.mkdtemp(prefix="distmeta-code-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, source in self.code.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source)
        return folder


def is_export(folder: Path) -> bool:
    """Return whether a folder was written by ``distmeta export``; also one of whose files some are lost."""
    if (folder / _EXPORT).is_file():
        return True
    return (folder / _PARAMS).is_file() and (folder / _CODE).is_dir()  # a checkpoint has parameters, but no code


def fixed_tensors(learner: MetaLearner) -> dict[str, torch.Tensor]:
    """Copies of the parameters that are not trained, and of the buffers that a state has."""
    trained = {name for name, p in learner.model.named_parameters() if p.requires_grad}
    state = learner.model.state_dict()
    return {name: value.detach().clone().contiguous() for name, value in state.items() if name not in trained}


def requirements(code: Mapping[str, bytes]) -> list[str]:
    """Pinned versions of what a loaded learner needs: ``name==version``.

    Args:
        code: the job file and the modules beside it; what they import of installed packages is needed too.

    Example:
        >>> [line.partition("==")[0] for line in requirements({"job.py": b"import rich.table, os, parts"})][-1]
        'rich'
    """
    names = ["distmeta", *_NEEDED]
    packages = metadata.packages_distributions()
    for module in sorted(_imported(code)):
        names += [name.lower() for name in packages.get(module, ()) if name.lower() not in names]
    found = []
    for name in names:
        with suppress(metadata.PackageNotFoundError):  # distmeta itself, where only its source is there
            found.append(f"{name}=={metadata.version(name).partition('+')[0]}")  # +cpu is a build, no version
    return found


def _imported(code: Mapping[str, bytes]) -> set[str]:
    """First names of the modules that code imports."""
    found = set()
    for name, source in code.items():
        if not name.endswith(".py"):
            continue
        with suppress(SyntaxError, ValueError, RecursionError):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found


__all__ = ["FIX", "FORMAT", "Exported", "fixed_tensors", "is_export", "requirements"]
