"""The bodies of requests: what they may hold, and their checks, each with a message that names the fix."""

from __future__ import annotations

import base64
import binascii
import io
import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydantic
import torch
from pydantic_core import from_json

from distmeta.config import did_you_mean
from distmeta.errors import DataError, DistmetaError, listed
from distmeta.serving.bodies import LABEL_LENGTH, Body, SupportBody
from distmeta.serving.json_pixels import pixels_of
from distmeta.serving.predictor import Predictor
from distmeta.serving.settings import ServiceSettings

_LOG = logging.getLogger(__name__)
_LARGEST = 3e38  # float32
# Only these decoders meet bytes from outside: Pillow has others that start programs (EPS) or are seldom used.
_SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}


class Refused(Exception):
    """A request that is answered by an error of the client's.

    Args:
        status: HTTP status, 4xx or 503.
        message: what was seen, what was expected, the change that fixes it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def parsed(body: bytes, kind: type[Body]) -> Any:
    """The body of a request as ``kind``.

    Raises:
        Refused: it is no JSON (400), or not such a body (422).

    Example:
        >>> from distmeta.serving.bodies import QueryBody
        >>> parsed(b'{"query_x": [[1]]}', QueryBody).explain
        False
        >>> parsed(b"[1, 2]", QueryBody)
        Traceback (most recent call last):
        ...
        distmeta.serving.requests.Refused: The body is a list; expected an object with query_x, explain.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(
            400, f"The body is no JSON: {error}. Send one object; NaN and Infinity are no numbers of JSON."
        ) from None
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise Refused(422, _described(error, kind)) from None


def support_of(body: SupportBody, predictor: Predictor, settings: ServiceSettings) -> tuple[torch.Tensor, Any]:
    """The support set of a body: prepared inputs ``[S, ...]``, and labels ``[S]`` (floats ``[S, D]`` in regression).

    Raises:
        Refused: 413 where there is too much, 422 where it is no support set.
    """
    _require_few("support_x", body.support_x, settings)
    if len(body.support_x) != len(body.support_y):
        raise Refused(
            422,
            f"There are {len(body.support_x)} inputs in support_x and {len(body.support_y)} labels in support_y; "
            "expected as many. Give each example its label.",
        )
    labels = _labels(body.support_y, predictor, settings)
    return inputs_of("support_x", body.support_x, predictor, settings), labels


def inputs_of(name: str, given: Sequence[Any], predictor: Predictor, settings: ServiceSettings) -> torch.Tensor:
    """Prepared inputs ``[n, *input_shape]`` of a list of a body.

    Args:
        name: of the list, for messages.
        given: pictures or numbers, as JSON has them.
        predictor: whose inputs these are.
        settings: limits.

    Raises:
        Refused: 413 where there is too much, 422 where one is no input of the model.
    """
    _require_few(name, given, settings)
    decoded = [_decoded(f"{name}[{index}]", item, predictor) for index, item in enumerate(given)]
    pixels = sum(_pixels(item, predictor) for item in decoded)
    if pixels > settings.max_pixels:
        raise Refused(
            413,
            f"The pictures of {name} have {pixels:,} pixels or more; expected at most {settings.max_pixels:,}. Scale "
            "them down, or start the service with a larger --max-pixels.",
        )
    most = settings.max_pixels
    prepared = [_prepared(f"{name}[{index}]", item, predictor, most) for index, item in enumerate(decoded)]
    for index, x in enumerate(prepared):
        if x.shape != prepared[0].shape:  # rows, where the network takes any number of columns
            raise Refused(
                422,
                f"{name}[{index}] has {x.shape[-1]} numbers, {name}[0] has {prepared[0].shape[-1]}; expected as many "
                "in all rows. Repair it.",
            )
    return torch.cat(prepared)


def _require_few(name: str, given: Sequence[Any], settings: ServiceSettings) -> None:
    if len(given) > settings.max_examples:
        raise Refused(
            413,
            f"{name} has {len(given):,} entries; expected at most {settings.max_examples:,}. Send fewer, or start the "
            "service with a larger --max-examples.",
        )


def _labels(given: Sequence[Any], predictor: Predictor, settings: ServiceSettings) -> Any:
    if predictor.spec.kind == "regression":
        return _targets(given, predictor)
    for index, label in enumerate(given):
        place = f"support_y[{index}]"
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise Refused(422, f"{place} is {_kind(label)}; expected a string or an integer.")
        if isinstance(label, str) and len(label) > LABEL_LENGTH:
            raise Refused(422, f"{place} has {len(label):,} characters; expected at most {LABEL_LENGTH}. Shorten it.")
        if isinstance(label, int) and not -(2**63) <= label < 2**63:
            raise Refused(422, f"{place} is an integer of more than 64 bits. Give it as a string.")
    classes = list(dict.fromkeys(given))
    most = predictor.most_classes
    if most is not None and len(classes) > most:
        raise Refused(
            422,
            f"support_y has {len(classes):,} classes, {listed(map(str, classes), 10)}; this model tells at most {most} "
            "apart. Leave classes out, or serve a metric learner such as ProtoNet, which takes any number.",
        )
    if len(classes) > settings.max_classes:
        raise Refused(
            413,
            f"support_y has {len(classes):,} classes; expected at most {settings.max_classes}. Leave classes out, or "
            "start the service with a larger --max-classes.",
        )
    if len(classes) < 2:
        raise Refused(
            422,
            f"support_y has one class, {listed(map(str, classes), 10)}; expected two at least. Add examples of "
            "another class.",
        )
    return list(given)


