"""`distmeta predict` and `distmeta export`: a table, JSON and a picture; what cannot be is named early."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distmeta
from distmeta.run.place import Place
from helpers import run_command

PICTURES = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.ProtoNet(distmeta.conv4(width=4, head=False)),
    tasks=distmeta.FewShot(data={data!r}, ways=3, shots=1, queries=2),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""
ROWS = """
import numpy as np
import distmeta

@distmeta.task_distribution
def blobs(random, split):
    centres = 3 * random.normal(size=(2, 3))
    def half(n):
        y = np.repeat([0, 1], n)
        return centres[y] + random.normal(size=(2 * n, 3)), y
    return (*half(3), *half(3))

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.1),
    tasks=blobs,
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""
SINES = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=distmeta.Sinusoids(shots=4, queries=4),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""


@pytest.fixture(scope="module")
def place(digits_dir, tmp_path_factory) -> Path:
    """Three runs, pictures of two classes and tables."""
    root = tmp_path_factory.mktemp("use")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        for name, text in {"pictures": PICTURES.format(data=str(digits_dir)), "rows": ROWS, "sines": SINES}.items():
            (root / f"{name}.py").write_text(text)
            distmeta.meta_train(distmeta.load_job(root / f"{name}.py"), run_dir=root / name)
    random = np.random.default_rng(0)
    half = np.repeat([[0, 200]], 4, 1)
    patterns = {"cat [x]": np.tile(half, (8, 1)), "dög": np.tile(half.T, (1, 8))}
    for label, pattern in patterns.items():
        for kind, count in (("support", 2), ("query", 3)):
            (root / kind / label).mkdir(parents=True)
            for n in range(count):
                noisy = (pattern + random.integers(0, 50, (8, 8))).astype(np.uint8)
                Image.fromarray(noisy).resize((32, 32), Image.Resampling.NEAREST).save(root / kind / label / f"{n}.png")
    (root / "train.csv").write_text("x,y,z,label\n9,9,9,high\n8,9,9,high\n-9,-9,-9,low\n-9,-8,-9,low\n")
    (root / "new.csv").write_text("z,y,x\n9,9,9\n-9,-9,-9\n")
    (root / "points.csv").write_text("x,y\n0.1,0.5\n0.2,0.6\n1.0,0.2\n2,0.1\n")
    (root / "words.csv").write_text("x,y\n1,high\n")
    (root / "at.csv").write_text("x\n0.5\n")
    return root


def test_a_table_an_accuracy_and_a_picture(place, tmp_path):
    done = run_command(
        *("predict", "pictures", "--support", "support", "--query", "query", "--picture", tmp_path / "out.png"),
        folder=place,
    )
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["input", "label", "probability", "runner-up", "true"]
    assert sum("cat [x]/" in line for line in lines) == 3
    assert lines[-2] == "accuracy  100.0 % (6 of 6)"
    assert lines[-1].startswith("picture")
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 1350)


def test_json_has_every_probability_and_is_what_python_gives(place):
    words = ("--support", "support", "--query", place / "query" / "dög", "--json")
    done = run_command("predict", "pictures", *words, folder=place)
    support = sorted((place / "support").rglob("*.png"))
    fast = distmeta.load(place / "pictures").adapt(support, [path.parent.name for path in support])
    query = sorted((place / "query" / "dög").glob("*.png"))
    expected = fast.predict_proba(query)
    found = done.json
    assert (found["classes"], found["support"]) == (["cat [x]", "dög"], 4)
    assert "accuracy" not in found  # loose pictures: nobody knows their labels
    for row, answer in enumerate(found["answers"]):
        assert answer["input"] == query[row].name
        assert [answer["probabilities"][label] for label in found["classes"]] == expected[row].tolist()
        assert answer["label"] == "dög"


def test_tables_and_an_export(place, tmp_path):
    done = run_command("export", "rows", "--out", tmp_path / "e", folder=place)
    assert (done.code, done.out) == (0, f"export    {tmp_path / 'e'}\n")
    for source in ("rows", tmp_path / "e"):
        done = run_command("predict", source, "--support", "train.csv", "--query", "new.csv", folder=place)
        assert done.code == 0, done.err
        cells = [line.split() for line in done.out.splitlines()]
        assert [row[2] for row in cells[1:]] == ["high", "low"]


