"""``distmeta export``: a trained learner as a folder that can be carried elsewhere; no pickle in it.

::

    OUT/export.json           what it is: shapes, preprocessing, seed, engine, card
        params.safetensors    the meta-parameters, by name
        frozen.safetensors    parameters that are not trained, and buffers, where the model has any
        code/job.py, ...      the job file and the modules beside it
        requirements.txt      the versions that it was trained with
        README.md             the card: what it learned, how well, how to use it
        manifest.json         size and sha256 of each of them, written last
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distmeta.errors import CheckpointMismatch, ConfigError, FileDamaged
from distmeta.experiment.job import JOB, load_job
from distmeta.files import MANIFEST, damage_in, read_record, write_digests, write_record
from distmeta.learners.base import MetaLearner
from distmeta.learners.functional import frozen_digest
from distmeta.learners.param_layout import ParamLayout
from distmeta.run.record import LearnedFrom
from distmeta.seeding import rng
from distmeta.serving.finished_learner import FinishedLearner
from distmeta.serving.predictor import Predictor

FORMAT = 1
_EXPORT, _PARAMS, _FROZEN, _CODE = "export.json", "params.safetensors", "frozen.safetensors", "code"
_REQUIREMENTS, _CARD = "requirements.txt", "README.md"


def export(run_dir: Path | str, out: Path | str) -> Path:
    """Write a finished run as a folder that :func:`distmeta.load` takes, on any machine with this package.

    Args:
        run_dir: a run that was started from a job file.
        out: a new folder.

    Returns:
        The folder.

    Raises:
        ConfigError: ``out`` holds something, or cannot be written; the run has no job file.
        CheckpointError: there is no whole checkpoint, or the model is not the one that was trained.
    """
    out = Path(out)
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; expected a new folder, so that nothing is overwritten. Give another.")
    finished = FinishedLearner.open(run_dir)
    code, job = finished.directory.code_files(), finished.directory.record.job
    card, learner = dict(finished.card()), finished.learner
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise _cannot_write(out, error) from None
    try:
        names = [f"{_CODE}/{name}" for name in code]
        for name, path in code.items():
            (partial / _CODE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / _CODE / name)
        params = finished.best.layout.unflatten(finished.best.vector)
        save_file({name: p.contiguous() for name, p in params.items()}, partial / _PARAMS)
        if fixed := _fixed(learner):
            save_file(fixed, partial / _FROZEN)
            names.append(_FROZEN)
        write_record(
            partial / _EXPORT,
            {
                "format": FORMAT,
                **finished.learned_from.to_dict(),
                "seed": int(finished.last.record["identity"]["seed"]),
                "engine": finished.last.record["engine"],
                "frozen": finished.last.record["identity"].get("frozen"),
                "overrides": dict(job.overrides) if job else {},
                "params": list(params),
                "card": card,
            },
        )
        (partial / _REQUIREMENTS).write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
        (partial / _CARD).write_text(card_text(card, finished.learned_from), encoding="utf-8")
        write_digests(partial, [*names, _PARAMS, _EXPORT, _REQUIREMENTS, _CARD])
        partial.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise _cannot_write(out, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def is_export(folder: Path) -> bool:
    """Return whether a folder was written by :func:`export`."""
    return (folder / _EXPORT).is_file()


def read_export(folder: Path) -> Predictor:
    """The learner of an exported folder, after every byte of it was checked.

    Raises:
        FileDamaged: a file is not as it was written, or is not what its name tells.
        ConfigError: the format is another one, or the job file does not run.
        CheckpointMismatch: the model is not the one that was trained.
    """
    fix = "Export the run again, or copy the folder again."
    _require_inside(folder)
    if damage := damage_in(folder):
        raise FileDamaged(f"{folder / damage[0]}. {fix}")
    values = read_record(folder / _EXPORT, fix=fix)
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{folder} has export format {values.get('format')!r}; this distmeta reads {FORMAT}. Install the version "
            "that wrote it, or export the run again."
        )
    try:
        learned_from = LearnedFrom.from_dict(values)
        seed, engine = int(values["seed"]), str(values["engine"])
        names, card, overrides = list(values["params"]), dict(values["card"]), dict(values["overrides"])
    except (LookupError, TypeError, ValueError) as error:
        raise FileDamaged(f"{folder / _EXPORT} is no export: {type(error).__name__}: {error}. {fix}") from None
    params = _tensors(folder / _PARAMS, fix)
    if set(params) != set(names):
        raise FileDamaged(f"{folder / _PARAMS} has other parameters than {_EXPORT} lists. {fix}")
    params = {name: params[name] for name in names}
    job = load_job(folder / _CODE / JOB, overrides, folder=folder / _CODE, name=str(card.get("name") or "job"))
    learner = job.experiment.learner.bind(learned_from.spec, seed).with_config(vectorise=engine)
    if ParamLayout.of(learner.init_meta_params(rng(seed, "init"))) != ParamLayout.of(params):
        raise CheckpointMismatch(
            f"The parameters in {folder} have other names or shapes than the model that its job file builds; expected "
            f"the same. Install the versions in {folder / _REQUIREMENTS}."
        )
    if (folder / _FROZEN).is_file():
        learner.model.load_state_dict(_tensors(folder / _FROZEN, fix), strict=False)
    if (now := frozen_digest(learner.model)) != values["frozen"]:
        raise CheckpointMismatch(
            f"The weights in {folder} that are not trained are others (sha256 {str(now)[:12]}, were "
            f"{str(values['frozen'])[:12]}); expected those of the training. {fix}"
        )
    learner.load(params)
    return Predictor(learner, params, learned_from.spec, learned_from.preprocessing, card)


def requirements() -> list[str]:
    """Pinned versions of what a loaded learner needs: ``name==version``."""
    found = []
    for name in ("distmeta", "torch", "numpy", "pillow", "safetensors", "pyarrow"):
        version = metadata.version(name)
        found.append(f"{name}=={version.partition('+')[0]}")  # +cpu is a build, not a version that can be installed
    return found


def card_text(card: Mapping[str, Any], learned_from: LearnedFrom) -> str:
    """The card in Markdown: what was learned, on what, how well with intervals, and how to use it.

    Example:
        >>> from distmeta.data.preprocessing import Preprocessing
        >>> from distmeta.types import TaskSpec
        >>> spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
        >>> print(card_text({"name": "demo"}, LearnedFrom(spec, Preprocessing((1, 28, 28), "uint8"))).splitlines()[0])
        # demo
    """
    spec, made = learned_from.spec, learned_from.preprocessing
    learner, tasks, dataset = card.get("learner") or {}, card.get("tasks") or {}, card.get("dataset") or {}
    settings = ", ".join(f"{key} {value}" for key, value in learner.items() if key != "kind")
    drawn = ", ".join(f"{key} {value}" for key, value in tasks.items() if key not in ("kind", "data"))
    lines = [
        f"# {_plain(card.get('name', ''))}",
        "",
        f"A {_plain(learner.get('kind', 'learner'))} trained by distmeta ({_plain(card.get('created', ''))}, step "
        f"{card.get('step', '')}, parameters `{str(card.get('params_sha256', ''))[:16]}`).",
        "",
        f"- Learner: {_plain(settings)}",
        f"- Tasks: {_plain(tasks.get('kind', ''))}: {_plain(drawn)}",
        f"- Trained on: {_plain(dataset.get('name', ''))}, fingerprint `{str(dataset.get('fingerprint', ''))[:16]}`",
        f"- Inputs: {list(spec.input_shape)}"
        + (", bright ink on 0; drawings on a light background are inverted" if made.ink else "")
        + (", 0 to 1; pictures are scaled and cropped to that size" if made.pictures and not made.ink else ""),
        "",
        "## Meta-test",
        "",
    ]
    test = card.get("test") or {}
    lines += ["| | mean | 95 % interval |", "|---|---|---|"] if test else ["Not tested."]
    for name in [name for name in test if not name.endswith("_ci95")]:
        half = f"± {test[name + '_ci95']:.4f}" if name + "_ci95" in test else ""
        lines.append(f"| {_plain(name)} | {test[name]:.4f} | {half} |")
    use = (
        "outputs = predictor.run(sequence)  # [L, inputs] to [L, outputs]"
        if spec.kind == "sequence"
        else "fast = predictor.adapt(examples, labels)\nprint(fast.predict(new_ones))"
    )
    return "\n".join(
        [
            *lines,
            "",
            "## Use",
            "",
            "Loading runs `code/job.py`: load what you trust.",
            "",
            "```python",
            "import distmeta",
            "",
            'predictor = distmeta.load(".")',
            use,
            "```",
            "",
        ]
    )


def _plain(text: object) -> str:
    """Text for one line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _fixed(learner: MetaLearner) -> dict[str, torch.Tensor]:
    """Copies of the parameters that are not trained, and of the buffers that a state has."""
    trained = {name for name, p in learner.model.named_parameters() if p.requires_grad}
    state = learner.model.state_dict()
    return {name: value.detach().clone().contiguous() for name, value in state.items() if name not in trained}


def _tensors(path: Path, fix: str) -> dict[str, torch.Tensor]:
    try:
        found: dict[str, torch.Tensor] = load_file(path)
        return found
    except (SafetensorError, OSError) as error:
        raise FileDamaged(f"{path} is not a safetensors file ({error}). {fix}") from None


def _require_inside(folder: Path) -> None:
    """Raise where a name in the manifest, or a link, leads out of the folder."""
    try:
        names = list(read_record(folder / MANIFEST, fix="")["files"])
    except (FileDamaged, OSError, LookupError, TypeError):
        return  # the check of the digests names it
    inside = folder.resolve()
    for name in names:
        if not (folder / name).resolve().is_relative_to(inside):
            raise FileDamaged(
                f"{folder / MANIFEST} lists {name!r}, which is outside the folder; expected files of the export only. "
                "Do not use it; export the run again."
            )


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"The export cannot be written to {out}: {error}. Give a folder that can be written.")


__all__ = ["FORMAT", "card_text", "export", "is_export", "read_export", "requirements"]
