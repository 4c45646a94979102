"""Comparison of a benchmark with an earlier one of the same case: faster, slower, or no clear difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distmeta.bench.record import Record, Row
from distmeta.bench.statistics import FEWEST, Better, ratio_of_medians
from distmeta.bench.wording import counted
from distmeta.errors import ConfigError, listed

Verdict = Literal["better", "worse", "no clear difference"]

_WORDS: dict[str, Mapping[Verdict, str]] = {
    "memory": {"better": "smaller", "worse": "larger", "no clear difference": "no clear difference"}
}
_FASTER: Mapping[Verdict, str] = {
    "better": "faster",
    "worse": "slower",
    "no clear difference": "no clear difference",
}


@dataclass(frozen=True)
class Change:
    """One variant, now and then.

    Args:
        at: the variant.
        then: median of the earlier record.
        now: median of this one.
        ratio: how many times as good the new median is: above 1 faster, or smaller.
        interval: 95 % interval of the ratio.
        verdict: by the interval and the tolerance.
        word: the verdict for people.
        why: the reason why no difference is clear, in a few words; empty where one is.
    """

    at: Mapping[str, Any]
    then: float
    now: float
    ratio: float
    interval: tuple[float, float]
    verdict: Verdict
    word: str
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def require_comparable(kind: str, case: Mapping[str, Any], then: Record, name: str) -> None:
    """Raise if an earlier record is of another benchmark or case. A setting that one of them lacks is not compared.

    Args:
        kind: which benchmark is run now.
        case: its settings, by dotted key.
        then: the earlier record.
        name: its file, for the message.

    Raises:
        ConfigError: names what differs.
    """
    if then.kind != kind:
        raise ConfigError(
            f"--against {name} is of `distmeta bench {then.kind}`; expected one of `bench {kind}`. Compare it with "
            f"`distmeta bench {then.kind} --against {name}`."
        )
    # A later version may have settings that did not exist then.
    other = [
        f"{key}={then.case[key]} and now {case[key]}" for key in case if then.case.get(key, case[key]) != case[key]
    ]
    if other:
        raise ConfigError(
            f"--against {name} is of another case: it has {listed(other)}; expected the same settings. Run both with "
            "the same job and --set, or leave --against out."
        )


def compare(now: Record, then: Record, *, tolerance: float = 0.05, name: str = "the earlier record") -> list[Change]:
    """The change of every variant that both records have.

    A change is clear where the whole 95 % interval of the ratio of medians is beyond the tolerance and both sides have
    three repetitions. Where both records have the machine's limit, the ratio of speed to limit must show it as well:
    a machine that is busier than then makes nothing slower.

    Args:
        now: this record.
        then: the earlier one.
        tolerance: smallest relative change that counts.
        name: file of the earlier record, for messages.

    Raises:
        ConfigError: the records are of other kinds or cases, or have no variant in common.
    """
    require_comparable(now.kind, now.case, then, name)
    earlier = {row.name: row for row in then.rows}
    common = [(row, earlier[row.name]) for row in now.rows if row.name in earlier]
    if not common:
        raise ConfigError(
            f"--against {name} has no variant in common: it has {listed(earlier)}; now there is "
            f"{listed(row.name for row in now.rows)}. Measure the same variants."
        )
    words = _WORDS.get(now.kind, _FASTER)
    changes = []
    for row, before in common:
        ratio, low, high = _times_as_good(row.repetitions, before.repetitions, now.better)
        verdict = _verdict((low, high), tolerance)
        why = _too_few(row, before) or (_within(low, high, tolerance) if verdict == "no clear difference" else "")
        limits = now.limit_of(row), then.limit_of(before)
        if not why and limits[0] is not None and limits[1] is not None:
            drift = ratio_of_medians(limits[0].repetitions, limits[1].repetitions)[0]
            if _verdict((low / drift, high / drift), tolerance) != verdict:
                why = f"machine {'busier' if drift < 1 else 'quieter'}: its limit is {drift:.2f} times that of then"
        if why:
            verdict = "no clear difference"
        changes.append(Change(row.at, before.median, row.median, ratio, (low, high), verdict, words[verdict], why))
    return changes


def _too_few(now: Row, then: Row) -> str:
    """Which side has too few repetitions; empty where both have enough."""
    few = [
        f"{counted(len(row.repetitions), 'repetition')} {when}"
        for row, when in ((then, "then"), (now, "now"))
        if len(row.repetitions) < FEWEST
    ]
    return f"only {' and '.join(few)}, {FEWEST} needed" if few else ""


def _within(low: float, high: float, tolerance: float) -> str:
    """How an interval that is not beyond the tolerance lies to it."""
    inside = 1 / (1 + tolerance) <= low and high <= 1 + tolerance
    return f"interval {'within' if inside else 'reaches into'} the tolerance of {100 * tolerance:g} %"


def _times_as_good(now: tuple[float, ...], then: tuple[float, ...], better: Better) -> tuple[float, float, float]:
    return ratio_of_medians(now, then) if better == "higher" else ratio_of_medians(then, now)


def _verdict(interval: tuple[float, float], tolerance: float) -> Verdict:
    low, high = interval
    if low > 1 + tolerance:
        return "better"
    return "worse" if high < 1 / (1 + tolerance) else "no clear difference"
