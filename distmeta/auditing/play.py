"""One play: load a job, draw the tasks of a list of refs in given surroundings, and return digests of their bytes."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distmeta.auditing.sharing import has_row, shared_classes, shared_rows
from distmeta.auditing.surroundings import Surroundings
from distmeta.auditing.tracing import Tracer, UserCode
from distmeta.errors import DistmetaError, TaskContractError, first_sentence
from distmeta.experiment.job import load_job
from distmeta.tasks.base import TaskDistribution
from distmeta.types import SPLITS, Episode, Split, TaskRef

Plan = Literal["chunks", "alone", "pairs", "backwards", "twice"]

_NAMES_PER_TASK = 25


@dataclass(frozen=True)
class Play:
    """What is drawn, and in which surroundings.

    Args:
        job: path of the job file.
        overrides: settings by dotted key.
        seed: seed of the run.
        tasks: tasks per step and split; of ``meta_train`` steps 0, 1 and 2, of the others step 0.
        plan: how refs are grouped and ordered. ``"backwards"`` draws other tasks first.
        varied: what has its other value, see :data:`distmeta.auditing.surroundings.FACTORS`.
        environment: further environment variables for that factor.
        natural: whether nothing is pinned.
        keep: file that the pickled distribution is written to, as it is sent to workers.
        sent: such a file: the distribution is read from it and the job is not loaded.
        folder: current folder while tasks are drawn.
        trace: refs that are drawn line by line.
        look_for: digest of a row, or ``"class NAME"``: the line that draws it is searched.
        most_rows: rows of an array at most in which a row is looked for; a larger one is the data, not a draw.
        sharing: whether rows and classes are compared across splits.
        user: files and folders that count as the user's code wherever they are.
    """

    job: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    tasks: int = 8
    plan: Plan = "chunks"
    varied: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    natural: bool = False
    keep: str = ""
    sent: str = ""
    folder: str = ""
    trace: tuple[str, ...] = ()
    look_for: str = ""
    most_rows: int = 0
    sharing: bool = False
    user: tuple[str, ...] = ()


def play(given: Play) -> dict[str, Any]:
    """Draw, and return what was drawn as JSON-ready facts.

    Returns:
        ``digests`` by ref (``again``: those of the second time), ``reads`` and ``events`` of the tracer, ``found``
        (the line looked for), facts about the distribution, and ``error`` where a draw fails.
    """
    user = UserCode(given.user or (given.job,))
    tracer = Tracer(user, _wanted(given))
    around = None if given.natural else Surroundings(given.varied, given.environment, tracer.note)
    result: dict[str, Any] = {"digests": {}, "again": {}, "error": None, "rows": None, "classes": None}
    with ExitStack() as stack:
        if around is not None:
            stack.enter_context(around.entered())
        try:
            with tracer.on("load") if given.trace else nullcontext():
                tasks = _load(given)
            result |= _facts(tasks)
            if given.keep:
                _keep(tasks, given)
            if given.folder:
                stack.callback(os.chdir, os.getcwd())
                os.chdir(given.folder)
            stack.enter_context(_around_each_draw(tasks, given, tracer, around))
            _draw(tasks, given, tracer, result)
        except Exception as error:  # noqa: BLE001 (the user's code may raise anything; the audit reports it)
            result["error"] = _error(error, user)
    result["reads"] = [[what, *place, phase] for (what, place), phase in tracer.reads.items()]
    result["events"] = [[e.phase, e.where, e.after, e.values, e.names] for e in tracer.events] if given.trace else []
    result["found"] = tracer.found
    return result


def key(ref: TaskRef) -> str:
    """A ref as text, ``split/step/index``."""
    return f"{ref.split}/{ref.step}/{ref.index}"


def _load(given: Play) -> TaskDistribution:
    if given.sent:
        sys.path.insert(0, str(Path(given.job).parent))  # modules beside the job are sent with it
        tasks: TaskDistribution = pickle.loads(Path(given.sent).read_bytes())
        return tasks
    return load_job(given.job, dict(given.overrides)).experiment.tasks


def _keep(tasks: TaskDistribution, given: Play) -> None:
    import cloudpickle

    module = sys.modules[f"distmeta_job_{Path(given.job).stem}"]
    cloudpickle.register_pickle_by_value(module)
    try:
        sent = cloudpickle.dumps(tasks)
    except Exception as error:
        raise TaskContractError(
            f"{type(tasks).__name__} cannot be sent to a worker: {first_sentence(str(error))}. Make locks, open files "
            "and generators where they are used."
        ) from error
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    Path(given.keep).write_bytes(sent)


def _facts(tasks: TaskDistribution) -> dict[str, Any]:
    """Who draws, and where that is defined; also an installed package's code is then the user's."""
    drawn_by: Any = next((getattr(tasks, n) for n in ("get_batch", "function") if hasattr(tasks, n)), type(tasks).draw)
    owner = inspect.getmodule(drawn_by)
    file = getattr(owner, "__file__", None) or ""
    own = file and not (getattr(owner, "__name__", "") + ".").startswith("distmeta.")
    folder = os.path.dirname(file)
    package = file if folder.endswith("-packages") else os.path.join(folder, "")
    try:
        definition = [inspect.getsourcefile(drawn_by), inspect.getsourcelines(drawn_by)[1]] if own else None
    except (OSError, TypeError):
        definition = None
    return {
        "distribution": str(tasks.describe().get("name", type(tasks).__name__)),
        "definition": definition,
        "package": package if own else None,
        "limited": [split for split in tasks.splits if tasks.count(split) is not None],
        "groups": [[key(ref) for ref in group] for group in _groups(tasks, 1)],
    }


def _groups(tasks: TaskDistribution, count: int, later: int = 0) -> list[list[TaskRef]]:
    """Refs by split and step, ``count`` in each."""
    groups = []
    for split in tasks.splits:
        limit = tasks.count(split)
        for step in (0, 1, 2) if split == "meta_train" else (0,):
            groups.append([TaskRef(split, step + later, i) for i in range(min(count, limit or count))])
    return groups


def _draw(tasks: TaskDistribution, given: Play, tracer: Tracer, result: dict[str, Any]) -> None:
    episodes: dict[TaskRef, Episode] = {}
    groups = _groups(tasks, given.tasks)
    if given.plan == "backwards":
        for others in _groups(tasks, 3, later=40):
            tasks.episodes(others, given.seed)
        groups = [group[::-1] for group in groups[::-1]]
    size = {"alone": 1, "pairs": 2}.get(given.plan, given.tasks)
    for time in (0, 1) if given.plan == "twice" else (0,):
        for group in groups:
            for start in range(0, len(group), size):
                chunk = group[start : start + size]
                stacked = tasks.episodes(chunk, given.seed)
                for position, ref in enumerate(chunk):
                    episodes[ref] = Episode(*(part[position] for part in stacked))
        digests = {key(ref): _digest(episode) for ref, episode in episodes.items()}
        result["again" if time else "digests"] = digests
    result["continuous"] = any(
        part.is_floating_point() and bool((part != part.round()).any()) for part in next(iter(episodes.values()))
    )
    if given.sharing:
        result["rows"] = shared_rows(tasks, episodes)
        names = [ref for group in _groups(tasks, _NAMES_PER_TASK * given.tasks) for ref in group if not ref.step]
        result["classes"] = shared_classes(tasks, names, given.seed)
    if given.look_for.startswith("class "):
        with tracer.on("draw"):
            tasks.class_names(_ref(given.trace[0]), given.seed)


def _digest(episode: Episode) -> str:
    sha = hashlib.sha256()
    for part in episode:
        sha.update(f"{part.dtype}{tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _ref(text: str) -> TaskRef:
    split, step, index = text.split("/")
    named: dict[str, Split] = {split: split for split in SPLITS}
    return TaskRef(named[split], int(step), int(index))


def _wanted(given: Play) -> Callable[[Any], bool] | None:
    """A test whether a variable holds the row or the class that is looked for; ``None`` where nothing is."""
    kind, _, name = given.look_for.partition(" ")
    if kind == "class":
        return lambda value: value == name if isinstance(value, str) else _is_list_with(value, name)
    return (lambda value: has_row(value, given.look_for, given.most_rows)) if given.look_for else None


def _is_list_with(value: Any, name: str) -> bool:
    return isinstance(value, list | tuple) and len(value) <= 64 and any(isinstance(v, str) and v == name for v in value)


@contextmanager
def _around_each_draw(
    tasks: TaskDistribution, given: Play, tracer: Tracer, around: Surroundings | None
) -> Iterator[None]:
    """Reset what is pinned before every draw, and trace the refs that are to be traced."""
    kind, traced = type(tasks), {_ref(text) for text in given.trace}
    draw_ref, at_step = kind.draw_ref, kind.at_step

    def drawing(self: TaskDistribution, ref: TaskRef, seed: int) -> Episode:
        if around is not None:
            around.reset()
        with tracer.on("draw") if ref in traced else nullcontext():
            return draw_ref(self, ref, seed)

    def stepping(self: TaskDistribution, split: Split, random: Any) -> TaskDistribution:
        if around is not None:
            around.reset()
        return at_step(self, split, random)

    own = {name: vars(kind).get(name) for name in ("draw_ref", "at_step")}
    kind.draw_ref, kind.at_step = drawing, stepping  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for name, method in own.items():
            if method is None:
                delattr(kind, name)
            else:
                setattr(kind, name, method)


def _error(error: Exception, user: UserCode) -> dict[str, Any]:
    """Kind and text of an error, and the last line of the user's code that it went through."""
    place, behind = None, error
    while behind.__cause__ is not None and isinstance(behind.__cause__, Exception):
        behind = behind.__cause__
    trace = behind.__traceback__
    while trace is not None:
        if (file := user.file(trace.tb_frame)) is not None:
            place = (file, trace.tb_lineno)
        trace = trace.tb_next
    message = error.message if isinstance(error, DistmetaError) else f"{type(error).__name__}: {error}"
    return {"message": message, "place": place}
