"""Where an estimator's learner is: loaded once in a process, and the same one as when ``fit`` was called."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

from distmeta.errors import CheckpointMismatch
from distmeta.serving.loading import load, place_of
from distmeta.serving.predictor import Predictor

_KEPT = 4
_learners: OrderedDict[tuple[str, str], Predictor] = OrderedDict()
_lock = threading.Lock()


def absolute(source: Path | str) -> str:
    """The source, so that another process in another folder finds it."""
    text = str(source)
    return text if text.startswith(("runs:/", "models:/")) else str(Path(source).absolute())


def loaded(source: str) -> Predictor:
    """The learner at a place, loaded once in a process as long as nothing changes there."""
    folder = place_of(source)
    with _lock:
        key = (str(folder), _stamp(folder))
        if key not in _learners:
            _learners[key] = load(folder)
        _learners.move_to_end(key)
        while len(_learners) > _KEPT:
            _learners.popitem(last=False)
        return _learners[key]


def loaded_again(source: str, params_sha256: object) -> Predictor:
    """The learner at a place, with the parameters that it had before.

    Raises:
        CheckpointMismatch: it has others.
    """
    predictor = loaded(source)
    now = predictor.card.get("params_sha256")
    if now != params_sha256:
        raise CheckpointMismatch(
            f"{source} has other parameters than when fit was called (sha256 {str(now)[:12]}, were "
            f"{str(params_sha256)[:12]}); expected the same. Call fit again, or restore it."
        )
    return predictor


def _stamp(folder: Path) -> str:
    """What changes when a run or an export does: its manifest, its record, the names of its checkpoints."""
    found = hashlib.sha256()
    for name in ("manifest.json", "run.json"):
        if (folder / name).is_file():
            found.update((folder / name).read_bytes())
    found.update(" ".join(sorted(path.name for path in folder.glob("checkpoints/*"))).encode())
    return found.hexdigest()


__all__ = ["absolute", "loaded", "loaded_again"]
