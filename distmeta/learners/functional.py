"""Models as pure functions of their parameters, and the gradient of one task's loss, vectorised or not.

Its second derivatives are in :mod:`distmeta.learners.curvature`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from distmeta.learners.exact_norms import ExactNorms, Replacing
from distmeta.learners.fast_kernels import FastKernels
from distmeta.learners.first_order_kernels import FirstOrderKernels
from distmeta.learners.one_level import Level, one_level
from distmeta.learners.user_model import require_usable
from distmeta.types import Params

_VECTORISED: ContextVar[bool] = ContextVar("distmeta_vectorised", default=False)
_ONCE: ContextVar[bool] = ContextVar("distmeta_differentiated_once", default=False)
_ENGINE: ContextVar[Literal[1, 2]] = ContextVar("distmeta_engine", default=1)


def trainable(model: nn.Module) -> Params:
    """Copies of the parameters with ``requires_grad``, in the model's order.

    Raises:
        ModelContractError: a parameter cannot be meta-trained, see
            :func:`~distmeta.learners.user_model.require_usable`.
    """
    require_usable(model)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen_digest(model: nn.Module) -> str | None:
    """sha256 over the parameters that are not trained and the buffers; ``None`` where there are none.

    Example:
        >>> frozen_digest(nn.Linear(2, 1)) is None
        True
    """
    fixed = {name: p for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
    if not fixed:
        return None
    digest = hashlib.sha256()
    for name, value in fixed.items():
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def vectorised(active: bool, *, exact_norms: bool = True) -> Iterator[None]:
    """Mark that the code inside runs under ``torch.func.vmap`` (or, with ``False``, in a plain loop over tasks).

    Attention is computed from matrix products: torch's fused kernels have no second derivative and no batching rule.

    Args:
        active: whether tasks are vectorised inside.
        exact_norms: second derivatives of norm layers are needed; torch's own norms, for first ones alone, are faster.
    """
    kernels: type[Replacing] = FastKernels if _ENGINE.get() == 2 else ExactNorms
    # Nested, as evaluation is, the norms are exact already: once more would only cost time.
    norms = kernels() if exact_norms and active and not _VECTORISED.get() else contextlib.nullcontext()
    token = _VECTORISED.set(active)
    try:
        with sdpa_kernel(SDPBackend.MATH), norms:
            yield
    finally:
        _VECTORISED.reset(token)


def is_vectorised() -> bool:
    """Whether the code runs under ``torch.func.vmap``, see :func:`vectorised`."""
    return _VECTORISED.get()


def on_engine_2() -> bool:
    """Whether engine 2 computes, see :func:`using_engine`."""
    return _ENGINE.get() == 2


def stacking() -> Level | None:
    """The level of ``vmap`` behind which engine 2 computes on stacked tensors, if it does."""
    return one_level() if on_engine_2() else None


@contextlib.contextmanager
def differentiated_once() -> Iterator[None]:
    """Mark that the code inside computes one task of a plain loop, of which no second derivative is taken."""
    token = _ONCE.set(True)
    try:
        with vectorised(False):
            yield
    finally:
        _ONCE.reset(token)


def kernels_of_model() -> contextlib.AbstractContextManager[object]:
    """Return the context of a call of the model: engine 2 has kernels for what is differentiated once.

    Around the model alone, since every other call of torch inside would cost time.
    """
    return FirstOrderKernels() if _ONCE.get() and on_engine_2() else contextlib.nullcontext()


@contextlib.contextmanager
def using_engine(engine: Literal[1, 2]) -> Iterator[None]:
    """Choose what vectorised tasks are computed by; both engines compute the same function, and round otherwise.

    Args:
        engine: 1: torch's own kernels, norms from primitives, ``torch.func.grad`` in tasks; 2:
            :class:`~distmeta.learners.fast_kernels.FastKernels`, autograd on the stacked tasks; for tasks in a loop see
            :func:`differentiated_once`.
    """
    token = _ENGINE.set(engine)
    try:
        yield
    finally:
        _ENGINE.reset(token)


def laid_out(params: Params) -> Params:
    """``params`` in the memory layout of the kernels in use, so that weights of tasks come out of steps in it too."""
    if _ENGINE.get() == 1:
        return params
    return {n: p.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p for n, p in params.items()}


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """The largest parts of ``model`` that are frozen: no parameter requires a gradient, and the part is in eval mode.

    Such a part learns nothing, from the outer loop or from tasks: its norm layers keep their running statistics, its
    dropout is off. A layer with neither parameters nor buffers is no part of its own.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).requires_grad_(False).eval()
        >>> frozen_parts(nn.Sequential(encoder, nn.Dropout(), nn.Linear(8, 2))) == [encoder]
        True
    """
    if model.training or any(p.requires_grad for p in model.parameters()):
        return [part for child in model.children() for part in frozen_parts(child)]
    has_state = next(model.parameters(), None) is not None or next(model.buffers(), None) is not None
    return [model] if has_state else []


@contextlib.contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """Put the model into training mode, all but its :func:`frozen_parts`; every module has its former mode afterwards.

    Former modes are given back since they tell what the user froze: they are the same before every chunk, on every
    worker.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2).requires_grad_(False).eval(), nn.Linear(2, 1).eval())
        >>> with in_training(model):
        ...     print([layer.training for layer in model])
        [False, True]
    """
    frozen = [(module, module.training) for part in frozen_parts(model) for module in part.modules()]
    with _former_modes(model):
        model.train()
        for module, training in frozen:
            module.training = training
        yield


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; every module has its former mode again afterwards.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with evaluating(model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    with _former_modes(model):
        model.eval()
        yield


@contextlib.contextmanager
def _former_modes(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Leave ``torch.inference_mode``, under which there are no gradients at all; none is recorded unless asked for."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(x: torch.Tensor) -> torch.Tensor:
    """``x``, copied where it was made under ``torch.inference_mode`` and so can take part in no gradient."""
    return x.clone() if x.is_inference() else x


def same_noise_after(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Give back the state of torch's random numbers, of the CPU and of ``device``, at the end of the context."""
    manager: contextlib.AbstractContextManager[None] = torch.random.fork_rng([device] if device.type == "cuda" else [])
    return manager


