"""Typed, frozen settings, checked on construction; ``--set key=value`` overrides; did-you-mean."""

from __future__ import annotations

import copy
import difflib
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

import pydantic
import yaml

from distmeta.errors import ConfigError


class Config(pydantic.BaseModel):
    """Base of all settings: keyword-only, frozen, unknown keys refused.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or is out of range.

    Example:
        >>> class Inner(Config):
        ...     inner_lr: pydantic.PositiveFloat = 0.4
        >>> Inner(inner_lr=0.1)
        Inner(inner_lr=0.1)
        >>> Inner(iner_lr=0.1)
        Traceback (most recent call last):
        ...
        distmeta.errors.ConfigError: Inner has no setting 'iner_lr'. Did you mean 'inner_lr'? Settings: inner_lr.
    """

    former_names: ClassVar[Mapping[str, str]] = {}
    """Former to present name of each renamed setting. Job files and runs of older versions are read through it."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**self.renamed(values))
        except pydantic.ValidationError as error:
            raise ConfigError(_describe(type(self), error)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed, checked again."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**values, **self.renamed(changes)})

    @classmethod
    def present_name(cls, name: str) -> str:
        """The present name of a setting given by its present or its former name; other names unchanged."""
        return name if name in cls.model_fields else cls.former_names.get(name, name)

    @classmethod
    def renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` by present names.

        Raises:
            ConfigError: one setting is given by its former and by its present name.

        Example:
            >>> class Outer(Config):
            ...     former_names = {"rate": "lr"}
            ...     lr: float = 0.1
            >>> Outer(rate=0.2)
            Outer(lr=0.2)
        """
        present: dict[str, Any] = {}
        for name, value in values.items():
            key = cls.present_name(name)
            if key in present:
                former = next(old for old in values if old != key and cls.present_name(old) == key)
                raise ConfigError(
                    f"{cls.__name__} is given {key!r} and its former name {former!r}; expected one of them. Leave "
                    f"{former!r} out."
                )
            present[key] = value
        return present

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, by setting name."""
        return self.model_dump(mode="json")


class Configurable:
    """A component (a learner, a task distribution) that is built from keyword settings.

    A subclass declares its settings in a nested ``Config``; an instance holds them as ``self.config``.

    Example:
        >>> class Scale(Configurable):
        ...     class Config(Config):
        ...         factor: float = 2.0
        >>> Scale(factor=3).config.factor
        3.0
    """

    Config: ClassVar[type[Config]] = Config
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let ``help()`` and editors show the settings with their defaults, in place of ``**settings``."""
        super().__init_subclass__(**kwargs)
        named = [p for p in list(inspect.signature(cls.__init__).parameters.values())[1:] if p.kind != p.VAR_KEYWORD]
        taken = {p.name for p in named}
        settings = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=inspect._empty if field.is_required() else field.default
            )
            for name, field in cls.Config.model_fields.items()
            if name not in taken
        ]
        cls.__signature__ = inspect.Signature([*named, *settings])  # type: ignore[attr-defined]

    def __init__(self, **settings: Any) -> None:
        self.config = self._checked(lambda: self.Config(**settings))

    def with_config(self, **changes: Any) -> Self:
        """A copy of this component with some settings changed, checked again."""
        clone = copy.copy(self)
        clone.config = self._checked(lambda: self.config.replace(**changes))
        return clone

    def _checked(self, make: Callable[[], Any]) -> Any:
        """Name the component in errors: its nested ``Config`` is not what users typed."""
        try:
            return make()
        except ConfigError as error:
            own = rf"\b{self.Config.__name__}(?=[ :])"
            raise ConfigError(re.sub(own, type(self).__name__, error.message)) from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.config)})"


_POSITIVE = pydantic.TypeAdapter(pydantic.PositiveInt)


def _number_or_bounds(value: Any) -> int | tuple[int, int]:
    try:
        if not isinstance(value, list | tuple):
            return _POSITIVE.validate_python(value)
        numbers = [_POSITIVE.validate_python(one) for one in value]
    except pydantic.ValidationError as error:
        hint = ", or bounds such as [5,20]" if isinstance(value, str) else ""
        raise ValueError(error.errors()[0]["msg"] + hint) from None
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise ValueError("expected a number, or a lower and an upper bound such as [5, 20]")
    low, high = numbers
    return low if low == high else (low, high)


NumberOrBounds = Annotated[int | tuple[int, int], pydantic.BeforeValidator(_number_or_bounds)]
"""A number above 0, or its lower and upper bound, both included: ``5`` or ``(5, 20)``; ``[5,20]`` with ``--set``."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, or an empty string.

    Example:
        >>> did_you_mean("shot", ["ways", "shots"])
        " Did you mean 'shots'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``["tasks.ways=20", "seed=7"]`` as ``{"tasks.ways": 20, "seed": 7}``; values are read as YAML scalars or lists.

    A list has brackets: ``tasks.train_ways=[5,20]``, in quotes for shells in which brackets are patterns.

    Raises:
        ConfigError: an assignment has no ``=`` or names a key twice.

    Example:
        >>> parse_overrides(["tasks.ways=20", "outer.lr=1e-3", "learner.adapt=head"])
        {'tasks.ways': 20, 'outer.lr': 0.001, 'learner.adapt': 'head'}
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {assignment!r} has no '='; expected key=value, for example --set tasks.ways=20.")
        if key in overrides:
            raise ConfigError(f"--set names {key!r} twice; give it once.")
        overrides[key] = _scalar(text)
    return overrides


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted keys.

    Example:
        >>> flatten({"outer": {"lr": 0.1}, "seed": 0})
        {'outer.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key=old and now has new`` for every leaf of two nested mappings that differs.

    Example:
        >>> differences({"outer": {"lr": 0.1}}, {"outer": {"lr": 0.2}})
        ['outer.lr=0.1 and now has 0.2']
    """
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}={a} and now has {b}")
    return found


def digest(values: Any) -> str:
    """sha256 over the canonical JSON of ``values``, as 64 hex digits."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def canonical_json(values: Any) -> str:
    """One text for equal values: sorted keys, no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # YAML 1.1 reads 1e-3 as a string; people mean a number (in quotes, they mean a string).
    return float(text) if re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\s*", text) else value


def _describe(kind: type[Config], error: pydantic.ValidationError) -> str:
    """pydantic's findings in the project's own form, one sentence each."""
    sentences = []
    for finding in error.errors():
        key = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            known = list(kind.model_fields)
            sentences.append(
                f"{kind.__name__} has no setting {key!r}.{did_you_mean(key, known)} Settings: {', '.join(known)}."
            )
        elif finding["type"] == "missing":
            sentences.append(f"{kind.__name__} needs the setting {key!r}; give it a value.")
        else:
            expected = finding["msg"].removeprefix("Value error, ")
            where = f"{kind.__name__} setting {key!r} is {finding['input']!r}: " if key else f"{kind.__name__}: "
            field = kind.model_fields.get(str(finding["loc"][0])) if finding["loc"] else None
            usual = None if field is None or field.is_required() else field.default
            fix = f" Change it; the default is {usual}." if isinstance(usual, str | int | float) else ""
            sentences.append(f"{where}{expected[0].lower()}{expected[1:]}.{fix}" if expected else where)
    return " ".join(sentences)
