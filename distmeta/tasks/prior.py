"""Anyone's generator of tables as a task distribution, whatever global random numbers it draws.

The pre-training codes of tabular in-context learners draw their tables from the global generators of ``random``, numpy
and torch, which are seeded once per process: another number of processes, or a resumed run, has other tables. Here
these generators are seeded from the name of a task before each call, and restored after it, so that a table is a
function of its name. Nothing in the generator needs to be changed.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt

from distmeta import config
from distmeta.config import NumberOrBounds
from distmeta.errors import TaskContractError, foreign, line_of
from distmeta.seeding import rng
from distmeta.tasks.base import TaskDistribution
from distmeta.tasks.global_random import seeded_globals
from distmeta.tasks.prior_batches import Table, read_tables
from distmeta.tasks.tables import every_class_first
from distmeta.types import Episode, Split, TaskRef, TaskSpec

Adapter = Callable[[Any], Any]


class Prior(TaskDistribution):
    """Tables from ``get_batch(batch_size, ...)``, the generator of PFNs, TICL, TabICL, TFM-Playground or of one's own.

    Each table costs one call for one table; where a call has a price of its own, ``tables_per_call`` shares it: tasks
    ``n * k`` to ``n * k + n - 1`` of a step come from one call for ``n``, whichever worker asks (a chunk should be a
    multiple of it, or tables are made twice). The call computes on one thread of torch.

    All tasks of a step have the same shapes. Where a generator draws shapes itself, give the largest, ``rows`` and
    ``features``: smaller tables are filled up with rows of the label -1 and columns of zeros. Better, let the step draw
    them: two whole numbers among ``arguments`` are bounds, as in ``arguments={"seq_len": (50, 200)}``, drawn per step
    of training, and so is ``support``. Validation and test tables have the middle of all bounds.

    Args:
        get_batch: the generator: a function, a bound method, or an object that can be called. Its first argument is the
            number of tables. It must draw all random numbers from the global generators, or from ones that it makes
            from these; keep no state between calls; and start no processes (``n_jobs=1`` for TabICL). :meth:`check`
            draws tables twice and compares.
        adapter: makes ``(x [B, R, F], y [B, R], split)`` of what ``get_batch`` returns, where it has another form than
            those of :mod:`distmeta.tasks.prior_batches`.
        factory: ``get_batch`` is a function without arguments that makes the generator, once in every process: for
            objects that cannot be sent to another process.
        target: ``"class"`` or ``"number"``.
        classes: the most classes of a table.
        arguments: keyword arguments of every call.
        support: rows of the support set, in place of the generator's own split; rows are exchanged so that every class
            is among them. Bounds are drawn per step.
        rows: the most rows of a table, where they differ.
        features: the most columns of a table, where they differ.
        tables_per_call: see above.
        permute_labels: number the classes of every task in random order.
        version: part of the fingerprint; change it when code behind the generator changes.

    Example:
        >>> def get_batch(batch_size, seq_len=20):
        ...     x = torch.randn(batch_size, seq_len, 2)
        ...     return x, (x.sum(-1) > np.random.normal()).long()
        >>> tasks = Prior(get_batch, classes=2, support=(5, 15))
        >>> tasks.check()
        >>> tasks.spec_of("meta_train").support
        15
    """

    class Config(config.Config):
        """The settings of :class:`Prior`."""

        factory: bool = False
        target: str = Field(default="class", pattern="^(class|number)$")
        classes: int | None = Field(default=None, ge=2)
        arguments: dict[str, Any] = Field(default_factory=dict)
        support: NumberOrBounds | None = None
        rows: PositiveInt | None = None
        features: PositiveInt | None = None
        tables_per_call: PositiveInt = 1
        permute_labels: bool = True
        version: str = "1"

    config: Config

    def __init__(self, get_batch: Callable[..., Any], adapter: Adapter | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._given, self._adapter = get_batch, adapter
        # Read once: the file may change while the run goes on, and need not exist on another node.
        self._source = "\0".join(_identity(one) for one in (get_batch, adapter) if one is not None)
        self._made: dict[str, Callable[..., Any]] = {}  # what a factory made in this process; shared with copies
        self._specs: dict[Split, TaskSpec] = {}
        self._of_step: TaskSpec | None = None  # of the tables of one step, once the first is drawn
        self._last: tuple[Any, list[Table]] | None = None  # of the last call, for the tasks that share it
        c = self.config
        if (c.target == "class") != (c.classes is not None):
            raise TaskContractError(
                f"Prior has target='{c.target}' and classes={c.classes}; expected the largest number of classes of a "
                "table for classes, and none for numbers. Set classes=10, say, or target='number' without classes."
            )
        if c.rows is not None and c.target == "number":
            raise TaskContractError(
                f"rows={c.rows} asks for tables that are filled up with rows, but the target is a number, and only "
                "labels can mark such rows. Let the generator make tables of one length, or give it the length by "
                "tasks.arguments."
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}, "_last": None, "_of_step": None}

    def with_config(self, **changes: Any) -> Prior:
        """A copy with some settings changed."""
        clone = super().with_config(**changes)
        clone._specs, clone._made = {}, self._made
        return clone

    @property
    def spec(self) -> TaskSpec:
        """Shapes of the test tables, read off one table where they are not given."""
        return self.spec_of("meta_test")

    def spec_of(self, split: Split) -> TaskSpec:
        """Shapes of the tables of ``split``, the largest where they are drawn per step."""
        if self._of_step is not None:
            return self._of_step
        if split not in self._specs:
            ends = ("low", "high") if split == "meta_train" else ("middle",)
            found = [self._at(end)._spec_of_a_table() for end in ends]
            most = found[-1]
            queries = max(one.support + one.queries for one in found) - min(one.support for one in found)
            support = max(one.support for one in found)
            shape = (max(one.input_shape[0] for one in found),)
            self._specs[split] = TaskSpec(
                shape, most.outputs, most.kind, support, max(queries, most.queries), padded=most.padded
            )
        return self._specs[split]

    @property
    def fingerprint(self) -> str:
        """Digest of the source text of ``get_batch`` and ``adapter``, of the object behind them, and ``version``."""
        return hashlib.sha256(f"{self._source}\0{self.config.version}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The generator's name, as JSON-ready facts."""
        name = _name(self._given)
        return {"name": name, "source": f"generator {name}"}

    def at_step(self, split: Split, random: np.random.Generator) -> Prior:
        """The tables of one outer step: bounds are drawn in training; elsewhere they are at their middle."""
        return self._at("drawn" if split == "meta_train" else "middle", random)

    def draw_ref(self, ref: TaskRef, seed: int) -> Episode:
        """The table that ``ref`` names: one of those of its call."""
        each = self.config.tables_per_call
        if each == 1:
            return super().draw_ref(ref, seed)
        key = (seed, ref.split, ref.step, ref.index // each)
        if self._last is None or self._last[0] != key:
            path = (ref.split, ref.step, "call", ref.index // each)
            self._last = (key, self._call(rng(seed, self.fingerprint, *path), each))
        own = rng(seed, self.fingerprint, ref.split, ref.step, ref.index)
        return self._episode(self._last[1][ref.index % each], own)

    def draw(self, split: Split, random: np.random.Generator) -> Episode:
        """Draw one table: the global generators are seeded from ``random`` and restored.

        Raises:
            TaskContractError: the generator fails, or returns what is no table of the given settings.
        """
        return self._episode(self._call(random, 1)[0], random)

    def check(self) -> None:
        """Draw tables of each split; draw some twice and compare.

        Raises:
            TaskContractError: the same task has other numbers the second time, or two tasks have the same.
        """
        super().check()
        count = max(4, self.config.tables_per_call + 1)
        refs = [TaskRef("meta_train", 0, index) for index in range(count)]
        stacked = self.episodes(refs, 0)
        first = [_digest(stacked.map(lambda part, i=i: part[i])) for i in range(count)]  # type: ignore[misc]
        name = _name(self._given)
        for ref in (refs[-1], refs[1], refs[0]):  # in another order, and alone
            one, other = first[ref.index], _digest(self.episode(ref, 0))
            if one != other:
                raise TaskContractError(
                    f"{name} made another table when the same task was drawn again, with random, numpy.random and "
                    "torch seeded alike; expected the same bytes. It draws from a generator of its own, keeps state "
                    "between calls, reads the time, or starts processes (n_jobs=1 for TabICL). Let it draw from the "
                    "global generators, or make its own from them inside the call.",
                    task_ref=ref,
                )
        if len(set(first)) < count:
            twin = next(ref for ref, one in zip(refs, first, strict=True) if first.count(one) > 1)
            raise TaskContractError(
                f"{name} made the same table for two tasks; expected tables that depend on the global generators. It "
                "seeds itself with a constant, or returns a stored table. Leave the seed inside it out.",
                task_ref=twin,
            )

    # -- one call

    def _at(self, where: str, random: np.random.Generator | None = None) -> Prior:
        """A copy without bounds: ``"low"``, ``"high"``, ``"middle"`` or ``"drawn"``."""

        def number(value: Any) -> Any:
            if not _are_bounds(value):
                return value
            low, high = int(value[0]), int(value[1])
            if random is not None and where == "drawn":
                return int(random.integers(low, high + 1))
            return {"low": low, "high": high, "middle": (low + high) // 2}[where]

        clone = object.__new__(type(self))
        clone.__dict__ |= self.__dict__ | {"_of_step": None, "_last": None}
        clone.config = self.config.model_copy(
            update={
                "arguments": {name: number(value) for name, value in self.config.arguments.items()},
                "support": number(self.config.support),
            }
        )
        return clone

    def _spec_of_a_table(self) -> TaskSpec:
        self._episode(self._call(rng(0, self.fingerprint, "spec"), 1)[0], rng(0, "spec"))
        assert self._of_step is not None
        return self._of_step

    @property
    def _generator(self) -> Callable[..., Any]:
        if not self.config.factory:
            return self._given
        if "generator" not in self._made:
            with seeded_globals(rng(0, self.fingerprint, "factory")):
                self._made["generator"] = self._given()
        return self._made["generator"]

    def _call(self, random: np.random.Generator, count: int) -> list[Table]:
        with seeded_globals(random), torch.no_grad():
            try:
                returned = self._generator(count, **self.config.arguments)
                if self._adapter is not None:
                    returned = self._adapter(returned)
            except Exception as error:
                raise foreign(
                    TaskContractError,
                    f"{_name(self._given)} fails ({line_of(error)}), {type(error).__name__}",
                    error,
                    f"It is called with the number of tables, here {count}, and tasks.arguments="
                    f"{self.config.arguments}. Fix that line or the arguments.",
                ) from error
        return read_tables(returned, count)

    def _episode(self, table: Table, random: np.random.Generator) -> Episode:
        c = self.config
        if table.split is None:
            table = replace(table, split=c.arguments.get("single_eval_pos"))
        if c.target == "class":
            table = self._with_labels(table, random)
        x, y, target, split = table.x.float(), table.y, table.target, table.split
        if c.target == "number":
            y, target = (part.float().reshape(len(part), -1) for part in (y, target))
        if c.support is not None:
            split = c.support if isinstance(c.support, int) else c.support[1]
            if c.target == "class" and split < len(y):
                order = torch.from_numpy(every_class_first(y.numpy(), split))
                x, y, target = x[order], y[order], target[order]
        if split is None or not 0 < split < len(x):
            raise TaskContractError(
                f"{_name(self._given)} made a table of {len(x)} rows, of which {split} are the support set; expected "
                "at least one, and fewer than all. Set tasks.support."
            )
        episode = self._filled(Episode(x[:split], y[:split], x[split:], target[split:]))
        if self._of_step is None:
            self._of_step = self._shapes(episode)
        return episode

    def _with_labels(self, table: Table, random: np.random.Generator) -> Table:
        """With labels from 0 on, without gaps, permuted where that is asked for; without rows of negative labels."""
        name = _name(self._given)
        y, target = (part.reshape(len(part), -1).double().numpy() for part in (table.y, table.target))
        if y.shape[1] != 1 or not np.array_equal(y, y.round()) or not np.array_equal(target, target.round()):
            raise TaskContractError(
                f"{name} made targets of shape {list(table.y.shape)} that are no whole numbers, such as "
                f"{y.flat[int((y != y.round()).argmax())]:g}; expected one label per row. Set tasks.target=number for "
                "regression, or give an adapter that makes classes of them."
            )
        kept = (y[:, 0] >= 0) & (target[:, 0] >= 0)
        if not kept.all() and self.config.rows is None:
            raise TaskContractError(
                f"{name} made {int((~kept).sum())} rows of negative labels; they are left out where tables may differ "
                "in length. Set tasks.rows to the most rows of a table."
            )
        y, target, rows = y[kept, 0], target[kept, 0], torch.from_numpy(np.flatnonzero(kept))
        known = np.unique(np.concatenate([y, target]))
        most = self.config.classes or 0
        if len(known) > most:
            raise TaskContractError(
                f"{name} made a table of {len(known)} classes; expected at most classes={most}. Set "
                f"tasks.classes={len(known)} or more."
            )
        numbers = random.permutation(len(known)) if self.config.permute_labels else np.arange(len(known))
        shown, asked = (
            torch.from_numpy(numbers[np.searchsorted(known, part)].astype(np.int64)) for part in (y, target)
        )
        split = table.split if table.split is None else int(kept[: table.split].sum())
        return Table(table.x[rows], shown, asked, split)

    def _filled(self, episode: Episode) -> Episode:
        """Fill a table up to the largest shapes, where these are given."""
        c = self.config
        rows, columns = episode.support_x.shape[0] + episode.query_x.shape[0], episode.query_x.shape[1]
        for name, seen, most in (("rows", rows, c.rows), ("features", columns, c.features)):
            if most is not None and seen > most:
                raise TaskContractError(
                    f"{_name(self._given)} made a table of {seen} {name}; expected at most tasks.{name}={most}. Set "
                    f"tasks.{name}={seen} or more, or let the generator make smaller ones."
                )
        more = (c.features or columns) - columns
        support, queries = len(episode.support_x), len(episode.query_x)
        if c.rows is not None:  # the support set has any number of them, or the one that was set
            support, queries = (c.rows - 1, c.rows - 1) if c.support is None else (support, c.rows - support)

        def filled(x: torch.Tensor, y: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
            missing = size - len(x)
            return F.pad(x, (0, more, 0, missing)), F.pad(y, (0, missing), value=-1) if missing else y

        support_part = filled(episode.support_x, episode.support_y, support)
        return Episode(*support_part, *filled(episode.query_x, episode.query_y, queries))

    def _shapes(self, episode: Episode) -> TaskSpec:
        c, numbers = self.config, episode.query_y.is_floating_point()
        outputs = int(episode.query_y.shape[1]) if numbers else c.classes or 0
        kind = "regression" if numbers else "classification"
        padded = not numbers and (c.rows is not None or c.features is not None)
        sizes = len(episode.support_x), len(episode.query_x)
        return TaskSpec((episode.query_x.shape[1],), outputs, kind, *sizes, padded=padded)  # type: ignore[arg-type]

    def _require_shapes(self, ref: TaskRef, episode: Episode) -> None:
        expected = self._of_step
        seen = self._shapes(episode)
        if expected is not None and seen != expected:
            rows = "" if self.config.target == "number" else " Or set tasks.rows to the most rows of a table."
            raise TaskContractError(
                f"{_name(self._given)} made tables of other shapes in one step: {_shape_text(expected)} and "
                f"{_shape_text(seen)}; expected equal ones. Set tasks.features to the most columns, and let the step "
                f"draw the rows by tasks.arguments and tasks.support.{rows}",
                task_ref=ref,
            )


def _shape_text(spec: TaskSpec) -> str:
    return f"{spec.support} + {spec.queries} rows of {spec.input_shape[0]} features"


def _are_bounds(value: Any) -> bool:
    two = isinstance(value, tuple | list) and len(value) == 2
    return two and all(isinstance(one, int) and not isinstance(one, bool) for one in value) and value[0] <= value[1]


def _name(function: Any) -> str:
    """What people call a generator: ``PriorDataset.get_batch``."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__name__))


def _identity(function: Any) -> str:
    """Source text of a function, and what is known of the object that it is bound to; the same in every process."""
    if isinstance(function, partial):
        return "\0".join([_identity(function.func), _stable(function.args), _stable(function.keywords)])
    owner = getattr(function, "__self__", None)
    plain = function if hasattr(function, "__qualname__") else type(function)
    try:
        source = inspect.getsource(plain)
    except (OSError, TypeError):  # typed at a prompt, or compiled: there is only a name
        source = _name(function)
    of = owner if owner is not None else (function if plain is not function else None)
    return source if of is None else f"{source}\0{type(of).__qualname__}\0{_stable(of)}"


def _stable(value: Any) -> str:
    """``repr(value)`` without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(episode: Episode) -> str:
    parts: Sequence[torch.Tensor] = tuple(episode)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
