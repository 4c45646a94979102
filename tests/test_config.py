"""Settings are checked when they are made, and a mistake is answered with the word that was meant."""

import inspect
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import PositiveFloat, PositiveInt, ValidationError

from distmeta import MAML, FewShot
from distmeta.config import Config, Configurable, canonical_json, did_you_mean, digest, parse_overrides
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
