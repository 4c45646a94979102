"""The audit of a job: which draws are compared, what they prove, and which line is behind a difference."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from distmeta.auditing.findings import Finding, Line, Proof
from distmeta.auditing.interpreter import Interpreters
from distmeta.auditing.play import Play
from distmeta.auditing.surroundings import KNOWN_VARIABLES
from distmeta.auditing.tracing import Event, Place, divergence
from distmeta.auditing.variations import ENVIRONMENT, ORDER, OWN_GENERATOR, SAME, TITLES, VARIATIONS, Variation
from distmeta.errors import TaskContractError, listed
from distmeta.experiment.job import Job

Result = dict[str, Any]


_AGREE, _CLASSES, _ROWS = "no two refs agree", "no class in two splits", "no row in two splits or both halves"


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    Args:
        distribution: name of the distribution.
        proofs: each property, in the order of the report.
        remarks: what was seen and changes nothing.
    """

    distribution: str
    proofs: tuple[Proof, ...]
    remarks: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that is wrong; empty for a distribution whose tasks are functions of their refs."""
        return tuple(finding for proof in self.proofs for finding in proof.findings)

    def require(self) -> None:
        """Raise if something is wrong.

        Raises:
            TaskContractError: names the first lines.
        """
        if self.findings:
            wrong = listed(f"a task {f.what}{'' if f.line is None else f' ({f.line})'}" for f in self.findings)
            raise TaskContractError(
                f"Tasks of {self.distribution} are no pure functions of their refs: {wrong}. {self.findings[0].fix}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        proofs = [
            {
                "title": p.title,
                "holds": p.holds,
                "evidence": p.evidence,
                "follows_from": None if p.follows is None else f"{p.follows.file}:{p.follows.number}",
            }
            for p in self.proofs
        ]
        return {
            "distribution": self.distribution,
            "ok": not self.findings,
            "proofs": proofs,
            "findings": [finding.to_dict() for finding in self.findings],
            "remarks": list(self.remarks),
        }


def audit(job: Job, *, tasks: int = 8, interpreters: Interpreters | None = None) -> Audit:
    """Prove that the tasks of a job are functions of their refs, or name the lines that make them depend on more.

    Args:
        job: a loaded job file.
        tasks: tasks that are drawn per split and step, each about 20 times; three steps of ``meta_train``.
        interpreters: fresh processes to draw in; two are started when left out.

    Raises:
        TaskContractError: the tasks cannot be drawn at all.
        RuntimeFailure: a process died.
    """
    with ExitStack() as stack:
        where = interpreters or stack.enter_context(Interpreters())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _Auditor(job, tasks, where, folder).run()


class _Auditor:
    def __init__(self, job: Job, tasks: int, where: Interpreters, folder: Path) -> None:
        self._where, self._folder = where, folder
        experiment = job.experiment
        # One task of every split is drawn line by line: a read that changes nothing is a remark.
        first = tuple(f"{split}/0/0" for split in experiment.tasks.splits)
        self._first = Play(
            str(job.path), dict(job.overrides), experiment.seed, tasks, user=(str(job.path),), trace=first
        )
        specs = [experiment.tasks.spec_of(split) for split in experiment.tasks.splits]
        self._most_rows = max(spec.support + spec.queries for spec in specs)
        self._found: list[Finding] = []
        self._remarks: list[str] = []
        self._follows: dict[str, Line] = {}
        self._base: Result = {}

    def run(self) -> Audit:
        sent = str(self._folder / "tasks.pickle")
        (self._base,) = self._where.play([("first", replace(self._first, sharing=True, keep=sent))])
        if error := self._base["error"]:
            at = f" ({Line.at(tuple(error['place']))})" if error["place"] else ""
            raise TaskContractError(f"The tasks cannot be drawn: {error['message']}{at}")
        if self._base["package"]:
            self._first = replace(self._first, user=(*self._first.user, self._base["package"]))
        self._first = replace(self._first, trace=())
        elsewhere = self._folder / "elsewhere"
        elsewhere.mkdir()
        plays = {name: replace(self._first, **v.changes) for name, v in VARIATIONS.items()}
        plays["worker"] = replace(plays["worker"], sent=sent, folder=str(elsewhere))
        asked = {name: (VARIATIONS[name].interpreter, one) for name, one in plays.items()}
        asked["seed"] = ("first", replace(self._first, seed=self._first.seed + 1))
        if variables := self._variables():
            asked["variables"] = ("first", replace(plays["environment"], environment=variables))
        results = dict(zip(asked, self._where.play(asked.values()), strict=True))
        for name, variation in VARIATIONS.items():
            self._compare(name, variation, asked[name], results[name])
        if variables:
            self._compare_variables(asked["variables"], results["variables"], variables)
        count = len(self._base["digests"])
        evidence = dict.fromkeys(TITLES, f"{count} tasks")
        evidence |= {SAME: f"{count} tasks, twice and in another process"}
        evidence |= {ORDER: f"{count} tasks alone, in twos, in {self._first.tasks}s, backwards and after others"}
        evidence[_AGREE] = self._agree(results["seed"])
        evidence[_CLASSES] = self._classes()
        evidence[_ROWS] = self._rows()
        proofs = tuple(
            Proof(title, text, tuple(f for f in self._found if f.proof == title), self._follows.get(title))
            for title, text in evidence.items()
        )
        self._remark_on_reads()
        return Audit(self._base["distribution"], proofs, tuple(self._remarks))

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def _compare(self, name: str, variation: Variation, asked: tuple[str, Play], result: Result) -> None:
        if error := result["error"]:
            place = error["place"] and tuple(error["place"])
            if not (variation.symptom and self._found):
                line = Line.at(place) if place else None
                self._add(variation.proof, f"fails: {error['message']}. It {variation.seen}", variation.fix, line)
            return
        base = self._base["digests"]
        differing = [ref for ref, was in base.items() if result["digests"][ref] != was]
        differing += [ref for ref, now in result["again"].items() if ref not in differing and now != base[ref]]
        if not differing:
            return
        line, used = self._locate(differing[0], variation, asked)
        known = self._known(line, variation)
        if known is not None:
            self._follows.setdefault(variation.proof, known)
            return
        what = f"{variation.seen}: {len(differing)} of {len(base)} tasks differ, such as {differing[0]}"
        self._add(variation.proof, what, variation.fix, line, used)

    def _known(self, line: Line | None, variation: Variation) -> Line | None:
        """The line of an earlier finding that a difference follows from; ``None`` if it is a finding of its own."""
        same = next((f.line for f in self._found if line and f.line and _place(f.line) == _place(line)), None)
        if same is not None:
            explained = bool(variation.reads) and any(read.startswith(variation.reads) for read in same.reads)
            unstable = any(f.proof == SAME for f in self._found)  # differs anyway, whatever else is changed
            return None if explained and not unstable else same
        nowhere = line is None or _place(line) == self._definition()
        return next((f.line for f in self._found if f.line), None) if variation.symptom and nowhere else None

    def _locate(self, ref: str, variation: Variation, asked: tuple[str, Play]) -> tuple[Line | None, Line | None]:
        """The line behind a difference, and the one that uses what it made."""
        where, one = asked
        first = self._first if not one.natural else replace(one, plan="chunks")
        traced = [("first", replace(first, trace=(ref,))), (where, replace(one, trace=(ref,)))]
        ours, theirs = self._where.play(traced)
        reads = [(what, (file, number)) for result in (ours, theirs) for what, file, number, _ in result["reads"]]
        found = divergence(_events(ours), _events(theirs))
        if found is not None:
            return Line.at(found[0], reads), found[1] and Line.at(found[1], reads)
        for what, place in reads:
            if what.startswith(variation.reads) and variation.reads:
                return Line.at(place, reads), None
        definition = self._definition()
        return (Line(*definition) if definition[0] else None), None

    def _definition(self) -> Place:
        """Where the function that draws begins; an empty name if the user has none."""
        found = self._base["definition"]
        return (found[0], found[1]) if found else ("", 0)

    def _variables(self) -> dict[str, str]:
        """Other values for the variables that the user's code reads: numbers, or such that are not set."""
        found = {}
        environment = self._where.environment
        for what, *place, _ in self._base["reads"]:
            name = what.removeprefix("os.environ['")[:-2]
            if what.startswith("os.environ[") and name not in KNOWN_VARIABLES:
                value = environment.get(name)
                if value is None or value.lstrip("-").isdigit():
                    found[name] = "1" if value is None else str(int(value) + 1)
                else:
                    at = Line.at((place[0], place[1]))
                    self._remarks.append(f"reads {what}, which was not changed; workers may have another value: {at}")
        return found

    def _compare_variables(self, asked: tuple[str, Play], result: Result, variables: Mapping[str, str]) -> None:
        if result["error"]:
            self._remarks.append(f"cannot be drawn with other values of {listed(variables)}")
        elif not any(f.proof in (ENVIRONMENT, SAME) for f in self._found):
            self._compare("environment", VARIATIONS["environment"], asked, result)

    # -- names ---------------------------------------------------------------------------------------------------------

    def _agree(self, other_seed: Result) -> str:
        """Whether different refs have different tasks, and the same ref another one with another seed."""
        limited, continuous = self._base["limited"], self._base["continuous"]
        drawn = {
            tuple(ref.split("/")): d for ref, d in self._base["digests"].items() if ref.split("/")[0] not in limited
        }
        if not drawn:
            return "not compared: the number of tasks is limited (count)"
        wrong, rare = [], 0
        for position, name in enumerate(("split", "step", "index")):
            pairs = [
                (a, b)
                for a, b in combinations(drawn, 2)
                if all((x == y) != (i == position) for i, (x, y) in enumerate(zip(a, b, strict=True)))
            ]
            equal = sum(drawn[a] == drawn[b] for a, b in pairs)
            if equal and (continuous or equal > len(pairs) / 2):
                wrong.append(f"{equal} of {len(pairs)} pairs that differ in {name}")
            rare += equal
        equal = sum(other_seed["digests"].get("/".join(ref)) == digest for ref, digest in drawn.items())
        if equal and (continuous or equal > len(drawn) / 2):
            wrong.append(f"{equal} of {len(drawn)} tasks under another seed")
        if wrong:
            definition = self._definition()
            self._add(
                _AGREE,
                f"agrees with another: {', '.join(wrong)}",
                f"{OWN_GENERATOR} If a split has a limited number of tasks, return it from count(split).",
                Line(*definition) if definition[0] else None,
            )
        elif rare:
            self._remarks.append(f"{rare} pairs of tasks agree: they hold whole numbers only, and few of them")
        return f"{len(drawn)} refs, and under another seed"

    def _classes(self) -> str:
        found = self._base["classes"]
        if found["splits"]:
            first, pairs = found["splits"][0], [_pair(shared, "classes") for shared in found["splits"]]
            self._add(
                _CLASSES,
                f"has classes of another split: {', '.join(pairs)}, such as {first['name']!r}",
                "Give every class to one split.",
                self._look(f"class {first['name']}", first["refs"][1]),
            )
        return f"{found['compared']} classes" if found["compared"] else "not compared: no names (class_names)"

    def _rows(self) -> str:
        found = self._base["rows"]
        if found["repeated"] and (found["halves"] or found["splits"]):
            self._remarks.append(
                f"{found['repeated']} of {found['compared']} rows are twice in one half of a task: rows that halves or "
                "splits share are taken for chance"
            )
            return f"{found['compared']} rows"
        if found["halves"]:
            first, of_all = found["halves"][0], f"{len(found['halves'])} of {len(self._base['digests'])} tasks"
            self._add(
                _ROWS,
                f"has support rows among its queries: {of_all}, such as {first['refs'][0]} with {first['count']}",
                "Draw support and query rows together, without replacement, and divide them.",
                self._look(first["row"], first["refs"][0]),
            )
        if found["splits"]:
            first, pairs = found["splits"][0], [_pair(shared, "rows") for shared in found["splits"]]
            self._add(
                _ROWS,
                f"has rows of another split: {', '.join(pairs)}, such as a row of {' and of '.join(first['refs'])}",
                "Divide the rows (or the classes) among the splits before anything is drawn.",
                self._look(first["row"], first["refs"][1]),
            )
        return f"{found['compared']} rows" if found["compared"] else "not compared: sequences"

    def _look(self, what: str, ref: str) -> Line | None:
        """The first line of the user's code after which a variable holds a row or a class."""
        (result,) = self._where.play(
            [("first", replace(self._first, look_for=what, trace=(ref,), most_rows=self._most_rows))]
        )
        if result["found"]:
            return Line.at(tuple(result["found"]))
        definition = self._definition()
        return Line(*definition) if definition[0] else None

    # -- the report ----------------------------------------------------------------------------------------------------

    def _add(self, proof: str, what: str, fix: str, line: Line | None, used: Line | None = None) -> None:
        self._found.append(Finding(proof, what, fix, line, used))

    def _remark_on_reads(self) -> None:
        known = {_place(line) for f in self._found for line in (f.line, f.used) if line}
        for what, file, number, phase in self._base["reads"]:
            if (
                phase == "draw"
                and (file, number) not in known
                and not what.startswith(("os.environ", "os.listdir", "os.scandir"))
            ):
                self._remarks.append(f"reads {what}, and the bytes do not depend on it: {Line(file, number)}")


def _pair(shared: Mapping[str, Any], things: str) -> str:
    splits = " and ".join(ref.split("/")[0] for ref in shared["refs"])
    return f"{shared['count']} {things} are in {splits}"


def _place(line: Line) -> Place:
    return line.file, line.number


def _events(result: Result) -> list[Event]:
    return [
        Event(phase, tuple(where), tuple(after), values, tuple(names))
        for phase, where, after, values, names in result["events"]
    ]


__all__ = ["Audit", "audit"]
