"""What every algorithm learned is carried elsewhere: an export, loaded in another process, gives the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import distmeta
from distmeta.errors import CheckpointMismatch, ConfigError, DistmetaError, FileDamaged
from distmeta.learners import find_learners
from distmeta.serving.exported import requirements
from distmeta.serving.sealed import SealedFolder

pytestmark = pytest.mark.usefixtures("one_thread")

# Beside the job file: what it is made of.
PARTS = '''
import os
import numpy as np
import torch
import distmeta
from distmeta.learners import find_learners
from deeper import WAYS, DIM


def clusters(random, split):
    centres = np.zeros((WAYS, DIM))
    centres[:, :2] = 2 * random.normal(size=(WAYS, 2))
    def half(n):
        y = np.repeat(np.arange(WAYS), n)
        return centres[y] + random.normal(size=(len(y), DIM)), y
    return (*half(2), *half(2))


class Recalled(distmeta.TaskDistribution):
    """Two patterns in random order, the label of the one before beside each."""
    spec = distmeta.TaskSpec((5,), 2, "sequence", 0, 6)
    fingerprint = "0" * 64

    def draw(self, split, random):
        labels, before = random.permutation(np.repeat([0, 1], 3)), np.zeros((6, 2))
        before[np.arange(1, 6), labels[:-1]] = 1.0
        x = np.concatenate([random.normal(size=(2, 3))[labels], before], 1)
        return distmeta.Episode.sequence(torch.from_numpy(x).float(), torch.from_numpy(labels))

    def baseline(self, episodes):
        return {"baseline_accuracy": torch.full((len(episodes.query_x),), 0.5)}


def experiment(kind, settings):
    learner = find_learners()[kind]
    tasks = distmeta.FunctionTasks(clusters)
    network = distmeta.mlp((8,), norm="layer", head=learner.model_kind != "encoder")
    if learner.model_kind == "set":
        network = distmeta.table_transformer(width=8, heads=2, layers=1)
    if learner.model_kind == "sequence":
        memory = {"size": 8, "slots": 6, "width": 4}
        network = distmeta.mann(reads=1, **memory) if kind == "MANN" else distmeta.ntm(**memory)
        tasks = Recalled() if kind == "MANN" else distmeta.CopyTask(bits=3, length=2, min_length=2, max_length=2)
    return distmeta.Experiment(
        learner=learner(network, **settings), tasks=tasks,
        outer=distmeta.Outer(iterations=2, meta_batch_size=2),
        evaluation=distmeta.Evaluation(every=0, test_tasks=2), name=kind.lower(),
    )


class Centred(torch.nn.Module):
    """What pretraining has counted, as a buffer."""
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        return x - self.mean


def frozen():
    """A pretrained encoder that does not learn, read from a file where there is one."""
    encoder = torch.nn.Sequential(torch.nn.Linear(DIM, 8), Centred(), torch.nn.Tanh())
    if weights := os.environ.get("ENCODER_WEIGHTS"):
        encoder.load_state_dict(torch.load(weights))
    encoder.requires_grad_(False)
    model = torch.nn.Sequential(encoder.eval(), torch.nn.Linear(8, 4))
    return distmeta.Experiment(
        learner=distmeta.ProtoNet(model), tasks=distmeta.FunctionTasks(clusters),
        outer=distmeta.Outer(iterations=2, meta_batch_size=2),
        evaluation=distmeta.Evaluation(every=0, test_tasks=2), name="frozen",
    )
'''
VARIANTS = {
    **{name: (name, {}) for name in find_learners()},
    "Koch": ("Siamese", {"form": "koch"}),
    "FullContext": ("MatchingNet", {"full_context": True, "features": 8}),
    "FirstOrder": ("MAML", {"first_order": True, "inner_steps": 3}),
}
NAMES = [*VARIANTS, "Frozen"]

# In a process that has never seen the jobs, in a folder where nothing is.
ELSEWHERE = """
import json, sys
import numpy as np
import torch
import distmeta
torch.set_num_threads(1)
for name, place in json.load(open(sys.argv[1])).items():
    given, found = dict(np.load(f"{place}/given.npz")), {}
    predictor = distmeta.load(f"{place}/export")
    if "sequence" in given:
        found["outputs"] = predictor.run(given["sequence"])
    else:
        fast = predictor.adapt(given["support"], given["labels"].tolist())
        kept = distmeta.AdaptedModel.load(f"{place}/adapted")
        for key, model in {"fast": fast, "kept": kept}.items():
            found[key], found[f"{key} labels"] = model.logits(given["query"]), model.predict(given["query"])
    np.savez(f"{place}/found.npz", **found)
