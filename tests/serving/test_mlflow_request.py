"""A request as JSON: tables, numbers, sequences; the example that goes with a model is one that it answers."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import distmeta
from distmeta.data.preprocessing import Preprocessing
from distmeta.errors import DataError, LearnerContractError
from distmeta.serving.mlflow_request import MAX_PIXELS, answered, example
from distmeta.serving.predictor import Predictor
from distmeta.types import TaskSpec

pytestmark = pytest.mark.usefixtures("one_thread")

X, Y, Q = [[0.0, 0.0], [9.0, 9.0]], ["low", "high"], [[8.0, 9.0]]


def predictor(learner, made, spec):
    bound = learner.bind(spec, 0)
    return Predictor(bound, dict(bound.model.named_parameters()), spec, made, {})


def rows():
    return predictor(
        distmeta.ProtoNet(torch.nn.Flatten()), Preprocessing((2,)), TaskSpec((2,), 5, "classification", 5, 5)
    )


def numbers():
    return predictor(distmeta.MAML(distmeta.mlp((8,))), Preprocessing((1,)), TaskSpec((1,), 1, "regression", 4, 4))


def pictures(shape=(1, 8, 8), dtype="uint8", *, ink=False):
    spec = TaskSpec(shape, 5, "classification", 5, 5)
    return predictor(distmeta.ProtoNet(torch.nn.Flatten()), Preprocessing(shape, dtype, ink=ink), spec)


def sequences():
    spec = distmeta.CopyTask(bits=3, length=2, min_length=2, max_length=2).spec
    return predictor(distmeta.NTM(distmeta.ntm(size=8, slots=6, width=4)), Preprocessing(spec.input_shape), spec)


@pytest.mark.parametrize(
    "made",
    [rows(), numbers(), pictures(), pictures((3, 8, 9)), pictures(ink=True), pictures(dtype="float32"), sequences()],
    ids=["rows", "numbers", "grey", "rgb", "ink", "floats", "sequence"],
)
def test_the_example_is_answered_also_after_the_way_through_json(made):
    request = example(made)
    found = answered(made, json.loads(json.dumps(request)))
    assert json.loads(json.dumps(found)) == found
    if "probabilities" in found:
        assert found["labels"] == ["a"]
        assert np.sum(found["probabilities"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "names", [("X_train", "y_train", "X_test"), ("support_x", "support_y", "query_x")], ids=["table", "task"]
)
@pytest.mark.parametrize("form", [list, json.dumps, np.array, lambda v: np.array(v, object)])
def test_lists_json_text_and_arrays(names, form):
    found = answered(rows(), dict(zip(names, map(form, (X, Y, Q)), strict=True)))
    assert (found["labels"], found["classes"]) == (["high"], ["high", "low"])
    fast = rows().adapt(np.array(X), Y)
    assert found["probabilities"] == fast.predict_proba(np.array(Q)).tolist()


def test_columns_of_a_table_that_are_empty_count_for_nothing():
    found = answered(rows(), {"X_train": X, "y_train": Y, "X_test": Q, "support_x": None, "sequence": float("nan")})
    assert found["labels"] == ["high"]


def test_numbers_are_learned_from_numbers():
    for y in ([1.0, 2.0], [[1.0], [2.0]]):
        found = answered(numbers(), {"X_train": [[0.0], [1.0]], "y_train": y, "X_test": [[0.5]]})
        assert np.shape(found["values"]) == (1, 1)


def test_pixels_are_bytes_or_fractions():
    made, random = pictures(), np.random.default_rng(0)
    x = random.integers(0, 256, (3, 8, 8))
    for form in (x, x / 255, x[..., None], np.stack([x] * 1, 1)):
        found = answered(made, {"support_x": form[:2].tolist(), "support_y": [1, 2], "query_x": form[2:].tolist()})
        expected = made.adapt(x[:2].astype(np.uint8), [1, 2]).predict_proba(x[2:].astype(np.uint8))
        assert np.abs(np.array(found["probabilities"]) - expected).max() < 1e-6


def _png(width, height):
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X_test": "no json"}, "X_test is text that is no JSON"),
        ({"X_test": "[" * 100_000}, "X_test is text that is no JSON"),
        ({"X_test": [[1.0]]}, r"float64 \[1, 1\]; .* expected \[B, 2\]"),
        ({"X_test": [["a", "b"]]}, "X_test is no array of numbers"),
        ({"X_test": [[1.0, 10**400]]}, "X_test is no array of numbers|finite"),
        ({"X_test": [[1.0, float("nan")]]}, "NaN or infinite"),
        ({"X_test": {"a": 1}}, "expected a list with one input"),
        ({"y_train": "7"}, "y_train is int; expected a list"),
        ({"y_train": [0.5, 1.5]}, "expected a hashable value that is no float"),
        ({"y_train": [[1], [2]]}, "expected a hashable value"),
        ({"more": 1}, "unknown keys more; expected support_x"),
        ({"options": {"shots": 1}}, "options is"),
        ({"support_x": X}, "The request has X_train, y_train, X_test, support_x; expected"),
    ],
)
def test_what_is_no_request_is_named(change, message):
    with pytest.raises((DataError, LearnerContractError), match=message):
        answered(rows(), {"X_train": X, "y_train": Y, "X_test": Q, **change})


def test_a_bomb_and_a_path_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(base64.b64decode(_png(8, 8)))
    made = pictures()
    for bad, message in {
        _png(5000, 5000): f"expected at most {MAX_PIXELS:,}",
        str(tmp_path / "a.png"): "no base64",
        "": "cannot be read",
    }.items():
        with pytest.raises(DataError, match=message):
            answered(made, {"support_x": [_png(8, 8)] * 2, "support_y": [1, 2], "query_x": [bad]})
    with pytest.raises(DataError, match="sequence alone"):
        answered(sequences(), {"support_x": []})
