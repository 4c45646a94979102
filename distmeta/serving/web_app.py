"""The HTTP face of a trained learner: routes, errors, OpenAPI and the page. Needs FastAPI, not Ray."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from distmeta.errors import DistmetaError
from distmeta.serving import pages
from distmeta.serving.answering import Answering, Job, Lesson, Values
from distmeta.serving.batching import Batcher, Overloaded
from distmeta.serving.bodies import (
    ClassesAnswer,
    ErrorBody,
    PredictAnswer,
    PredictBody,
    QueryBody,
    SequenceBody,
    SupportBody,
    described,
)
from distmeta.serving.kept import Kept
from distmeta.serving.predictor import Predictor
from distmeta.serving.requests import Refused, inputs_of, parsed, support_of
from distmeta.serving.settings import ServiceSettings

_LOG = logging.getLogger(__name__)
_LARGE = 2**16  # bytes of a body whose pictures are decoded in a thread of their own
_OPEN = ("/", "/healthz")  # without a token: the page asks for it


class TaskStore(Protocol):
    """Where the support sets of tasks are kept: in this process, or beside several replicas."""

    async def put(self, lesson: Lesson) -> bool:
        """Keep a task; returns whether it is kept."""
        ...

    async def get(self, task_id: str) -> Lesson | None:
        """The task, or ``None`` where it is not kept, or no longer."""
        ...

    async def drop(self, task_id: str) -> bool:
        """Forget a task; returns whether it was kept."""
        ...


class LocalStore:
    """The support sets of tasks in this process.

    Args:
        settings: how many, and for how long.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._kept = Kept[Lesson](settings.max_tasks, int(settings.max_kept * 2**20), 60 * settings.keep_minutes)

    async def put(self, lesson: Lesson) -> bool:
        """Keep a task; returns whether it is kept."""
        return self._kept.put(lesson.id, lesson, lesson.size)

    async def get(self, task_id: str) -> Lesson | None:
        """The task, or ``None`` where it is not kept, or no longer."""
        return self._kept.get(task_id)

    async def drop(self, task_id: str) -> bool:
        """Forget a task; returns whether it was kept."""
        return self._kept.drop(task_id)


_ERRORS = {
    400: "The body is no JSON.",
    401: "The token is absent or wrong.",
    408: "The body did not arrive in time.",
    413: "More than the service takes: bytes, pixels, examples, classes.",
    415: "The body is of another type than application/json.",
    422: "The body is JSON, but no such request.",
    503: "Too many requests wait.",
}


