"""Experiments that older versions wrote: settings that were renamed since."""

import json

import pytest

from distmeta import Experiment, FewShot, ProtoNet, mlp
from distmeta.errors import ConfigError
from distmeta.experiment.job import load_job


@pytest.fixture
def experiment(digits_dir):
    return Experiment(learner=ProtoNet(mlp((8,), head=False)), tasks=FewShot(digits_dir, ways=2, augment="affine"))


def recorded(experiment, **tasks):
    """The identity as a checkpoint of an older version holds it, ``distort`` in place of ``augment``."""
    identity = json.loads(json.dumps(experiment.identity()))
    identity["tasks"]["distort"] = identity["tasks"].pop("augment")
    identity["tasks"].update(tasks)
    return {**identity, "frozen": None}


def test_a_run_recorded_by_a_former_name_is_the_same_experiment(experiment):
    assert experiment.changed(recorded(experiment), None) == []


def test_a_change_of_a_renamed_setting_is_still_found(experiment):
    old = recorded(experiment, distort="small")
    assert experiment.changed(old, None) == ["tasks.augment=small and now has affine"]
    assert old["tasks"]["distort"] == "small"  # the record itself is left alone


def test_a_record_without_the_setting_counts_as_its_default(experiment):
    old = recorded(experiment)
    del old["tasks"]["distort"]
    assert experiment.changed(old, None) == ["tasks.augment=none and now has affine"]


def test_overrides_of_an_older_run_are_read_by_former_names(experiment):
    """A run keeps the overrides that it was started with, and a later one for the same setting goes on top."""
    assert experiment.with_overrides({"tasks.distort": "small"}).tasks.config.augment == "small"
    both = {"tasks.distort": "small", "tasks.augment": "none"}
    assert experiment.with_overrides(both).tasks.config.augment == "none"
    known = experiment.keys()
    assert "tasks.augment" in known
    assert "tasks.distort" not in known


@pytest.mark.parametrize("key", ["tasks.distord", "distort", "learner.distort", "name.distort", ".distort", "keys.x"])
def test_a_former_name_elsewhere_is_unknown(experiment, key):
    with pytest.raises(ConfigError, match="there is no such setting"):
        experiment.with_overrides({key: "small"})


def test_a_job_file_of_an_older_version(digits_dir, tmp_path):
    (tmp_path / "job.py").write_text(
        "from distmeta import Experiment, FewShot, ProtoNet, mlp\n"
        "experiment = Experiment(learner=ProtoNet(mlp((8,), head=False)), "
        f"tasks=FewShot({str(digits_dir)!r}, ways=2, distort='small'))\n"
    )
    job = load_job(tmp_path / "job.py", {"tasks.distort": "affine"})
    assert job.experiment.tasks.config.augment == "affine"
