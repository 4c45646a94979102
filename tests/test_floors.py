"""Imports go only downwards (the design's section 3), read from the source of every module, functions included."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import distmeta
from distmeta.learners import find_learners

PACKAGE = Path(__file__).parents[1] / "distmeta"
FLOORS = {
    "errors": 0,
    "types": 1,
    "config": 1,
    "seeding": 1,
    "files": 1,
    "occurrences": 1,
    "malloc": 1,
    "uncertainty": 2,
    "calibration": 2,
    "intervals": 3,
    "data": 2,
    "tracking": 2,
    "tasks": 3,
    "models": 3,
    "learners": 4,
    "experiment": 5,
    "figures": 5,
    "runtime": 6,
    "testing": 6,
    "auditing": 6,
    "run": 7,
    "serving": 8,
    "bench": 8,
    "sklearn": 9,
    "__init__": 9,
    "cli": 10,
    "__main__": 11,
}
ONLY_IN = {
    "ray": {"runtime.ray_backend", "runtime.ray_errors", "run.submitting", "serving.service"},
    "mlflow": {"tracking.mlflow_link", "serving.mlflow_model", "serving.mlflow_store"},
    "sklearn": {
        "sklearn.__init__",
        "sklearn.few_shot",
        "sklearn.in_context",
        "sklearn.views",
        "tasks.controls",
        "tasks.table_sets",
    },
}


@functools.cache
def modules():
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def algorithms():
    """Module by class name of every learner in ``learners/``: what subclasses ``MetaLearner``, also indirectly."""
    classes = {
        node.name: (name, {ast.unparse(base).rpartition(".")[2] for base in node.bases})
        for name, path in modules().items()
        if name.startswith("learners.")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    known, found = {"MetaLearner"}, {}
    while new := {name for name, (_, bases) in classes.items() if bases & known} - known:
        known |= new
        found |= {name: classes[name][0] for name in new}
    return found


ALGORITHMS = algorithms()


def only_for_types(test):
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def nodes(tree):
    """Every node that runs; ``if TYPE_CHECKING:`` does not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and only_for_types(node.test):
            for other in node.orelse:
                yield from nodes(ast.Module([other], []))
        else:
            yield node
            yield from nodes(node)


def imports(name, source):
    """Absolute names of what a module imports, ``from distmeta import config`` as ``distmeta.config``."""
    found = set()
    for node in nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["distmeta", *name.split(".")][: -node.level]
                base = ".".join([*here, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def inside(imported):
    """The module of this package that an import means, or ``None``."""
    first, *rest = imported.split(".")
    if first != "distmeta":
        return None
    known = modules()
    while rest and ".".join(rest) not in known and ".".join([*rest, "__init__"]) not in known:
        rest.pop()
    return ".".join(rest) or "__init__"


def part(module):
    return module.split(".")[0]


def violations(name, source):
    """Sentences that say what a module with this name and source must not do."""
    mine, found = part(name), []
    seen = imports(name, source)
    for imported in sorted(seen):
        other = inside(imported)
        if other is not None:
            theirs = part(other)
            if FLOORS[theirs] > FLOORS[mine]:
                found.append(f"{name} imports {other} from a floor above")
            elif FLOORS[theirs] == FLOORS[mine] and mine != theirs:
                found.append(f"{name} imports {other}, its neighbour")
            if mine == "learners" and theirs == "tasks":
                found.append(f"{name} imports {other}: learners know only episodes")
            if mine == "runtime" and other in ALGORITHMS.values():
                found.append(f"{name} imports the algorithm {other}")
        for library, allowed in ONLY_IN.items():
            if imported.split(".")[0] == library and name not in allowed:
                found.append(f"{name} imports {library}")
        if mine == "data" and f"{imported}.".startswith("torch.nn."):
            found.append(f"{name} imports torch.nn")
    for node in nodes(ast.parse(source)):
        if mine == "data" and isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.nn":
            found.append(f"{name} uses torch.nn")
        if mine == "runtime" and isinstance(node, ast.Name | ast.Attribute):
            word = node.id if isinstance(node, ast.Name) else node.attr
            if word in ALGORITHMS:
                found.append(f"{name} names the algorithm {word}")
    return found


def circles(graph):
    """Modules that import each other in a circle, one sentence per circle (Tarjan's strongly connected components)."""
    found, index, low, stack = [], {}, {}, []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            ring = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(ring) > 1 or name in graph.get(name, ()):
                found.append(" <-> ".join(sorted(ring)))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


@functools.cache
def graph():
    """What each module imports of this package."""
    return {
        name: {other for imported in imports(name, path.read_text(encoding="utf-8")) if (other := inside(imported))}
        for name, path in modules().items()
    }


def test_no_modules_import_each_other_in_a_circle():
    assert circles(graph()) == []


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("learners.losses", "learners.maml"),  # two rooms further on, back to where it came from
        ("run.directory", "run.training"),
        ("data.manifest", "data.dataset"),
        ("config", "config"),
    ],
)
def test_a_planted_circle_is_found(name, imported):
    planted = graph() | {name: graph()[name] | {imported}}
    (found,) = circles(planted)
    assert {name, imported} <= set(found.split(" <-> "))