def make_app(predictor: Predictor, settings: ServiceSettings, store: TaskStore | None = None) -> FastAPI:
    """The application that answers about new tasks with a trained learner.

    Args:
        predictor: the learner.
        settings: limits and batching.
        store: where support sets are kept; in this process when left out.
    """
    service = _Service(predictor, settings, store or LocalStore(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    name = str(predictor.card.get("name") or "distmeta")
    app = FastAPI(
        title=name,
        version=metadata.version("distmeta"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.description = service.described()
    routes: list[tuple[str, str, Callable[..., Awaitable[Response]], type | None, Any, str]] = [
        ("POST", "/predict", service.predict, PredictBody, PredictAnswer, "Learn a task and answer its queries."),
        ("POST", "/tasks", service.learn, SupportBody, ClassesAnswer, "Learn a task and keep it."),
        ("POST", "/tasks/{task_id}/predict", service.ask, QueryBody, PredictAnswer, "Ask about a task that is kept."),
        ("DELETE", "/tasks/{task_id}", service.forget, None, None, "Forget a task."),
        ("POST", "/run", service.run, SequenceBody, None, "Outputs of a learner of sequences (MANN, NTM)."),
        ("GET", "/model", service.model, None, None, "What is served, its limits, how well it does."),
        ("GET", "/healthz", service.health, None, None, "Whether it answers; needs no token."),
    ]
    for method, path, endpoint, body, answer, summary in routes:
        errors: dict[int | str, dict[str, Any]] = {
            code: {"model": ErrorBody, "description": text} for code, text in _ERRORS.items()
        }
        if body is None:
            errors = {401: errors[401]}
        if "{" in path:
            errors[404] = {"model": ErrorBody, "description": "No such task is kept: post it again."}
        app.add_api_route(
            path,
            _answered(endpoint),
            methods=[method],
            summary=summary,
            name=endpoint.__name__,
            response_model=None,
            responses={200: {"model": answer, "description": "The answer."}, **errors} if answer else errors,
            openapi_extra=described(body, settings) if body else None,
        )
    page = pages.page()
    app.add_api_route("/", lambda: _html(page), include_in_schema=False)
    app.add_api_route("/docs", lambda: _html(pages.description(app.openapi())), include_in_schema=False)
    app.add_exception_handler(HTTPException, _refused_by_route)
    app.add_middleware(_Guard, token=settings.token)
    return app


class _Service:
    """The endpoints."""

    def __init__(self, predictor: Predictor, settings: ServiceSettings, store: TaskStore) -> None:
        self.predictor, self.settings, self.store = predictor, settings, store
        self.answering = Answering(predictor, settings)
        most = settings.max_batch if settings.batch else 1
        self.decoder = ThreadPoolExecutor(1, thread_name_prefix="distmeta-decode")
        wait = settings.batch_wait_ms / 1000
        self.batcher = Batcher[Callable[[], Job], Values](self.answering.prepared, most=most, wait=wait)

    async def close(self) -> None:
        await self.batcher.close()
        self.decoder.shutdown()

    async def predict(self, request: Request) -> Response:
        data = await self._body(request)

        def prepared() -> Job:
            body = parsed(data, PredictBody)
            support_x, labels = support_of(body, self.predictor, self.settings)
            query_x = inputs_of("query_x", body.query_x, self.predictor, self.settings)
            return Job(Lesson("", support_x, labels), query_x, body.explain)

        return await self._asked(data, prepared)

    async def learn(self, request: Request) -> Response:
        data = await self._body(request)

        def prepared() -> Lesson:
            body = parsed(data, SupportBody)
            return Lesson(secrets.token_urlsafe(16), *support_of(body, self.predictor, self.settings))

        lesson = await self._prepared(prepared)
        found = await self.batcher(lambda: Job(lesson, None, keep=True))
        if not await self.store.put(lesson):
            raise Refused(
                413, "The task is larger than all that the service keeps. Send it with its queries to /predict."
            )
        kept = {"seconds": 60 * self.settings.keep_minutes, "tasks": self.settings.max_tasks}
        return _json({"id": lesson.id, **found, "kept": kept})

    async def ask(self, request: Request, task_id: str) -> Response:
        lesson = await self._lesson(task_id)
        data = await self._body(request)

        def prepared() -> Job:
            body = parsed(data, QueryBody)
            query_x = inputs_of("query_x", body.query_x, self.predictor, self.settings)
            return Job(lesson, query_x, body.explain, keep=True)

        return await self._asked(data, prepared)

    async def forget(self, request: Request, task_id: str) -> Response:
        await self._lesson(task_id)
        await self.store.drop(task_id)
        self.answering.forget(task_id)
        return Response(status_code=204)

    async def run(self, request: Request) -> Response:
        data = await self._body(request)
        return _json(await self._prepared(lambda: self._run(parsed(data, SequenceBody).sequence)))

    async def model(self, request: Request) -> Response:
        predictor, settings = self.predictor, self.settings
        made = predictor.preprocessing
        limits = settings.model_dump(exclude={"token", "batch", "max_batch", "batch_wait_ms", "body_seconds"})
        return _json(
            {
                "name": predictor.card.get("name"),
                "learner": type(predictor.learner).__name__,
                "kind": predictor.spec.kind,
                "inputs": {
                    "shape": list(predictor.input_shape),
                    "any_columns": predictor.any_columns,
                    "pictures": made.pictures,
                    "ink": made.ink,
                    "dtype": made.dtype,
                },
                "most_classes": predictor.most_classes,
                "trained_on": {"outputs": predictor.spec.outputs, "support": predictor.spec.support},
                "test": predictor.card.get("test"),
                "card": predictor.card,
                "limits": limits,
            }
        )

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    def described(self) -> str:
        s = self.settings
        return (
            f"{type(self.predictor.learner).__name__} that learns a task from a few labelled examples. At most "
            f"{s.max_body:g} MiB per request, {s.max_pixels:,} pixels, {s.max_examples} examples, {s.max_classes} "
            f"classes; {s.max_tasks} tasks are kept, each {s.keep_minutes:g} minutes after its last use."
        )

    def _run(self, sequence: list[Any]) -> Values:
        try:
            return self.answering.run(sequence)
        except DistmetaError as error:
            raise Refused(422, error.message) from None
        except (TypeError, ValueError):
            raise Refused(422, "The sequence is no array of numbers; expected lists of equal lengths.") from None

    async def _lesson(self, task_id: str) -> Lesson:
        lesson = await self.store.get(task_id) if re.fullmatch(r"[\w-]{1,64}", task_id, re.ASCII) else None
        if lesson is None:
            raise Refused(
                404,
                "No such task is kept: it is unknown, was deleted, was not used for "
                f"{self.settings.keep_minutes:g} minutes, or made room for others. Post it to /tasks again.",
            )
        return lesson

    async def _body(self, request: Request) -> bytes:
        """Read a body, never more of it than is allowed."""
        sent = request.headers.get("content-type", "")
        if sent.partition(";")[0].strip().lower() != "application/json":
            raise Refused(
                415,
                f"The body is of type {sent[:100]!r}; expected application/json. Set the header Content-Type.",
            )
        most = self.settings.max_body_bytes
        too_large = Refused(
            413,
            f"The body is larger than {self.settings.max_body:g} MiB. Send fewer or smaller pictures, or start the "
            "service with a larger --max-body.",
        )
        claimed = request.headers.get("content-length", "0")
        if not claimed.isascii() or not claimed.isdigit() or int(claimed[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Refused(
                408, f"The body did not arrive within {self.settings.body_seconds:g} seconds. Send it again, whole."
            ) from None
        return bytes(body)

    async def _asked(self, data: bytes, prepare: Callable[[], Job]) -> Response:
        """The answer to a body.

        A small one is prepared by the thread that computes: beside it, both would wait for Python's lock more than they
        work. Decoders of large pictures release the lock.
        """
        if len(data) > _LARGE:
            job = await self._prepared(prepare)
            return _json(await self.batcher(lambda: job))
        return _json(await self.batcher(prepare))

    async def _prepared(self, work: Callable[[], Any]) -> Any:
        """Decode in a thread, one request at a time: the event loop goes on, and so does the computation."""
        return await asyncio.get_running_loop().run_in_executor(self.decoder, work)


def _answered(endpoint: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """An endpoint that always answers: an error of ours has an id, which is logged, and no traceback."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request, **request.path_params)
        except Refused as error:
            return _error(error.status, error.message)
        except Overloaded:
            return _error(503, "Too many requests wait. Send it again in some seconds.", {"Retry-After": "2"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:  # noqa: BLE001 (whatever fails, the client gets an answer and the log the reason)
            number = secrets.token_hex(6)
            _LOG.exception("Error %s in answer to %s %s", number, request.method, request.url.path)
            message = f"The service failed; that is not the request's fault. Its log has the reason under {number}."
            return _error(500, message, id=number)

    return answered


async def _refused_by_route(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in the form of all errors."""
    assert isinstance(error, HTTPException)
    path = request.url.path if len(request.url.path) <= 100 else request.url.path[:97] + "..."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _error(405, f"{path} does not take {request.method}. Use {allowed}.", error.headers)
    if error.status_code == 404:
        known = "/predict, /tasks, /tasks/ID/predict, /tasks/ID, /run, /model, /healthz, /docs, /openapi.json"
        return _error(404, f"There is no {path}. There are / and {known}.")
    return _error(error.status_code, str(error.detail), error.headers)


class _Guard:
    """Asks for the token, and tells browsers what pages may do. A plain ASGI layer: bodies are not read here."""

    def __init__(self, app: Any, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def hardened(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._token is not None and scope["path"] not in _OPEN and not self._may(scope):
            message = "The token is absent or wrong; expected the header Authorization: Bearer TOKEN."
            await _error(401, message, {"WWW-Authenticate": "Bearer"})(scope, receive, hardened)
        else:
            await self._app(scope, receive, hardened)

    def _may(self, scope: Any) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        # In constant time: how long it takes tells nothing about the token.
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), (self._token or "").encode())


def _json(values: Mapping[str, Any]) -> Response:
    text = json.dumps(values, allow_nan=False, ensure_ascii=False)
    return Response(text.encode(), media_type="application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    text = json.dumps({"error": {"status": status, "message": message, **more}})
    headers = dict(headers or {})
    if status in (401, 408, 413, 415):  # the rest of the body is not read
        headers["Connection"] = "close"
    return Response(text, status, headers, media_type="application/json")


def _html(page: pages.Page) -> Response:
    headers = {"Content-Security-Policy": page.policy}
    return Response(page.text, headers=headers, media_type="text/html; charset=utf-8")


__all__ = ["LocalStore", "TaskStore", "make_app"]
