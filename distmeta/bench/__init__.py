"""Measurements of one machine: how fast, how much memory, how much is lost; and whether a change made it slower.

A benchmark is built, which checks its settings, and then run for some seconds: its variants take turns, so that
whatever else the machine does hits all of them alike. Its :class:`~distmeta.bench.record.Record` keeps every
repetition, and can be compared with an earlier one.
"""

from distmeta.bench.benchmark import Benchmark
from distmeta.bench.comparing import Change, compare
from distmeta.bench.record import Record, Row

__all__ = ["Benchmark", "Change", "Record", "Row", "compare"]
