"""Settings are checked when they are made, and a mistake is answered with the word that was meant."""

import inspect
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import PositiveFloat, PositiveInt, ValidationError

from distmeta import MAML, Experiment, FewShot, Sinusoids, mlp
from distmeta.config import Config, Configurable, canonical_json, did_you_mean, digest, flatten, parse_overrides
from distmeta.errors import ConfigError


class Scale(Configurable):
    class Config(Config):
        factor: PositiveFloat = 2.0
        steps: PositiveInt = 1
        mode: Literal["up", "down"] = "up"

    config: Config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factr": 1}, "Scale has no setting 'factr'. Did you mean 'factor'? Settings: factor, steps, mode."),
        ({"zzz": 1}, "Scale has no setting 'zzz'. Settings: factor, steps, mode."),
        ({"factor": -1}, "Scale setting 'factor' is -1: input should be greater than 0."),
        ({"factor": float("nan")}, "Scale setting 'factor' is nan"),
        ({"factor": "much"}, "Scale setting 'factor' is 'much': input should be a valid number"),
        ({"steps": 1.5}, "Scale setting 'steps' is 1.5: input should be a valid integer"),
        ({"mode": "sideways"}, "Scale setting 'mode' is 'sideways': input should be 'up' or 'down'."),
        ({"factor": -1, "steps": 0}, "Scale setting 'steps' is 0"),
    ],
)
def test_a_wrong_setting_is_answered_under_the_components_own_name(settings, message):
    for make in (lambda: Scale(**settings), lambda: Scale().with_config(**settings)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert message in str(caught.value)
        assert "Config " not in str(caught.value)


def test_a_missing_setting_is_named():
    class Needs(Config):
        data: str

    with pytest.raises(ConfigError, match="Needs needs the setting 'data'; give it a value"):
        Needs()


def test_settings_are_frozen_and_replaced_by_copies():
    scale = Scale(factor=3)
    with pytest.raises(ValidationError, match="frozen"):
        scale.config.factor = 4
    other = scale.with_config(steps=5)
    assert (scale.config.factor, scale.config.steps) == (3.0, 1)
    assert (other.config.factor, other.config.steps) == (3.0, 5)
    assert repr(other) == "Scale(factor=3.0, steps=5, mode='up')"


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("shot", " Did you mean 'shots'?"),
        ("colour", ""),
        ("outer.iteration", " Did you mean 'outer.iterations'?"),
        ("WAYS", ""),
    ],
)
def test_did_you_mean(word, answer):
    assert did_you_mean(word, ["ways", "shots", "outer.iterations"]) == answer


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("tasks.ways=20", "tasks.ways", 20),
        ("outer.lr=1e-3", "outer.lr", 0.001),
        ("outer.lr=1E-3", "outer.lr", 0.001),
        ("outer.lr=.5", "outer.lr", 0.5),
        ("outer.lr=-2.5", "outer.lr", -2.5),
        ("learner.adapt=head", "learner.adapt", "head"),
        ("learner.adapt=a.*,b.*", "learner.adapt", "a.*,b.*"),
        ("learner.first_order=true", "learner.first_order", True),
        ("outer.clip_norm=null", "outer.clip_norm", None),
        ("tasks.data=/a/b=c", "tasks.data", "/a/b=c"),
        ("tasks.data=C:\\x", "tasks.data", "C:\\x"),
        ("name='7'", "name", "7"),
        (" seed = 7 ", "seed", 7),
        ("x=[1, 2]", "x", [1, 2]),
        ("x=[1", "x", "[1"),
    ],
)
def test_parse_overrides(assignment, key, value):
    parsed = parse_overrides([assignment])
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_prints_is_read_back(number):
    assert parse_overrides([f"lr={number!r}"]) == {"lr": number}


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["tasks.ways"], "--set 'tasks.ways' has no '='; expected key=value"),
        (["=3"], "has no '='"),
        (["seed=1", "seed=2"], "--set names 'seed' twice"),
    ],
)
def test_overrides_that_cannot_be_read(assignments, message):
    with pytest.raises(ConfigError) as caught:
        parse_overrides(assignments)
    assert message in str(caught.value)


def experiment():
    return Experiment(learner=MAML(mlp((8,))), tasks=Sinusoids())


def test_overrides_reach_every_part_and_leave_the_original():
    base = experiment()
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
        ({"tasks.shot": 1}, "--set tasks.shot: there is no such setting. Did you mean 'tasks.shots'?"),
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
        experiment().with_overrides(overrides)
    assert message in str(caught.value)


def test_every_key_can_be_set_to_what_it_is():
    base = experiment()
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
    assert (experiment().with_overrides(change).digest() == experiment().digest()) is same


def test_canonical_json_is_one_text_for_equal_values():
    assert (
        canonical_json({"b": [1, 2.5], "a": "é"})
        == canonical_json({"a": "é", "b": [1, 2.5]})
        == '{"a":"é","b":[1,2.5]}'
    )
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({})) == 64


def test_help_shows_every_setting_and_its_default():
    shown = inspect.signature(MAML).parameters
    assert (shown["model"].default, shown["inner_lr"].default) == (inspect.Parameter.empty, 0.4)
    assert set(shown) == {"model", *MAML.Config.model_fields}
    assert inspect.signature(FewShot).parameters["data"].default == "glyphs"  # named by the class itself


def test_a_setting_that_came_later_counts_as_its_default():
    experiment = Experiment(learner=MAML(mlp((4,))), tasks=Sinusoids())
    old = experiment.identity()
    del old["learner"]["first_order"], old["tasks"]["queries"]
    assert experiment.changed(old, None) == []
    changed = experiment.with_overrides({"learner.first_order": True})
    assert changed.changed(old, "f" * 64) == [
        f"frozen=None and now has {'f' * 64}",
        "learner.first_order=False and now has True",
    ]
