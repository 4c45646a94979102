"""What requests and answers hold, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from distmeta.serving.settings import ServiceSettings

LABEL_LENGTH = 200
"""Characters of a label, at most."""

_INPUT = {
    "description": (
        "A picture: base64 of a PNG, JPEG or WebP file, or a data: URL of one; or nested lists of numbers: pixels "
        "[H, W], [C, H, W] or [H, W, C], 0 to 255 or, where none is above 1, 0 to 1; or the numbers of a vector."
    ),
    "anyOf": [{"type": "string"}, {"type": "array", "items": {}}],
}
_Input = Annotated[Any, pydantic.WithJsonSchema(_INPUT)]
_Label = Annotated[
    Any,
    pydantic.WithJsonSchema(
        {
            "description": "A label: a string or an integer; numbers [D] for a regression.",
            "anyOf": [
                {"type": "string", "maxLength": LABEL_LENGTH},
                {"type": "integer"},
                {"type": "array", "items": {"type": "number"}},
            ],
        }
    ),
]


class Body(pydantic.BaseModel):
    """The body of a request: known keys only."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class SupportBody(Body):
    """The body of ``POST /tasks``: the labelled examples of one task."""

    support_x: list[_Input] = pydantic.Field(min_length=1, description="Examples, several for each class.")
    support_y: list[_Label] = pydantic.Field(min_length=1, description="The label of each example.")


class QueryBody(Body):
    """The body of ``POST /tasks/{id}/predict``: what is asked about a task that was learned before."""

    query_x: list[_Input] = pydantic.Field(min_length=1, description="What is asked about.")
    explain: bool = pydantic.Field(False, description="Whether to answer with what decided.")


class PredictBody(QueryBody, SupportBody):
    """The body of ``POST /predict``: a task and what is asked about it."""


class SequenceBody(Body):
    """The body of ``POST /run``: one sequence that holds its labels, for learners such as MANN and NTM."""

    sequence: list[Any] = pydantic.Field(min_length=1, description="Numbers [L, inputs].")


class ErrorBody(pydantic.BaseModel):
    """The body of every answer that is an error."""

    class Error(pydantic.BaseModel):
        """What was wrong."""

        status: int
        message: str = pydantic.Field(description="What was seen, what was expected, the change that fixes it.")
        id: str | None = pydantic.Field(None, description="Of an error of the server, as its log has it.")

    error: Error


class ClassesAnswer(pydantic.BaseModel):
    """The answer of ``POST /tasks``."""

    id: str
    classes: list[str | int] | None
    kept: dict[str, float] = pydantic.Field(description="seconds after the last use; tasks that are kept at most.")


class PredictAnswer(pydantic.BaseModel):
    """The answer about queries; of a regression ``values``, and ``intervals`` where there are any."""

    predictions: list[str | int] | None = None
    classes: list[str | int] | None = pydantic.Field(None, description="The columns of probabilities.")
    probabilities: list[list[float]] | None = None
    explanations: list[dict[str, Any]] | None = pydantic.Field(
        None,
        description="Of each query: support (index, label, weight, by falling weight), or logits_by_step, in the order "
        "of classes, before and after each inner step.",
    )
    values: list[list[float]] | None = None
    intervals: dict[str, Any] | None = pydantic.Field(
        None, description="Of a learner that predicts distributions: coverage, a probability; low and high, as values."
    )


def described(kind: type[Any], settings: ServiceSettings) -> dict[str, Any]:
    """The description of a body in OpenAPI, with this service's limits."""
    schema = kind.model_json_schema()
    for name in ("support_x", "support_y", "query_x", "sequence"):
        if name in schema["properties"]:
            schema["properties"][name]["maxItems"] = settings.max_examples
    schema["description"] = f"{schema.get('description', '')} At most {settings.max_body:g} MiB."
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


__all__ = [
    "LABEL_LENGTH",
    "Body",
    "ClassesAnswer",
    "ErrorBody",
    "PredictAnswer",
    "PredictBody",
    "QueryBody",
    "SequenceBody",
    "SupportBody",
    "described",
]