def test_a_regression_gives_values(place):
    done = run_command("predict", "sines", "--support", "points.csv", "--query", "at.csv", "--json", folder=place)
    (answer,) = done.json["answers"]
    fast = distmeta.load(place / "sines").adapt(
        np.array([[0.1], [0.2], [1.0], [2.0]]), np.array([[0.5], [0.6], [0.2], [0.1]], np.float32)
    )
    assert answer == {"input": "line 2", "value": float(fast.predict(np.array([[0.5]]))[0, 0])}
    shown = run_command("predict", "sines", "--support", "points.csv", "--query", "at.csv", folder=place)
    assert shown.out.split()[:2] == ["input", "value"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "nix", "--support", "support", "--query", "query"), "no folder nix; expected a run directory"),
        (("predict", "nix", "--support", "query/nix", "--query", "query"), "--support query/nix does not exist"),
        (("predict", "nix", "--support", "support", "--query", "new.csv"), "rows of numbers; expected the same kind"),
        (("predict", "rows", "--support", "support", "--query", "query"), "takes rows of numbers: give CSV files"),
        (("predict", "pictures", "--support", "train.csv", "--query", "new.csv"), "takes pictures: give folders"),
        (
            ("predict", "nix", "--support", "train.csv", "--query", "new.csv", "--picture", "o.png"),
            "rows of numbers, nothing to draw",
        ),
        (
            ("predict", "nix", "--support", "support", "--query", "query", "--picture", "nowhere/o.png"),
            "expected a file in a folder that exists",
        ),
        (("predict", "sines", "--support", "words.csv", "--query", "at.csv"), "the target 'high' is no number"),
        (("export", "rows"), "expected --out DIR, --register NAME, or both"),
        (("export", "rows", "--out", "e", "--alias", "a"), "--alias is for a registered model"),
        (("export", "rows", "--out", "support"), "nothing is overwritten"),
        (("export", "rows", "--register", "a/b"), "is no name for MLflow"),
        (("export", "rows", "--register", "a", "--tracking-uri", "htp://x"), "no store 'htp:...'"),
    ],
)
def test_what_cannot_be_is_named(place, words, message):
    done = run_command(*words, folder=place)
    assert done.code == 1
    assert message in done.err.replace("\n", " ")
    assert done.out == ""


def test_a_run_that_was_cut_short_is_used_with_a_note(place, tmp_path):
    """It answered as if it were done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        job = distmeta.load_job(place / "rows.py")

        def stop(event):
            if event.kind == "step":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            distmeta.meta_train(job, run_dir=tmp_path / "cut", place=Place(watch=stop))
    text = "step 0 of 2, the run is not finished"
    asked = run_command("predict", tmp_path / "cut", "--support", "train.csv", "--query", "new.csv", folder=place)
    assert (asked.code, f"note: {text}" in asked.err) == (0, True)
    exported = run_command("export", tmp_path / "cut", "--out", tmp_path / "out", "--json", folder=place)
    assert (exported.code, f"note: {text}" in exported.err) == (0, True)
    assert f"**Note: {text}.**" in (tmp_path / "out" / "README.md").read_text()
    assert text in repr(distmeta.load(tmp_path / "out"))
    evaluated = run_command("evaluate", tmp_path / "cut", "--backend", "local", "--tasks", 4, folder=place)
    assert f"note: {text}" in evaluated.err + evaluated.out
    whole = run_command("predict", place / "rows", "--support", "train.csv", "--query", "new.csv", folder=place)
    assert "note:" not in whole.err


def test_columns_that_the_support_examples_lack_are_ignored_with_a_note(place, tmp_path):
    (tmp_path / "more.csv").write_text("weight,z,y,label,x\n1,9,9,high,9\n2,-9,-9,low,-9\n")
    words = ("predict", "rows", "--support", "train.csv", "--json")
    more = run_command(*words, "--query", tmp_path / "more.csv", folder=place)
    known = run_command(*words, "--query", "new.csv", folder=place)
    assert "which are ignored: weight\n" in more.err
    answers = [[one["probabilities"] for one in done.json["answers"]] for done in (more, known)]
    assert answers[0] == answers[1]


def test_examples_of_one_class_are_answered_with_a_note(place, tmp_path):
    """Everything is that class then, with 100 %: no answer at all."""
    (tmp_path / "one.csv").write_text("x,y,z,label\n9,9,9,high\n8,9,9,high\n")
    words = ("rows", "--support", tmp_path / "one.csv", "--query", "new.csv")
    done = run_command("predict", *words, folder=place)
    assert done.code == 0
    assert "note: the support set has one class, 'high'" in done.err
    assert (
        "note:" not in run_command("predict", "rows", "--support", "train.csv", "--query", "new.csv", folder=place).err
    )
