"""An experiment's settings: changed by dotted key, what a result depends on, and those that older versions wrote."""

import json

import pytest

from distmeta import MAML, Experiment, FewShot, ProtoNet, Sinusoids, mlp
from distmeta.config import flatten, parse_overrides
from distmeta.errors import ConfigError
from distmeta.experiment.job import load_job


def plain():
    return Experiment(learner=MAML(mlp((8,))), tasks=Sinusoids())


def test_overrides_reach_every_part_and_leave_the_original():
    base = plain()
    changed = base.with_overrides(
        parse_overrides(
            [
                "learner.inner_lr=1e-2",
                "tasks.shots=3",
                "outer.lr=1e-4",
                "runtime.workers=2",
                "evaluation.every=0",
                "seed=9",
            ]
        )
    )
    seen = flatten(changed.settings())
    assert [seen[k] for k in ("learner.inner_lr", "tasks.shots", "outer.lr", "seed")] == [0.01, 3, 0.0001, 9]
    assert (changed.runtime.workers, changed.evaluation.every) == (2, 0)
    assert flatten(base.settings())["tasks.shots"] == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"tasks.shot": 1},
            "--set tasks.shot: there is no such setting. Did you mean 'tasks.shots'? Settings of tasks: ",
        ),
        ({"outer.iteration": 1}, "Did you mean 'outer.iterations'?"),
        ({"learner": 1}, "--set learner: there is no such setting."),
        ({"tasks.shots": 0}, "Sinusoids setting 'shots' is 0"),
        ({"learner.inner_lr": -1}, "MAML setting 'inner_lr' is -1: input should be greater than 0."),
        ({"outer.lr": "fast"}, "Outer setting 'lr' is 'fast'"),
        ({"seed": -1}, "Experiment setting 'seed' is -1"),
    ],
)
def test_overrides_that_do_not_fit(overrides, message):
    with pytest.raises(ConfigError) as caught:
        plain().with_overrides(overrides)
    assert message in str(caught.value)


def test_every_key_can_be_set_to_what_it_is():
    base = plain()
    values, known = flatten(base.settings()), base.keys()
    same = base.with_overrides({key: values[key] for key in known})
    assert same.settings() == base.settings()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"runtime.workers": 7}, True),
        ({"outer.iterations": 7}, True),
        ({"name": "other"}, True),
        ({"evaluation.test_tasks": 7}, True),
        ({"runtime.chunk_size": 7}, False),
        ({"runtime.threads": 7}, False),
        ({"outer.lr": 7}, False),
        ({"learner.inner_lr": 7}, False),
        ({"tasks.shots": 7}, False),
        ({"seed": 7}, False),
    ],
)
def test_identity_is_what_a_result_depends_on(change, same):
    assert (plain().with_overrides(change).digest() == plain().digest()) is same


def test_a_setting_that_came_later_counts_as_its_default():
    experiment = plain()
    old = experiment.identity()
    del old["learner"]["first_order"], old["tasks"]["queries"]
    assert experiment.changed(old, None) == []
    changed = experiment.with_overrides({"learner.first_order": True})
    assert changed.changed(old, "f" * 64) == [
        f"frozen=None and now has {'f' * 64}",
        "learner.first_order=False and now has True",
    ]


# -- renamed settings --------------------------------------------------------------------------------------------------


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
