"""The record of a benchmark: every repetition, the case, the machine; as a file that can be read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distmeta.bench.statistics import Better, quartiles
from distmeta.errors import ConfigError, FileDamaged, listed
from distmeta.files import parse_record, write_record

_FORMAT = 1
_KEYS = ("kind", "case", "rows", "format", "title", "unit", "better", "limits", "notes", "machine")


@dataclass(frozen=True)
class Row:
    """One variant.

    Args:
        at: what the variant is, such as ``{"steps": 1, "threads": 1, "chunk": 8}``.
        repetitions: what was measured, in the record's unit.
        figures: numbers that follow from the medians; names that end in ``share`` or ``efficiency`` are fractions.

    Example:
        >>> Row({"chunk": 8}, (50.0, 60.0, 55.0)).median
        55.0
    """

    at: Mapping[str, Any]
    repetitions: tuple[float, ...]
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The variant in words."""
        return ", ".join(f"{key} {value}" for key, value in self.at.items())

    @property
    def median(self) -> float:
        """Median of the repetitions."""
        return self.quartiles[1]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the repetitions."""
        return quartiles(self.repetitions)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, the median and the quartiles among them."""
        low, middle, high = self.quartiles
        return {**asdict(self), "median": middle, "quartiles": [low, high]}


@dataclass(frozen=True)
class Record:
    """The result of one benchmark.

    Args:
        kind: which benchmark, by the name of its command.
        title: what was measured, for people.
        case: the settings that the numbers depend on, by dotted key. Records of equal kind and case can be compared.
        unit: of the repetitions.
        better: whether higher or lower numbers are.
        rows: one for each variant.
        limits: what the machine's matrix products reached in turn with the rows, GFLOP/s by number of threads: the
            limit of what is computed, and a gauge of how busy the machine was.
        notes: definitions and cautions, whole sentences.
        machine: facts of the machine and its software.
    """

    kind: str
    title: str
    case: Mapping[str, Any]
    unit: str
    better: Better
    rows: tuple[Row, ...]
    limits: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)

    def limit_of(self, row: Row) -> Row | None:
        """The machine's limit at the row's number of threads, or the only one; ``None`` where none was measured."""
        if "threads" not in row.at:
            return self.limits[0] if len(self.limits) == 1 else None
        return next((one for one in self.limits if one.at["threads"] == row.at["threads"]), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "format": _FORMAT,
            **{name: getattr(self, name) for name in ("kind", "title", "unit", "better")},
            "case": dict(self.case),
            "rows": [row.to_dict() for row in self.rows],
            "limits": [row.to_dict() for row in self.limits],
            "notes": list(self.notes),
            "machine": dict(self.machine),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The record of what :meth:`to_dict` returned.

        Raises:
            KeyError, TypeError, ValueError: the values are none.
        """
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']}, expected {_FORMAT}")
        if values["better"] not in ("higher", "lower"):
            raise ValueError(f"better is {values['better']!r}")
        return cls(
            **{name: values[name] for name in ("kind", "title", "case", "unit", "better", "machine")},
            rows=_rows(values["rows"]),
            limits=_rows(values["limits"]),
            notes=tuple(values["notes"]),
        )

    def write(self, path: Path) -> None:
        """Write the file that :meth:`read` reads, under its own digest."""
        write_record(path, self.to_dict())

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what :meth:`write` wrote.

        Raises:
            ConfigError: the file is absent, damaged, or no record of a benchmark.
        """
        fix = "Give a file that `distmeta bench ... --out FILE.json` wrote."
        try:
            content = path.read_bytes()
            other = _other_keys(content)
            if other is not None:
                found = f"the keys {listed(other)}" if other else "no keys"
                raise ConfigError(
                    f"{path} is no record of a benchmark: it has {found}; expected {listed(_KEYS)}. {fix}"
                )
            return cls.from_dict(parse_record(content, path, fix=fix))
        except FileDamaged as error:
            raise ConfigError(error.message) from None
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read: {error.strerror}; expected an earlier benchmark. {fix}"
            ) from None
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is no record of a benchmark ({type(error).__name__}: {error}). {fix}") from None


def _other_keys(content: bytes) -> list[str] | None:
    """The keys of a JSON object that is something else; ``None`` of a record, damaged or not, and of no object."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    # Damage may have changed a key: most of them make a record.
    is_other = isinstance(values, dict) and len(values.keys() & set(_KEYS)) <= len(_KEYS) / 2
    return list(values) if is_other else None


def _rows(values: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = tuple(
        Row(dict(one["at"]), tuple(float(value) for value in one["repetitions"]), dict(one["figures"]))
        for one in values
    )
    if not all(row.repetitions and min(row.repetitions) > 0 for row in rows):
        raise ValueError("a row lacks repetitions above 0")
    return rows