assert not {"ray", "mlflow", "typer"} & set(sys.modules)
"""


@dataclass(frozen=True)
class Carried:
    """An export, what a predictor of the run itself gave here, and what another process found."""

    folder: Path
    here: dict[str, np.ndarray]
    elsewhere: dict[str, np.ndarray]

    @property
    def export(self) -> Path:
        return self.folder / "export"


@pytest.fixture(scope="module")
def carried(tmp_path_factory) -> dict[str, Carried]:
    root = tmp_path_factory.mktemp("carried")
    weights = {"0.weight": torch.randn(8, 6), "0.bias": torch.randn(8), "1.mean": torch.randn(8)}
    torch.save(weights, root / "encoder.pt")
    here: dict[str, dict[str, np.ndarray]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCODER_WEIGHTS", str(root / "encoder.pt"))
        patch.setattr(sys, "path", list(sys.path))
        for name in NAMES:
            here[name] = _train(root / name, name)
    (root / "places.json").write_text(json.dumps({name: str(root / name) for name in NAMES}))
    (root / "empty").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(distmeta.__file__).parents[1])}
    environment.pop("ENCODER_WEIGHTS", None)
    command = [sys.executable, "-W", "error", "-c", ELSEWHERE, str(root / "places.json")]
    done = subprocess.run(
        command, cwd=root / "empty", env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert not list((root / "empty").iterdir())
    return {name: Carried(root / name, here[name], dict(np.load(root / name / "found.npz"))) for name in NAMES}


def _train(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Train, export, remove the job's own folder; returns what the run's predictor gives."""
    job = folder / "job"
    job.mkdir(parents=True)
    made = "frozen()" if name == "Frozen" else "experiment({!r}, {!r})".format(*VARIANTS[name])
    (job / "one.py").write_text(f"import parts\n\nexperiment = parts.{made}\n")
    (job / "parts.py").write_text(PARTS)
    (job / "deeper.py").write_text("WAYS, DIM = 3, 6\n")
    distmeta.meta_train(distmeta.load_job(job / "one.py"), run_dir=folder / "run")
    shutil.rmtree(job)
    predictor = distmeta.load(folder / "run")
    distmeta.export(folder / "run", folder / "export")
    random, given, here = np.random.default_rng(0), {}, {}
    if predictor.spec.kind == "sequence":
        given["sequence"] = random.integers(0, 2, (7, *predictor.spec.input_shape)).astype(np.float32)
        here["outputs"] = predictor.run(given["sequence"])
    else:
        given["support"], given["query"] = random.normal(size=(2, 6, 6)).astype(np.float32)
        given["labels"] = np.array(["bee", "ant", "fly"] * 2)
        fast = predictor.adapt(given["support"], given["labels"].tolist())
        fast.save(folder / "adapted")
        here["logits"], here["labels"] = fast.logits(given["query"]), fast.predict(given["query"])
    np.savez(folder / "given.npz", **given)
    return here


@pytest.mark.parametrize("name", NAMES)
def test_another_process_computes_the_same_bits(carried, name):
    one = carried[name]
    if "outputs" in one.here:
        assert np.array_equal(one.elsewhere["outputs"], one.here["outputs"])
        return
    for key in ("fast", "kept"):
        assert np.array_equal(one.elsewhere[key], one.here["logits"]), key
        assert one.elsewhere[f"{key} labels"].tolist() == one.here["labels"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_pickle_and_every_file_is_listed(carried, name):
    folder = carried[name].export
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    listed = set(SealedFolder.open(folder, fix="").names)
    assert files == listed | {"manifest.json"}
    assert {"code/job.py", "code/parts.py", "code/deeper.py", "README.md", "requirements.txt"} <= files
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".py",
        ".md",
        ".txt",
    }
    assert ("frozen.safetensors" in files) == (name in ("Frozen", "NTM"))  # NTM's first memory is a buffer


def test_frozen_weights_and_statistics_go_along(carried):
    fixed = SealedFolder.open(carried["Frozen"].export, fix="").tensors("frozen.safetensors")
    trained = torch.load(carried["Frozen"].folder.parent / "encoder.pt")
    assert {name.removeprefix("0."): value.tolist() for name, value in fixed.items()} == {
        name: value.tolist() for name, value in trained.items()
    }


