"""Verdicts about made-up repetitions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distmeta.bench import Record, Row, compare
from distmeta.errors import ConfigError

QUIET = (0.99, 1.0, 1.01, 1.0, 1.005, 0.995)


def record(speed=100.0, *, limit=None, spread=QUIET, **changes):
    rows = (Row({"threads": 1, "chunk": 8}, tuple(speed * x for x in spread)),)
    limits = () if limit is None else (Row({"threads": 1}, tuple(limit * x for x in QUIET)),)
    made = Record("inner-loop", "made up", {"learner.kind": "MAML"}, "tasks/s", "higher", rows, limits)
    return replace(made, **changes)


def verdict(now, then, **options):
    (change,) = compare(now, then, **options)
    return change.word


def test_a_clear_change_is_told():
    assert verdict(record(150), record(100)) == "faster"
    assert verdict(record(100), record(150)) == "slower"
    (change,) = compare(record(150), record(100))
    assert (change.then, change.now, change.ratio) == (pytest.approx(100), pytest.approx(150), pytest.approx(1.5))
    assert change.interval[0] < 1.5 < change.interval[1]
    assert change.to_dict()["verdict"] == "better"


def test_what_lies_within_the_tolerance_or_the_noise_is_no_clear_change():
    assert verdict(record(103), record(100)) == "no clear difference"
    assert verdict(record(103), record(100), tolerance=0.0) == "faster"
    noisy = (0.5, 1.6, 0.8, 1.3, 0.6, 1.5)
    assert verdict(record(120, spread=noisy), record(100, spread=noisy)) == "no clear difference"


def why(now, then, **options):
    (change,) = compare(now, then, **options)
    assert change.to_dict()["why"] == change.why
    assert (change.verdict == "no clear difference") == bool(change.why)
    return change.why


def test_no_clear_difference_has_a_reason():
    one, two = (record(200, spread=QUIET[:n]) for n in (1, 2))
    assert why(record(100), two) == "only 2 repetitions then, 3 needed"
    assert why(one, record(100)) == "only 1 repetition now, 3 needed"
    assert why(one, two) == "only 2 repetitions then and 1 repetition now, 3 needed"
    assert why(record(101), record(100), tolerance=0.1) == "interval within the tolerance of 10 %"
    noisy = (0.5, 1.6, 0.8, 1.3, 0.6, 1.5)
    assert why(record(120, spread=noisy), record(100)) == "interval reaches into the tolerance of 5 %"
    then = record(100, limit=70)
    assert why(record(50, limit=35), then) == "machine busier: its limit is 0.50 times that of then"
    assert why(record(200, limit=140), then) == "machine quieter: its limit is 2.00 times that of then"
    assert why(record(200), record(100)) == why(record(50, limit=70), then) == ""


def test_two_repetitions_tell_nothing():
    few, enough = QUIET[:2], QUIET[:3]
    assert verdict(record(200, spread=few), record(100)) == "no clear difference"
    assert verdict(record(200), record(100, spread=few)) == "no clear difference"
    assert verdict(record(200, spread=enough), record(100, spread=enough)) == "faster"


def test_less_is_better_where_the_record_has_it_so():
    then, now = (record(x, unit="MiB", better="lower", kind="memory") for x in (100, 150))
    assert (verdict(now, then), verdict(then, now)) == ("larger", "smaller")
    assert compare(now, then)[0].ratio == pytest.approx(1 / 1.5)
    seconds = [replace(one, kind="startup") for one in (then, now)]
    assert verdict(seconds[1], seconds[0]) == "slower"


def test_a_busier_machine_makes_nothing_slower():
    """All is half as fast, the matrix products too: that is the machine. Half as fast at the same limit is the code."""
    assert verdict(record(50, limit=35), record(100, limit=70)) == "no clear difference"
    assert verdict(record(50, limit=70), record(100, limit=70)) == "slower"
    assert verdict(record(50), record(100, limit=70)) == "slower"
    # Faster than then on a machine that was slower then, by as much.
    assert verdict(record(100, limit=70), record(50, limit=35)) == "no clear difference"
    # Faster although the machine is slower.
    assert verdict(record(150, limit=35), record(100, limit=70)) == "faster"


def test_another_kind_or_case_is_refused():
    with pytest.raises(
        ConfigError, match=r"--against old.json is of `distmeta bench memory`; expected one of `bench in"
    ):
        compare(record(), record(kind="memory"), name="old.json")
    with pytest.raises(ConfigError, match=r"has learner.kind=Reptile and now MAML; expected the same"):
        compare(record(), record(case={"learner.kind": "Reptile"}))


def test_a_setting_that_did_not_exist_then_is_not_compared():
    now = record(150, case={"learner.kind": "MAML", "learner.gradient": "unroll"})
    assert verdict(now, record(100)) == "faster"


def test_variants_are_matched_by_name():
    then = record()
    both = replace(then, rows=(*then.rows, Row({"threads": 1, "chunk": 16}, QUIET)))
    assert len(compare(both, then)) == len(compare(then, both)) == 1
    other = replace(then, rows=(Row({"threads": 2, "chunk": 8}, QUIET),))
    with pytest.raises(ConfigError, match="no variant in common: it has threads 2, chunk 8; now there is threads 1"):
        compare(then, other)
