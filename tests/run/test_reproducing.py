"""Protocol cards say what the job files say; a run by a card is one by the job; time boxes; honest verdicts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distmeta.data import from_arrays
from distmeta.experiment import cards
from distmeta.experiment.cards import CARDS, OMNIGLOT, Card, Published, find
from distmeta.files import read_record, write_record
from distmeta.run.reproducing import Compared, changes, reproduce
from distmeta.run.time_box import Pace
from distmeta.types import TaskSpec
from helpers import run_command

JOBS = Path(__file__).parents[2]
SPEC = TaskSpec((1, 28, 28), 5, "classification", 5, 5)


# -- cards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_card_is_complete(card):
    assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", card.name)
    assert re.search(r"\d{4}", card.paper)
    assert card.published
    assert all(p.mean <= 1 for p in card.published if "accuracy" in p.metric)
    assert json.loads(json.dumps(card.to_dict()))["name"] == card.name
    assert changes(replace(card, dataset=None), card.experiment()) == ()


def test_names_are_unique():
    assert len({card.name for card in CARDS}) == len(CARDS)


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"seed": 3, "runtime.chunk_size": 2, "evaluation.test_tasks": 10, "name": "x"}, ()),
        ({"outer.iterations": 5}, ()),  # told apart: shorter, not another protocol
        ({"learner.inner_lr": 0.3}, ("learner.inner_lr=0.3 (card: 0.4)",)),
        ({"tasks.rotations": "none", "outer.lr": 0.01}, ("tasks.rotations=none (card: all)", "outer.lr=0.01")),
        ({"evaluation.patience": 3}, ("evaluation.patience=3 (card: None)",)),
    ],
)
def test_what_changes_the_protocol(overrides, changed):
    card = replace(find("maml/omniglot-5w1s"), dataset=None)
    found = changes(card, card.experiment().with_overrides(overrides))
    assert len(found) == len(changed)
    for sentence in changed:
        assert any(one.startswith(sentence) for one in found)


@pytest.mark.parametrize(("name", "split"), [("omniglot", "vinyals"), ("omniglot", "other"), ("glyphs", "vinyals")])
def test_the_dataset_is_a_part_of_the_protocol(name, split, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (32, 1, 28, 28)).astype(np.uint8)
    from_arrays(x, np.arange(32) // 4, tmp_path / "d", splits="50/25/25", name=name)
    manifest = read_record(tmp_path / "d" / "manifest.json")
    write_record(tmp_path / "d" / "manifest.json", manifest | {"provenance": {"split": split}})
    card = find("protonet/omniglot-5w1s")
    found = changes(card, card.experiment().with_overrides({"tasks.data": str(tmp_path / "d")}))
    assert (found == ()) == ((name, split) == ("omniglot", "vinyals"))
    assert found == () or found[0].startswith(f"data={name} with split {split} and images [1, 28, 28] (card: omni")


# -- comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "ci95", "theirs", "verdict"),
    [
        (0.95, 0.003, Published("accuracy", 0.987, 0.004), "below"),
        (0.984, 0.003, Published("accuracy", 0.987, 0.004), "no clear difference"),
        (0.9823, 0.003, Published("accuracy", 0.987, 0.004), "no clear difference"),  # 0.47 of 0.5
        (0.9823, 0.003, Published("accuracy", 0.987), "below"),
        (0.999, 0.001, Published("accuracy", 0.987, 0.004), "above"),
    ],
)
def test_the_difference_has_the_interval_of_two_independent_means(ours, ci95, theirs, verdict):
    found = Compared(theirs, ours, ci95)
    assert found.verdict == verdict
    assert found.difference == pytest.approx(ours - theirs.mean)
    assert found.difference_ci95**2 == pytest.approx(ci95**2 + (theirs.ci95 or 0) ** 2)


# -- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return run_command


LOCAL = ("--backend", "local", "--no-tracking")
SMALL = ("--set", "evaluation.test_tasks=8", "--set", "evaluation.validation_tasks=8")


def test_the_list_and_one_card(run):
    listed = run("reproduce").out
    for card in CARDS:
        assert re.search(rf"(?m)^{card.name} +.*{re.escape(card.published[0].text)}", listed)
    assert [row["name"] for row in json.loads(run("reproduce", "--json").out)] == [card.name for card in CARDS]
    shown = run("reproduce", "reptile/omniglot-5w1s", "--show").out
    for text in (
        "1,028 / 172 / 423",
        "test_inner_steps=50",
        "97.68 % ± 0.04",
        "95.39 % ± 0.09",
        "jobs/reptile_omniglot.py",
        "note",
    ):
        assert text in shown
    assert not Path("runs").exists()


def test_a_run_by_a_card_is_the_run_of_its_job(run):
    steps = ("--set", "outer.iterations=3")
    said = run("reproduce", "maml/sinusoid", *LOCAL, *SMALL, *steps, "--run-dir", "a", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    job = run("train", JOBS / "jobs" / "maml_sinusoid.py", *LOCAL, *SMALL, *steps, "--run-dir", "b", "--json")
    assert found["params_sha256"] == json.loads(job.out)["params_sha256"]
    assert read_record(Path("a/reproduction.json")) == found
    assert Path("a/job.py").read_text() == (JOBS / "jobs" / "maml_sinusoid.py").read_text()
    assert run("inspect", "a", "--json").out.count('"name": "maml-sinusoid"') == 1
    (row,) = found["results"]
    test = json.loads(Path("a/result.json").read_text())
    assert (row["ours"], row["ours_ci95"], row["published"]) == (test["loss"], test["loss_ci95"], 0.25)
    assert not found["comparable"]
    assert found["verdict"].startswith("shorter than the card: 3 of 20,000 iterations")
    # Like any other run, it can be judged and resumed.
    assert run("evaluate", "a", "--backend", "local", "--tasks", 4).code == 0
    resumed = run("resume", "a", *LOCAL, "--set", "outer.iterations=4", "--json")
    assert json.loads(resumed.out)["step"] == 4


def test_a_changed_protocol_is_not_comparable(run):
    said = run("reproduce", "maml/sinusoid", *LOCAL, *SMALL, "--set", "tasks.shots=5", "--set", "outer.iterations=2")
    assert said.code == 0, said.err
    assert "not comparable: tasks.shots=5 (card: 10)" in said.out
    assert re.search(r"(?m)^  published   0\.2500 ", said.out)
    assert re.search(r"(?m)^  ours        \d+\.\d{4} ± \d+\.\d{4}$", said.out)
    assert re.search(r"(?m)^  difference  \+\d+\.\d{4} ± \d+\.\d{4}  above$", said.out)


def test_a_time_box_fixes_the_iterations_before_they_begin(run):
    said = run("reproduce", "maml/sinusoid", *LOCAL, *SMALL, "--minutes", "0.1", "--run-dir", "a", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    record = read_record(Path("a/run.json"))
    assert 1 <= found["iterations"] < 20_000
    assert (
        record["iterations"] == record["step"] == record["job"]["overrides"]["outer.iterations"] == found["iterations"]
    )
    assert found["pace"]["seconds_per_step"] > 0
    assert (found["minutes"], found["card_iterations"]) == (0.1, 20_000)
    assert found["verdict"].startswith("shorter than the card")


def test_the_time_box_is_said(run, monkeypatch):
    monkeypatch.setattr("distmeta.run.reproducing.measure", lambda *a, **k: Pace(step=100.0, task=0.0))
    said = run("reproduce", "maml/sinusoid", *LOCAL, *SMALL, "--minutes", "10")
    assert re.search(r"measured 100 s per step: 5 iterations in 10 minutes \(the card has 20,000\)", said.err)


def test_a_full_length_run_is_comparable(run, monkeypatch):
    short = Card(
        name="test/short",
        paper="Nobody 2031",
        job="maml_sinusoid",
        overrides={"outer.iterations": 2, "evaluation.every": 0},
        dataset=None,
        network="mlp",
        published=(Published("loss", 0.25), Published("baseline_loss", 4.0, 1.0)),
    )
    monkeypatch.setattr(cards, "CARDS", (*CARDS, short))
    found = reproduce("test/short", overrides={"evaluation.test_tasks": 8}, minutes=1)
    assert found.verdict == "comparable: the card's protocol at its full length"
    assert [c.published.metric for c in found.compared] == ["loss", "baseline_loss"]
    assert found.iterations == found.planned == 2


def test_a_card_that_is_another_experiment_than_the_paper_s_is_not_comparable(run, monkeypatch):
    other = replace(find("maml/sinusoid"), name="test/other", differs="noise on the points")
    monkeypatch.setattr(cards, "CARDS", (*CARDS, other))
    assert "noise on the points: not comparable" in run("reproduce", "test/other", "--show").out
    said = run("reproduce", "test/other", *LOCAL, *SMALL, "--set", "outer.iterations=1", "--json")
    found = json.loads(said.out)
    assert (found["comparable"], found["verdict"]) == (False, "not comparable: noise on the points")


def test_a_number_that_the_tasks_do_not_have_is_said(run, monkeypatch):
    asking = Card(
        "test/asks", "Nobody 2031", "maml_sinusoid", None, "mlp", (Published("loss", 0.25), Published("f1", 1.0))
    )
    monkeypatch.setattr(cards, "CARDS", (*CARDS, asking))
    said = run("reproduce", "test/asks", *LOCAL, *SMALL, "--set", "outer.iterations=1")
    assert said.code == 0, said.err
    assert "f1\n  published   1.0000\n  ours        these tasks have no such number\n" in said.out


REFUSED = {
    "maml/omniglot-5w2s": ("no card 'maml/omniglot-5w2s'", "Did you mean 'maml/omniglot-5w1s'", "lists them"),
    "maml/omniglot-5w1s": ("omniglot is not built", "distmeta data build omniglot --out DIR", "--data DIR"),
    "protonet/omniglot-5w1s --data nowhere": ("no dataset 'nowhere'",),
    "maml/sinusoid --set tasks.shot=3": ("Did you mean 'tasks.shots'",),
    "maml/sinusoid --set learner.inner_lr=-1": ("inner_lr",),
    "maml/sinusoid --data somewhere": ("no such setting",),
    "maml/sinusoid --run-dir full": ("The run directory full exists already", "another --run-dir"),
    "maml/sinusoid --minutes 1 --run-dir full": ("The run directory full exists already",),
}


@pytest.mark.parametrize("line", REFUSED)
def test_one_message_names_the_fix_before_anything_starts(line, run, monkeypatch):
    opened = []
    monkeypatch.setattr("distmeta.run.place.Place._start", lambda *a: opened.append(a))
    Path("full").mkdir()
    Path("full", "mine").write_text("")
    said = run("reproduce", *line.split(), *LOCAL, "--json")
    assert (said.code, said.out, opened) == (1, "", [])
    for fragment in REFUSED[line]:
        assert re.search(fragment, said.err), said.err
    assert [path.name for path in Path().iterdir()] == ["full"]


def test_too_little_time_is_said(run, monkeypatch):
    monkeypatch.setattr("distmeta.run.reproducing.measure", lambda *a, **k: Pace(step=20.0, task=0.0))
    said = run("reproduce", "maml/sinusoid", *LOCAL, "--minutes", "0.1")
    assert said.code == 1
    assert "--minutes 0.1 is too short" in said.err
    assert "Give more minutes" in said.err
    assert not Path("runs").exists()


def test_other_data_in_the_card_is_said(run, digits_dir):
    words = ("--data", digits_dir, "--set", "outer.iterations=1", "--set", "tasks.ways=3", "--set", "tasks.queries=2")
    train = ("--set", "tasks.train_ways=3", "--set", "tasks.train_queries=2", "--set", "evaluation.test_tasks=4")
    model = ("--set", "tasks.rotations=none")
    said = run("reproduce", "maml/omniglot-5w1s", *LOCAL, *words, *train, *model)
    assert said.code == 0, said.err
    assert "data=digits with split" in said.out
    assert f"images [1, 8, 8] (card: {OMNIGLOT.name} with split vinyals" in said.out