def test_public_names_are_where_the_lazy_loader_looks_for_them():
    """One list is for type checkers, one for the interpreter: they must agree, and with ``__all__``."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and only_for_types(node.test))
    for_types = {alias.name: node.module.removeprefix("distmeta.") for node in block.body for alias in node.names}
    assert for_types == distmeta._HOME
    assert sorted(for_types) == sorted(distmeta.__all__)
    assert dir(distmeta) == sorted([*distmeta.__all__, *distmeta._PACKAGES, "__version__"])
    assert all(getattr(distmeta, name) is not None for name in dir(distmeta))
    with pytest.raises(AttributeError, match="no attribute 'MAMl'"):
        distmeta.MAMl  # noqa: B018


def test_every_module_has_a_floor():
    assert {part(name) for name in modules()} == set(FLOORS)
    assert ALGORITHMS["MAML"] == "learners.maml"
    assert set(ALGORITHMS) == {
        *find_learners(),
        "GradientLearner",
        "DescentLearner",
        "SequenceLearner",
        "MetricLearner",
    }


@pytest.mark.parametrize("name", modules())
def test_imports_go_only_downwards(name):
    assert violations(name, modules()[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("types", "from distmeta.learners.base import MetaLearner", "types imports learners.base from a floor above"),
        ("errors", "def f():\n    from distmeta import config", "errors imports config from a floor above"),
        ("errors", "if True:\n    import distmeta.types", "errors imports types from a floor above"),
        ("learners.maml", "import distmeta", "learners.maml imports __init__ from a floor above"),
        ("learners.maml", "from distmeta import meta_train", "learners.maml imports __init__ from a floor above"),
        ("config", "from distmeta.seeding import rng", "config imports seeding, its neighbour"),
        (
            "tasks.base",
            "from distmeta.models.backbones import mlp",
            "tasks.base imports models.backbones, its neighbour",
        ),
        ("models.backbones", "import distmeta.tasks.base as t", "models.backbones imports tasks.base, its neighbour"),
        ("models.backbones", "from ..tasks import base", "models.backbones imports tasks.base, its neighbour"),
        ("learners.base", "from distmeta.tasks.base import Task", "learners.base imports tasks.base: learners know"),
        (
            "runtime.driver",
            "from distmeta.learners.maml import MAML",
            "runtime.driver imports the algorithm learners.maml",
        ),
        ("runtime.driver", "import distmeta.learners as l; l.maml.MAML", "runtime.driver names the algorithm MAML"),
        ("runtime.driver", "x.learner.NTM", "runtime.driver names the algorithm NTM"),
        ("runtime.pool", "async def f():\n    import ray.util", "runtime.pool imports ray"),
        ("run.training", "from ray import get", "run.training imports ray"),
        ("run.training", "from distmeta.cli import show", "run.training imports cli.show from a floor above"),
        (
            "figures.style",
            "from distmeta.experiment import cards",
            "figures.style imports experiment.cards, its neighbour",
        ),
        (
            "tracking.tracker",
            "import distmeta.data.verifying",
            "tracking.tracker imports data.verifying, its neighbour",
        ),
        (
            "runtime.driver",
            "from distmeta.run.place import Place",
            "runtime.driver imports run.place from a floor above",
        ),
        ("runtime.driver", "import mlflow.tracking as t", "runtime.driver imports mlflow"),
        ("data.dataset", "from torch import nn", "data.dataset imports torch.nn"),
        ("data.dataset", "import torch.nn.functional as F", "data.dataset imports torch.nn"),
        ("data.dataset", "import torch\nx = torch.nn.Linear(1, 2)", "data.dataset uses torch.nn"),
    ],
)
def test_a_planted_violation_is_found(name, source, message):
    assert any(message in sentence for sentence in violations(name, source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from distmeta.types import TaskRef"),
        ("runtime.worker", "from distmeta.learners.base import MetaLearner\nfrom distmeta.tasks import base"),
        ("data.dataset", "import torch\nx = torch.zeros(1)"),
        ("run.training", "from distmeta.run import place\nfrom distmeta.experiment.job import load_job"),
        ("runtime.ray_backend", "import ray"),
        ("run.submitting", "def f():\n    from ray.job_submission import JobSubmissionClient"),
        ("cli", "import rayon, mlflower"),
    ],
)
def test_what_is_allowed_is_allowed(name, source):
    assert violations(name, source) == []


def test_a_local_run_needs_neither_ray_nor_mlflow(tmp_path):
    program = """
import sys
import distmeta
heavy = {"ray", "mlflow"} & set(sys.modules)
assert not heavy, f"import distmeta brings in {heavy}"
result = distmeta.meta_train(
    distmeta.Experiment(
        learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
        tasks=distmeta.Sinusoids(),
        outer=distmeta.Outer(iterations=2, meta_batch_size=4),
        evaluation=distmeta.Evaluation(every=1, validation_tasks=4, test_tasks=4),
    ),
    run_dir=sys.argv[1],
)
heavy = {"ray", "mlflow"} & set(sys.modules)
assert not heavy, f"a local run brings in {heavy}"
print(result.step, result.test.tasks)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "4"]
