"""MAML's step in another library, as its users write it: ``python peer_loops.py NAME``, asked over standard input.

This file runs in the library's own environment, which need not have distmeta: it imports torch and that library alone.
Each request is a line of JSON, each answer too:

- ``{"do": "load", "case": "a", "file": PATH, "device": "cpu"}``: a network's weights and tasks, by ``torch.save``.
- ``{"do": "check", "case": "a", "tasks": 4, "file": PATH}``: losses of the first tasks in float64; their mean gradient
  goes to the file.
- ``{"do": "measure", "case": "a", "threads": 2, "calls": 3}``: seconds of so many training steps.

The first line of all says which versions there are, or that the library cannot be imported.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def network(
    width: int, pool: str, input_shape: Sequence[int], outputs: int, theta: Sequence[torch.Tensor]
) -> nn.Sequential:
    """The network of four convolution blocks and a linear layer, as a plain module, with the given weights.

    Args:
        width: filters per block.
        pool: ``"stride"`` or ``"max"``: how a block halves the image.
        input_shape: ``[C, H, W]``.
        outputs: classes.
        theta: its parameters, in order.

    Example:
        >>> shapes = [(8, 1, 3, 3), (8,), (8,), *[(8, 8, 3, 3), (8,), (8,)] * 3, (5, 8), (5,)]
        >>> network(8, "stride", (1, 28, 28), 5, [torch.zeros(shape) for shape in shapes])(torch.zeros(2, 1, 28, 28))
        tensor([[0., 0., 0., 0., 0.],
                [0., 0., 0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """
    channels, *sides = input_shape
    layers: list[nn.Module] = []
    for _ in range(4):
        stride = 2 if pool == "stride" else 1
        layers += [nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)]
        # The statistics of the batch, and no running ones: what the tasks are defined by.
        layers += [nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU()]
        if pool == "max":
            layers.append(nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
        channels = width
    if pool == "stride":
        layers.append(nn.AdaptiveAvgPool2d(1))
        sides = [1, 1]
    found = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * sides[0] * sides[1], outputs))
    with torch.no_grad():
        for p, value in zip(found.parameters(), theta, strict=True):
            if p.shape != value.shape:
                raise ValueError(f"a parameter has shape {list(value.shape)}, expected {list(p.shape)}")
            p.copy_(value)
    return found


class Case:
    """A network with the tasks of one meta-batch, and the settings of the step.

    Args:
        file: by ``torch.save``: ``network`` and ``theta``, see :func:`network`; ``support_x``, ``support_y``,
            ``query_x``, ``query_y``, stacked tasks; ``inner_lr``, ``inner_steps``, ``outer_lr``.
        device: where it is computed.
    """

    def __init__(self, file: str, device: str) -> None:
        given = torch.load(file, weights_only=True)
        self.device = torch.device(device)
        self.network = network(**given["network"], theta=given["theta"]).to(self.device)
        names = ("support_x", "support_y", "query_x", "query_y")
        self.episodes = tuple(given[name].to(self.device) for name in names)
        self.inner_lr, self.inner_steps = float(given["inner_lr"]), int(given["inner_steps"])
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=given["outer_lr"])

    @property
    def tasks(self) -> list[tuple[torch.Tensor, ...]]:
        """Support inputs and labels, query inputs and labels, of one task after the other."""
        return list(zip(*self.episodes, strict=True))

    def exact(self, tasks: int) -> Case:
        """A copy of the first tasks in float64."""
        clone = copy.copy(self)
        clone.network = copy.deepcopy(self.network).double()
        clone.episodes = tuple(
            part[:tasks].double() if part.is_floating_point() else part[:tasks] for part in self.episodes
        )
        return clone

    def divide(self) -> None:
        """From the sum over tasks to their mean."""
        for p in self.network.parameters():
            if p.grad is not None:
                p.grad.mul_(1 / len(self.episodes[0]))


Backward = Callable[[Case], "list[torch.Tensor]"]
"""Adds the mean meta-gradient to ``.grad`` of the network's parameters; returns the losses of the tasks."""


def learn2learn() -> Backward:
    """The loop of its Omniglot example: a clone for each task, adapted, and a backward pass for each."""
    # The package itself also loads its image datasets and gym environments, whose libraries MAML does not need.
    found = importlib.util.find_spec("learn2learn")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'learn2learn'")
    package = types.ModuleType("learn2learn")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["learn2learn"] = package
    algorithms = importlib.import_module("learn2learn.algorithms")

    def backward(case: Case) -> list[torch.Tensor]:
        maml = algorithms.MAML(case.network, lr=case.inner_lr, first_order=False)
        losses = []
        for support_x, support_y, query_x, query_y in case.tasks:
            learner = maml.clone()
            for _ in range(case.inner_steps):
                learner.adapt(F.cross_entropy(learner(support_x), support_y))
            loss = F.cross_entropy(learner(query_x), query_y)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        case.divide()
        return losses

    return backward


def higher() -> Backward:
    """The loop of its Omniglot example: a context for each task, and a backward pass for each."""
    library = importlib.import_module("higher")

    def backward(case: Case) -> list[torch.Tensor]:
        inner = torch.optim.SGD(case.network.parameters(), lr=case.inner_lr)
        losses = []
        for support_x, support_y, query_x, query_y in case.tasks:
            with library.innerloop_ctx(case.network, inner, copy_initial_weights=False) as (fast, optimizer):
                for _ in range(case.inner_steps):
                    optimizer.step(F.cross_entropy(fast(support_x), support_y))
                loss = F.cross_entropy(fast(query_x), query_y)
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
        case.divide()
        return losses

    return backward


def torchopt() -> Backward:
    """The loop of its few-shot example: the state is put back after each task, one backward pass for all."""
    library = importlib.import_module("torchopt")

    def backward(case: Case) -> list[torch.Tensor]:
        inner = library.MetaSGD(case.network, lr=case.inner_lr)
        start = library.extract_state_dict(case.network, by="reference", detach_buffers=True)
        inner_start = library.extract_state_dict(inner, by="reference")
        losses = []
        for support_x, support_y, query_x, query_y in case.tasks:
            for _ in range(case.inner_steps):
                inner.step(F.cross_entropy(case.network(support_x), support_y))
            losses.append(F.cross_entropy(case.network(query_x), query_y))
            library.recover_state_dict(case.network, start)
            library.recover_state_dict(inner, inner_start)
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        return [loss.detach() for loss in losses]

    return backward


def vmap() -> Backward:
    """``torch.func.vmap`` over tasks, and autograd, with nothing else: no library."""

    def backward(case: Case) -> list[torch.Tensor]:
        theta = dict(case.network.named_parameters())

        def loss(params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(torch.func.functional_call(case.network, params, (x,)), y)

        def one(params: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> torch.Tensor:
            for _ in range(case.inner_steps):
                gradient = torch.func.grad(loss)(params, support_x, support_y)
                params = {name: p - case.inner_lr * gradient[name] for name, p in params.items()}
            return loss(params, query_x, query_y)

        # Not the gradient of vmap: through that, torch's batch norm is differentiated wrongly, by some per cent.
        per_task = torch.func.vmap(torch.func.grad_and_value(one), (None, 0, 0, 0, 0))
        gradients, losses = per_task({name: p.detach() for name, p in theta.items()}, *case.episodes)
        for name, p in theta.items():
            p.grad = gradients[name].mean(0)
        return list(losses)

    return backward


LOOPS: dict[str, Callable[[], Backward]] = {
    "learn2learn": learn2learn,
    "higher": higher,
    "torchopt": torchopt,
    "vmap": vmap,
}


class Answers:
    """Answer the requests of the benchmark, a method for each.

    Args:
        name: which loop.
    """

    def __init__(self, name: str) -> None:
        self._backward = LOOPS[name]()
        self._cases: dict[str, Case] = {}

    def load(self, case: str, file: str, device: str = "cpu") -> dict[str, Any]:
        """Read a case."""
        self._cases[case] = Case(file, device)
        return {}

    def check(self, case: str, tasks: int, file: str) -> dict[str, Any]:
        """Losses of the first tasks, and their mean gradient into a file: in float64, where only the formulas count."""
        torch.set_num_threads(1)
        one = self._cases[case].exact(tasks)
        one.network.zero_grad()
        losses = self._backward(one)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in one.network.parameters()]
        torch.save(torch.cat([gradient.flatten() for gradient in found]).cpu(), file)
        return {"losses": [float(loss) for loss in losses]}

    def measure(self, case: str, threads: int, calls: int) -> dict[str, Any]:
        """Seconds of training steps: the meta-gradient and Adam."""
        torch.set_num_threads(threads)
        one = self._cases[case]
        _finish(one.device)
        started = time.perf_counter()
        for _ in range(calls):
            one.optimizer.zero_grad()
            self._backward(one)
            one.optimizer.step()
        _finish(one.device)
        return {"seconds": time.perf_counter() - started}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def main(name: str) -> None:
    """Answer until standard input ends."""
    # What a library prints would be taken for an answer: it goes to the other stream.
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)
        try:
            answers = Answers(name)
        except Exception as error:  # noqa: BLE001 (an import may raise anything)
            print(json.dumps({"absent": f"{type(error).__name__}: {error}"}), file=out)
            return
        version = torch.__version__ if name == "vmap" else _version(name)
        print(json.dumps({"version": version, "torch": torch.__version__}), file=out)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                reply = getattr(answers, request.pop("do"))(**request)
            except Exception as error:  # noqa: BLE001 (the library's own, for the one who asked)
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=out)


if __name__ == "__main__":
    main(sys.argv[1])
