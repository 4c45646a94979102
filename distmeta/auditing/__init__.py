"""Prove that tasks are functions of their refs: draw them again in other surroundings and compare the bytes.

:func:`audit` draws the same tasks in forks of two fresh interpreters. Everything that a task must not depend on is
pinned (clock, global generators, environment, order of files, threads ...), and one thing at a time is changed
(:mod:`~distmeta.auditing.surroundings`). Bytes decide. Where they differ, both draws are run again line by line
(:mod:`~distmeta.auditing.tracing`): the first line of the user's code after which a variable differs is the one named.
"""

from distmeta.auditing.audit import Audit, audit
from distmeta.auditing.findings import Finding, Line, Proof
from distmeta.auditing.interpreter import Interpreters

__all__ = ["Audit", "Finding", "Interpreters", "Line", "Proof", "audit"]