def _targets(given: Sequence[Any], predictor: Predictor) -> torch.Tensor:
    """The targets of a regression ``[S, D]``; a single number stands for ``[1]``."""
    rows = [one if isinstance(one, list) else [one] for one in given]
    for index, row in enumerate(rows):
        if len(row) != predictor.spec.outputs or not all(_is_number(value) for value in row):
            raise Refused(
                422,
                f"support_y[{index}] is {_kind(given[index])}; this model learns numbers, expected "
                f"{predictor.spec.outputs} in a list.",
            )
    return torch.tensor(rows, dtype=torch.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _decoded(place: str, item: Any, predictor: Predictor) -> bytes | np.ndarray[Any, Any]:
    """The bytes of a file, or an array of numbers."""
    if isinstance(item, str):
        if not predictor.preprocessing.pictures:
            raise Refused(
                422,
                f"{place} is a string; this model takes numbers, expected lists of shape "
                f"{list(predictor.input_shape)}.",
            )
        return _file(place, item)
    if not isinstance(item, list):
        what = "base64 of a PNG, JPEG or WebP file, or lists of numbers"
        raise Refused(422, f"{place} is {_kind(item)}; expected {what}.")
    return _array(place, item, predictor)


def _file(place: str, text: str) -> bytes:
    expected = "expected base64 of a PNG, JPEG or WebP file, or a data: URL of one."
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise Refused(422, f"{place} is a data: URL without base64; {expected}")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{place} is a string that is no base64; {expected}") from None
    kind = next((kind for kind, start in _SIGNATURES.items() if data.startswith(start)), None)
    if kind is None or (kind == "WEBP" and data[8:12] != b"WEBP"):
        raise Refused(422, f"{place} holds {len(data):,} bytes that are no picture; {expected}")
    return data


def _array(place: str, item: list[Any], predictor: Predictor) -> np.ndarray[Any, Any]:
    made = predictor.preprocessing
    try:
        values = np.array(item)
    except (ValueError, OverflowError):  # rows of several lengths
        values = np.array(None)
    if values.dtype == object or not np.issubdtype(values.dtype, np.number) or not values.size:
        raise Refused(422, f"{place} is no array of numbers; expected lists of equal lengths, filled with numbers.")
    if made.dtype != "uint8":
        if not bool((np.abs(values.astype(np.float64)) < _LARGEST).all()):
            raise Refused(422, f"{place} has numbers that are too large for 32 bits; expected finite ones. Scale them.")
        return values.astype(np.float64)
    try:
        pixels = pixels_of(place, values)
    except DataError as error:
        raise Refused(422, error.message) from None
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def _pixels(item: bytes | np.ndarray[Any, Any], predictor: Predictor) -> int:
    """How many pixels an input has, as the header of its file claims; of a drawing the square that it is put on."""
    from PIL import Image

    if not predictor.preprocessing.pictures:
        return 0
    if isinstance(item, bytes):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is another one
                with Image.open(io.BytesIO(item), formats=list(_SIGNATURES)) as opened:
                    width, height = opened.size
        except Image.DecompressionBombError:
            return 2 * (Image.MAX_IMAGE_PIXELS or 0)
        except Exception:  # noqa: BLE001 (the decoder raises anything on hostile bytes; reported when it is decoded)
            return 0
    elif item.ndim < 2:
        return int(item.size)
    else:
        height, width = item.shape[-2:] if item.ndim == 3 and item.shape[0] in (1, 3) else item.shape[:2]
    return int(max(width, height) ** 2 if predictor.preprocessing.ink else width * height)


def _prepared(place: str, item: bytes | np.ndarray[Any, Any], predictor: Predictor, most: int) -> torch.Tensor:
    """One input ``[1, *input_shape]``."""
    try:
        x = predictor.inputs([item], max_pixels=most)
    except DataError as error:
        raise Refused(422, _about(place, error.message)) from None
    except DistmetaError as error:
        raise Refused(422, f"{place}: {error.message}") from None
    except Exception as error:  # noqa: BLE001 (decoders raise anything on hostile bytes)
        _LOG.warning("An input could not be prepared.", exc_info=True)
        raise Refused(422, f"{place} cannot be read ({type(error).__name__}). Replace it.") from None
    return x


def _about(place: str, message: str) -> str:
    """A message about the only input of a batch, with its place in the body."""
    message = re.sub(r"^Input 0: ", "", message)
    named, count = re.subn(r"^(Input 0|[Tt]he picture|Input 0's)\b", place, message, count=1)
    return named if count else f"{place}: {message}"


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def _described(error: pydantic.ValidationError, kind: type[Body]) -> str:
    """One of pydantic's findings as a message: an unknown key first, which may be one that is then absent."""
    found = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    keys, key = list(kind.model_fields), ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        shortened = key if len(key) <= 60 else f"{key[:57]}..."
        return f"The body has the unknown key {shortened!r}.{did_you_mean(key[:200], keys)} Keys: {', '.join(keys)}."
    if found["type"] == "missing":
        return f"The body lacks {key!r}; expected {', '.join(keys)}. Add it."
    if not key:
        return f"The body is {_kind(found['input'])}; expected an object with {', '.join(keys)}."
    if found["type"] == "too_short":
        return f"{key!r} is empty; expected one entry at least. Add one."
    expected = "true or false" if key == "explain" else "a list"
    return f"{key!r} is {_kind(found['input'])}; expected {expected}."


__all__ = ["Refused", "inputs_of", "parsed", "support_of"]
