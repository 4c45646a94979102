"""What is changed from one play to the next, and what a difference means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distmeta.auditing.surroundings import FACTORS

OWN_GENERATOR = (
    "Take every random number from the numpy.random.Generator that the draw is given (for torch: "
    "torch.Generator().manual_seed(int(random.integers(2**63))))."
)
_REF_ALONE = "Let a task depend on its ref alone, not on the other tasks of its chunk or on earlier draws."

SAME, ORDER, WORKER = "same ref, same bytes", "worker count, order of draws", "sent to a worker"
GENERATORS, ENVIRONMENT = "global generators", "environment variables"
CLOCK, RANK, FILES, THREADS, HASH = "time", "rank, worker, machine", "order of files", "thread count", "hash seed"
_GLOBALS = ("Python's global", "numpy's global", "torch's global")
TITLES = (SAME, ORDER, WORKER, GENERATORS, CLOCK, ENVIRONMENT, RANK, FILES, THREADS, HASH)


@dataclass(frozen=True)
class Variation:
    """One play that must give the bytes of the first one, and what it proves.

    Args:
        proof: title of the proof that it belongs to.
        seen: what a difference means.
        fix: the change that removes it.
        changes: how the play differs from the first one.
        interpreter: where it runs.
        symptom: whether a difference has a cause that another variation may name.
        reads: beginnings of the reads that would explain a difference.
    """

    proof: str
    seen: str
    fix: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    interpreter: str = "first"
    symptom: bool = False
    reads: tuple[str, ...] = ()


VARIATIONS: dict[str, Variation] = {
    "control": Variation(
        SAME,
        "differs in another process",
        "Let nothing of the process (its id, addresses of objects) reach a task.",
        reads=("os.getpid",),
    ),
    "generators": Variation(
        GENERATORS, "depends on a global generator", OWN_GENERATOR, {"varied": ("generators",)}, reads=_GLOBALS
    ),
    "entropy": Variation(
        GENERATORS,
        "depends on random numbers of the operating system (a generator without a seed)",
        OWN_GENERATOR,
        {"varied": ("entropy",)},
        reads=("the operating",),
    ),
    "clock": Variation(
        CLOCK,
        "depends on the time",
        "Take nothing from the clock; seed with the generator that the draw is given.",
        {"varied": ("clock",)},
        reads=("time.", "datetime.", "date."),
    ),
    "environment": Variation(
        ENVIRONMENT,
        "depends on the environment",
        "Make what the variable holds a setting of the job (--set): every worker gets the same settings.",
        {"varied": ("environment",)},
        reads=("os.environ",),
    ),
    "rank": Variation(
        RANK,
        "depends on the rank or the worker",
        "Remove the rank: tasks are shared out by their index, and each ref is drawn by one worker alone.",
        {"varied": ("rank",)},
        reads=("os.environ", "torch.utils", "torch.distributed", "socket.", "platform."),
    ),
    "files": Variation(
        FILES,
        "depends on the order in which a folder is listed",
        "Sort the names: sorted(os.listdir(...)), sorted(path.glob(...)).",
        {"varied": ("files",)},
        reads=("os.listdir", "os.scandir"),
    ),
    "threads": Variation(
        THREADS,
        "depends on the number of threads",
        "Compute this with one thread, in float64 and rounded, or with numpy: sums in torch depend on threads.",
        {"varied": ("threads",)},
        reads=("torch.get_num", "os.cpu_count", "os.environ['OMP"),
    ),
    "hash": Variation(
        HASH,
        "depends on the hash seed (order of a set, hash() of a text)",
        "Iterate over sorted(the set), and use hashlib in place of hash().",
        interpreter="second",
    ),
    "alone": Variation(
        ORDER,
        "differs when it is drawn alone",
        _REF_ALONE,
        {"plan": "alone"},
        symptom=True,
    ),
    "pairs": Variation(ORDER, "differs when it is drawn in another chunk", _REF_ALONE, {"plan": "pairs"}, symptom=True),
    "backwards": Variation(
        ORDER,
        "depends on what was drawn before (a state that is kept)",
        "Keep nothing from one draw to the next, or keep it by ref.",
        {"plan": "backwards"},
        symptom=True,
    ),
    "twice": Variation(
        SAME,
        "differs the second time",
        "Keep nothing from one draw to the next, and take every random number from the generator that is given.",
        {"plan": "twice", "natural": True},
        symptom=True,
    ),
    "worker": Variation(
        WORKER,
        "differs where it is sent to a worker, in another folder and process",
        "Let the task distribution carry what it needs: workers have another folder and other variables.",
        {"plan": "backwards", "varied": FACTORS},
        interpreter="second",
        symptom=True,
    ),
}