def test_a_learned_task_is_not_left_out_in_silence(carried):
    """``distmeta.load`` gave a learner that had forgotten the task; the card in the folder told to do so."""
    folder = carried["MAML"].folder / "adapted"
    with pytest.raises(ConfigError, match=r"holds a learned task, .* distmeta\.AdaptedModel\.load\(") as caught:
        distmeta.load(folder)
    fast = distmeta.AdaptedModel.load(folder)
    assert f'("{folder}")' in str(caught.value)
    assert repr(fast) == "AdaptedModel(MAML, 'maml', classes 'ant', 'bee', 'fly' from 6 examples)"
    assert fast.predictor.adapt(np.zeros((2, 6), np.float32), ["x", "y"]).classes_.tolist() == ["x", "y"]
    card = (folder / "README.md").read_text()
    assert "One task is learned already: `AdaptedModel(MAML, 'maml', classes 'ant', 'bee', 'fly'" in card
    assert 'fast = distmeta.AdaptedModel.load(".")' in card
    assert "distmeta.load" not in card
    assert 'distmeta.load(".")' in (carried["MAML"].export / "README.md").read_text()


def test_damage_of_any_file_is_named(carried, tmp_path):
    shutil.copytree(carried["Frozen"].folder / "adapted", tmp_path / "a")
    read = [path for path in (tmp_path / "a").rglob("*") if path.is_file() and path.suffix not in (".md", ".txt")]
    assert distmeta.AdaptedModel.load(tmp_path / "a").classes_.tolist() == ["ant", "bee", "fly"]
    assert len(read) == 10
    for path in read:
        content = path.read_bytes()
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        with pytest.raises(FileDamaged, match=path.name.replace(".", r"\.")):
            distmeta.AdaptedModel.load(tmp_path / "a")
        path.unlink()
        if path.parent.name != "task":
            with pytest.raises(FileDamaged, match=path.name.replace(".", r"\.")):
                distmeta.load(tmp_path / "a")
        with pytest.raises(DistmetaError, match=path.name.replace(".", r"\.")):
            distmeta.AdaptedModel.load(tmp_path / "a")
        path.write_bytes(content)


def test_a_module_that_was_laid_beside_the_job_is_not_imported(carried, tmp_path):
    shutil.copytree(carried["MAML"].export, tmp_path / "e")
    for place in ("code/json.py", "code/deeper/__init__.py", "numpy.py", "code/__pycache__/parts.cpython-311.pyc"):
        (tmp_path / "e" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "e" / place).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    distmeta.load(tmp_path / "e")
    assert not (tmp_path / "ran").exists()


def test_another_model_than_the_trained_one_is_refused(carried, tmp_path):
    exported = distmeta.load(carried["MAML"].export).exported()
    parts = exported.code["parts.py"]
    code = {**exported.code, "parts.py": parts.replace(b"mlp((8,)", b"mlp((9,)")}
    with pytest.raises(CheckpointMismatch, match="other names or shapes"):
        replace(exported, code=code).learner()
    code = {**exported.code, "parts.py": b"open('absent.pt')\n" + parts}
    with pytest.raises(ConfigError, match=r"absent\.pt(.|\n)*Read a file only if it exists"):
        replace(exported, code=code).learner()


def test_nothing_is_overwritten_and_a_run_of_python_has_no_export(carried, tmp_path):
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        distmeta.export(carried["MAML"].folder / "run", carried["MAML"].export)
    distmeta.meta_train(
        distmeta.Experiment(
            learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
            tasks=distmeta.Sinusoids(),
            outer=distmeta.Outer(iterations=1, meta_batch_size=2),
            evaluation=distmeta.Evaluation(every=0, test_tasks=2),
        ),
        run_dir=tmp_path / "run",
    )
    with pytest.raises(ConfigError, match="started from Python"):
        distmeta.export(tmp_path / "run", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_requirements_are_pinned_with_those_of_the_job():
    lines = requirements({"job.py": b"import sklearn.svm\nfrom . import x\nimport parts, os", "a.txt": b"import rich"})
    assert all("==" in line and "+" not in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"torch", "numpy", "scikit-learn"} <= names
    assert not {"rich", "ray", "mlflow"} & names