def has_fused_rnn(model: nn.Module) -> bool:
    """Return whether the model has a layer that a GPU computes by cuDNN's recurrent kernels."""
    return any(isinstance(layer, nn.RNNBase) for layer in model.modules())


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether a norm layer of the model takes the statistics of the batch at hand in evaluation.

    Example:
        >>> has_batch_statistics(nn.BatchNorm1d(3, track_running_stats=False)), has_batch_statistics(nn.LayerNorm(3))
        (True, False)
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return any(isinstance(layer, norms) and layer.running_mean is None for layer in model.modules())


def differentiable_twice(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return the context that ``model`` needs for second derivatives, and for first ones in evaluation.

    cuDNN's recurrent kernels have no second derivative, and no first one after ``eval()``: layers such as ``nn.LSTM``
    are computed by torch's own, slower. Other models are left as they are.
    """
    if not has_fused_rnn(model):
        return contextlib.nullcontext()
    cudnn = torch.backends.cudnn
    # Only the switch; the other flags stay as the worker set them.
    return cudnn.flags(
        enabled=False,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    )


def task_gradient(
    loss: Callable[[Params], torch.Tensor], params: Params, *, create_graph: bool = True
) -> tuple[Params, torch.Tensor]:
    """Gradient of one task's loss, differentiable again unless ``create_graph`` is off or gradients are disabled.

    Works for one task of a ``vmap`` (by ``torch.func.grad``) and in a plain loop (by ``torch.autograd.grad``), so that
    an algorithm is written once.

    Args:
        loss: scalar loss as a function of the parameters.
        params: the point at which to differentiate.
        create_graph: keep the graph, for second-order meta-gradients.

    Returns:
        The gradient by name (zeros for a parameter that the loss does not use) and the loss.
    """
    keep = create_graph and torch.is_grad_enabled()
    if is_vectorised():
        level = stacking()
        if level is not None:
            return _stacked_gradient(loss, params, level, keep)
        with contextlib.nullcontext() if keep else torch.no_grad():
            gradient, value = torch.func.grad_and_value(loss)(params)
        return gradient, value
    with torch.enable_grad():
        point = {n: p if keep and p.requires_grad else p.detach().requires_grad_() for n, p in params.items()}
        value = loss(point)
        return named_gradient(value, point, create_graph=keep), value if keep else value.detach()


def named_gradient(value: torch.Tensor, point: Params, *, create_graph: bool = False) -> Params:
    """Derivative with respect to every tensor of ``point``, zeros where there is none."""
    parts: Sequence[torch.Tensor | None] = (None,) * len(point)
    if value.requires_grad:  # not so where the model cuts the graph: zero slope, which the contract reports by name
        parts = torch.autograd.grad(value, list(point.values()), create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(p) if part is None else part
        for (name, p), part in zip(point.items(), parts, strict=True)
    }


def own_kernels(p: torch.Tensor) -> torch.Tensor:
    """Kernels that all tasks share, ``[T, O, C, kh, kw]`` expanded, as one block: every use would make it again."""
    if p.dim() != 5 or p.stride(0) or len(p) == 1:
        return p
    return p.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _stacked_gradient(
    loss: Callable[[Params], torch.Tensor], params: Params, level: Level, keep: bool
) -> tuple[Params, torch.Tensor]:
    """:func:`task_gradient` of all tasks of a chunk: those of the sum of losses, since no task sees another."""
    plain = {name: level.stacked(p) for name, p in params.items()}
    with torch.enable_grad():
        with level.outside():
            plain = {name: own_kernels(p) for name, p in plain.items()}
            point = {n: p if keep and p.requires_grad else p.detach().requires_grad_() for n, p in plain.items()}
        value = loss({name: level.mapped(p) for name, p in point.items()})
        losses = level.stacked(value)
        with level.outside():
            parts: Sequence[torch.Tensor | None] = (None,) * len(point)
            if losses.requires_grad:
                parts = torch.autograd.grad(losses.sum(), list(point.values()), create_graph=keep, allow_unused=True)
            found = {
                name: torch.zeros_like(p) if part is None else part
                for (name, p), part in zip(point.items(), parts, strict=True)
            }
    return {name: level.mapped(part) for name, part in found.items()}, value if keep else value.detach()
