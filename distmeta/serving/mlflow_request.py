"""A request to a registered model, one task with its queries, and the answer, as JSON has them; without MLflow."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from distmeta.errors import DataError
from distmeta.serving.json_pixels import pixels_of
from distmeta.serving.predictor import Predictor
from distmeta.serving.together import Answer

MAX_PIXELS = 16_000_000
"""Width times height of a picture of a request, at most."""

_TRIPLES = (("support_x", "support_y", "query_x"), ("X_train", "y_train", "X_test"))
KEYS = (*_TRIPLES[0], *_TRIPLES[1], "sequence", "options")
"""What a request may hold."""


def answered(predictor: Predictor, request: Mapping[str, Any]) -> dict[str, Any]:
    """Learn the task of a request, and answer about its queries.

    Args:
        predictor: a trained learner.
        request: ``support_x``, ``support_y`` and ``query_x``: pictures as base64 of a file or as nested lists, or rows
            of numbers, and labels; also called ``X_train``, ``y_train`` and ``X_test``. Lists may be given as JSON
            text. ``options``: ``{"transductive": true}``. For learners of sequences ``sequence`` alone.

    Returns:
        ``labels [B]``, ``classes [N]``, ``probabilities [B, N]``; in regression ``values [B, D]``, and where the
        learner predicts distributions ``intervals`` (``coverage``, ``low [B, D]``, ``high [B, D]``); for a sequence
        ``outputs [L, outputs]``.

    Raises:
        DataError: the request lacks something, or an input cannot be converted.
        LearnerContractError: these are no examples with their labels.

    Example:
        >>> import torch, distmeta
        >>> from distmeta.data.preprocessing import Preprocessing
        >>> spec = distmeta.TaskSpec((2,), 2, "classification", 2, 2)
        >>> predictor = Predictor(distmeta.ProtoNet(torch.nn.Flatten()), {}, spec, Preprocessing((2,)), {})
        >>> found = answered(predictor, {"X_train": [[0, 0], [9, 9]], "y_train": ["low", "high"], "X_test": "[[8, 9]]"})
        >>> found["labels"], found["classes"]
        (['high'], ['high', 'low'])
    """
    given = {str(key): _listed(str(key), value) for key, value in request.items() if not _absent(value)}
    options = given.pop("options", {})
    if unknown := [key for key in given if key not in KEYS]:
        raise DataError(f"The request has the unknown keys {', '.join(unknown[:5])}; expected {_wanted(predictor)}.")
    if not isinstance(options, Mapping) or not set(options) <= {"transductive"}:
        raise DataError(f"options is {str(options)[:60]}; expected an object such as {{'transductive': true}}.")
    if predictor.spec.kind == "sequence":
        if set(given) != {"sequence"}:
            raise DataError(f"The request has {', '.join(given) or 'nothing'}; expected {_wanted(predictor)}.")
        return {"outputs": predictor.run(_numbers("sequence", given["sequence"])).tolist()}
    names = next((triple for triple in _TRIPLES if set(triple) == set(given)), None)
    if names is None:
        raise DataError(f"The request has {', '.join(given) or 'nothing'}; expected {_wanted(predictor)}.")
    support_x, query_x = (_inputs(name, given[name], predictor) for name in (names[0], names[2]))
    transductive = bool(options.get("transductive", False))
    labels = _labels(names[1], given[names[1]], predictor)
    fast = predictor.learner.adapt(support_x, labels, transductive=transductive, params=predictor.params)
    if fast.classes_ is None:
        return Answer.of(fast, query_x).numbers
    probabilities = fast.predict_proba(query_x).numpy()
    classes = fast.classes_.tolist()
    return {
        "labels": [classes[place] for place in probabilities.argmax(1)],
        "classes": classes,
        "probabilities": probabilities.tolist(),
    }


def example(predictor: Predictor) -> dict[str, Any]:
    """A small request that the learner answers."""
    random, shape = np.random.default_rng(0), predictor.input_shape
    spec, made = predictor.spec, predictor.preprocessing
    if spec.kind == "sequence":
        return {"sequence": random.integers(0, 2, (4, *spec.input_shape)).astype(float).tolist()}
    count = 2 if spec.outputs > 1 or predictor.most_classes is None else 1
    if made.pictures and made.dtype == "uint8":
        drawn = [_drawing(made.input_shape, kind, made.ink) for kind in range(count)]
        x: list[Any] = [base64.b64encode(picture).decode() for picture in drawn]
    else:
        x = random.normal(size=(count, *shape)).round(3).tolist()
    y: list[Any] = ["a", "b"][:count]
    if spec.kind == "regression":
        y = random.normal(size=(count, spec.outputs)).round(3).tolist()
    names = _TRIPLES[0] if made.pictures else _TRIPLES[1]
    return dict(zip(names, (x, y, x[:1]), strict=True))


def _wanted(predictor: Predictor) -> str:
    if predictor.spec.kind == "sequence":
        return "sequence alone, since the learner reads its labels there"
    first, second = (", ".join(triple) for triple in _TRIPLES)
    return f"{first} (or {second}), and no others but options"


def _absent(value: Any) -> bool:
    """Return whether an optional column is empty in a table's row."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _listed(name: str, value: Any) -> Any:
    """A value as JSON has it; JSON text and arrays become lists."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name} is text that is no JSON: {str(error)[:80]}. Give a list, or a list as JSON."
            ) from None
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def _inputs(name: str, given: Any, predictor: Predictor) -> Any:
    """Prepared inputs ``[n, *input_shape]``; text is the content of a file, never a path."""
    if not isinstance(given, list) or not given:
        raise DataError(f"{name} is {type(given).__name__} {str(given)[:40]}; expected a list with one input at least.")
    if not predictor.preprocessing.pictures:
        return predictor.inputs(_numbers(name, given))
    pictures = [_picture(f"{name}[{row}]", item, predictor) for row, item in enumerate(given)]
    return predictor.inputs(pictures, max_pixels=MAX_PIXELS)


def _picture(place: str, item: Any, predictor: Predictor) -> Any:
    if isinstance(item, str):
        text = item.partition(",")[2] if item.startswith("data:") else item
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"{place} is text that is no base64; expected base64 of a PNG or JPEG file.") from None
    values = _numbers(place, item)
    return pixels_of(place, values) if predictor.preprocessing.dtype == "uint8" and values.size else values


def _numbers(name: str, given: Any) -> npt.NDArray[np.float64]:
    try:
        found = np.array(given, dtype=object if given is None else None)
        if not np.issubdtype(found.dtype, np.number):
            raise ValueError(f"it is {found.dtype}")
        return found.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is no array of numbers ({error}); expected lists of equal lengths.") from None


def _labels(name: str, given: Any, predictor: Predictor) -> Any:
    if not isinstance(given, list):
        raise DataError(f"{name} is {type(given).__name__}; expected a list with one label for each example.")
    if predictor.spec.kind != "regression":
        return given
    targets = _numbers(name, given).astype(np.float32)
    return targets[:, None] if targets.ndim == 1 else targets


def _drawing(shape: tuple[int, ...], kind: int, ink: bool) -> bytes:
    """A PNG with a disc, or with a bar."""
    from PIL import Image

    channels, height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    cy, cx = (height - 1) / 2, (width - 1) / 2
    radius = 0.3 * min(height, width)
    disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    bar = (abs(x - cx) < 0.12 * width) & (abs(y - cy) < 0.35 * height)
    grey = np.where((disc, bar)[kind % 2], 230, 0 if ink else 40).astype(np.uint8)
    pixels = grey if channels == 1 else np.repeat(grey[..., None], 3, 2)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["KEYS", "MAX_PIXELS", "answered", "example"]
