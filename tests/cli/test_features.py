"""What a person reads after a run on vectors: the heads that need no meta-training, and the gain over them."""

import json
import re

from helpers import run_command

JOB = """
import numpy as np
import distmeta

def groups(random, split):
    y = np.repeat(np.arange(3), 2)
    centres = random.normal(size=(3, 6))
    return tuple(part for _ in range(2) for part in (centres[y] + random.normal(size=(6, 6)), y))

experiment = distmeta.Experiment(
    learner=distmeta.ProtoNet(distmeta.adapter(rank=2)),
    tasks=distmeta.FunctionTasks(groups),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=40),
)
"""
NUMBER = r"[+-]?\d+\.\d\d % ± \d+\.\d\d"


def test_the_heads_are_beside_the_result_with_the_paired_gain(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    done = run_command("train", "job.py", "--backend", "local", "--no-tracking", "--run-dir", "run", folder=tmp_path)
    assert done.code == 0, done.err
    for line in (
        rf"  nearest class mean on raw inputs, same tasks +{NUMBER}",
        rf"  logistic probe on raw inputs, same tasks +{NUMBER}",
        rf"  meta-trained, paired by task: {NUMBER} over the nearest class mean.*; {NUMBER} over a logistic probe.*",
    ):
        assert re.search(f"^{line}$", done.out, re.MULTILINE), done.out
    again = run_command("evaluate", "run", "--backend", "local", "--tasks", 20, folder=tmp_path)
    assert "meta-trained, paired by task" in again.out


def test_no_steps_evaluate_the_learner_as_it_is(tmp_path):
    """The frozen head: training is left out, all else is as in any run."""
    (tmp_path / "job.py").write_text(JOB)
    words = ("--backend", "local", "--no-tracking", "--set", "outer.schedule=cosine")
    done = run_command("train", "job.py", *words, "--run-dir", "run", "--set", "outer.iterations=0", folder=tmp_path)
    assert done.code == 0, done.err
    assert "curves" not in done.out
    assert "parameters of step 0" in done.out
    found = run_command("inspect", "run", "--json", folder=tmp_path)
    assert (found.json["status"], found.json["step"]) == ("finished", 0)
    longer = run_command(
        "resume", "run", "--backend", "local", "--no-tracking", "--set", "outer.iterations=2", folder=tmp_path
    )
    assert longer.code == 0, longer.err
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_profile_is_kept_and_its_five_lines_are_printed_by_train_and_inspect(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    words = ("--backend", "local", "--no-tracking", "--run-dir", "run", "--profile", "--profile-steps", 1)
    done = run_command("train", "job.py", *words, folder=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"^profile  run/profile.json  \(open it at ui.perfetto.dev\)", done.out, re.MULTILINE)
    versions = {e["name"] for e in json.loads((tmp_path / "run" / "profile.json").read_text())["traceEvents"]}
    assert {"step 2"} == {name for name in versions if name.startswith("step ")}
    line = r"^  compute +\d+\.\d\d ms +\d+\.\d %  adapt, differentiate, one flat vector$"
    assert re.search(line, done.out, re.MULTILINE)
    assert "a step, of the mean worker, over step 2:" in done.out
    shown = run_command("inspect", "run", folder=tmp_path).out
    assert re.search(line, shown, re.MULTILINE)
    assert "over all steps done:" in shown
    assert re.search(r"^chunk_size +8$", shown, re.MULTILINE)


def test_a_profile_of_no_step_is_told(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    words = ("--backend", "local", "--no-tracking", "--run-dir", "run", "--profile", "--set", "outer.iterations=0")
    done = run_command("train", "job.py", *words, folder=tmp_path)
    assert done.code == 0, done.err
    assert "No profile is kept: this command did no outer step." in done.err
    assert not (tmp_path / "run" / "profile.json").exists()
