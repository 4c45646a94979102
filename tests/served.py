"""What tests of serving share: small learners, pictures as a client sends them, and an application that answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from distmeta import MAML, ProtoNet, mlp
from distmeta.data.preprocessing import Preprocessing
from distmeta.seeding import rng
from distmeta.serving.predictor import Predictor
from distmeta.serving.settings import ServiceSettings
from distmeta.types import TaskSpec

SIDE = 8


def predictor_of(kind: str, *, shape: tuple[int, ...] = (1, SIDE, SIDE), ink: bool = False) -> Predictor:
    """``protonet`` on raw inputs, or ``maml`` with an untrained linear model of 3 outputs; ``vectors`` have no size."""
    spec = TaskSpec(shape, 3, "classification", 3, 3)
    made = Preprocessing(shape, "uint8" if len(shape) == 3 else "float32", ink=ink)
    learner: Any = ProtoNet(nn.Flatten(), vectorise="vmap")
    if kind == "maml":
        # By a function, so that its first weights come from the seed.
        learner = MAML(
            lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)),
            inner_lr=0.1,
            inner_steps=2,
            vectorise="vmap",
        )
    learner = learner.bind(spec, 0)
    params = learner.init_meta_params(rng(0, "init"))
    learner.load(params)
    test = {"accuracy": 0.9, "accuracy_ci95": 0.01}
    return Predictor(learner, params, spec, made, {"name": f"small_{kind}", "test": test})


def regression() -> Predictor:
    """MAML on lines."""
    spec = TaskSpec((1,), 1, "regression", 4, 4)
    learner = MAML(mlp((8,)), inner_lr=0.01, vectorise="vmap").bind(spec, 0)
    params = learner.init_meta_params(rng(0, "init"))
    return Predictor(learner, params, spec, Preprocessing((1,)), {"name": "lines"})


def pattern(seed: int, side: int = SIDE) -> np.ndarray[Any, Any]:
    """A picture of random greys ``[side, side]`` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def encoded(pixels: np.ndarray[Any, Any], form: str = "PNG") -> str:
    """A picture as base64 of a file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form, **({"lossless": True} if form == "WEBP" else {}))
    return base64.b64encode(content.getvalue()).decode()


@dataclass(frozen=True)
class Got:
    """The answer to one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """Of an error, which has nothing but a status, a message and perhaps an id."""
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) <= {"status", "message", "id"}
        assert self.json["error"]["status"] == self.status
        assert "Traceback" not in self.body.decode()
        return str(self.json["error"]["message"])


@dataclass(frozen=True)
class Served:
    """An application that answers at a port of this machine."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Got:
        """One request; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = dict(headers or {})
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Got(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def predict(self, **body: Any) -> Got:
        return self.ask("POST", "/predict", body)


@contextlib.contextmanager
def served(predictor: Predictor, store: Any = None, **settings: Any) -> Iterator[Served]:
    """The application in this process, without Ray."""
    import uvicorn

    from distmeta.serving.web_app import make_app

    app = make_app(predictor, ServiceSettings(**settings), store)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        yield Served(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        torch.set_num_threads(before)
    assert not thread.is_alive()
