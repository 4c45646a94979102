"""Models as people have them: wrappers come off, and what cannot be meta-trained is refused with the line to change.

All of it is found before any worker starts. What is left to the tasks' own shapes is checked by
:mod:`distmeta.learners.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from distmeta.errors import DistmetaError, ModelContractError, listed
from distmeta.types import ModelFactory, TaskSpec


def plain(model: nn.Module) -> tuple[nn.Module, str]:
    """Take wrappers off a model: ``torch.compile``, ``DataParallel``, ``DistributedDataParallel``.

    The parameters are the same tensors, by the names that the plain model has. A model that holds no wrapper is
    returned as it is; where a part of it is wrapped, the parts around it are shallow copies, so that the model given
    stays as it was.

    Args:
        model: as the user gave it.

    Returns:
        The plain module, and a line about what is not used; empty where nothing was taken off.

    Raises:
        ModelContractError: a part is a TorchScript module, or its ``forward`` is decorated with ``torch.compile``.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> plain(nn.DataParallel(network))[0] is network
        True
    """
    taken: dict[str, str] = {}
    found = _plain(model, "", taken, {})
    for module in found.modules():
        if parametrize.is_parametrized(module):
            _let_pickle(module)
    return found, " ".join(taken.values())


def require_usable(model: nn.Module) -> None:
    """Raise if the parameters of a built model cannot be meta-trained, whatever the tasks are.

    Raises:
        ModelContractError: a layer is lazy, parameters are sparse, have no data, or are on several devices.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if lazy := [name for name, t in tensors.items() if nn.parameter.is_lazy(t)]:
        raise ModelContractError(
            f"{listed(lazy)}: the layer is lazy and has no shape yet; expected a built model. Call the model once "
            "on a batch, or build it from a factory that reads spec.input_shape."
        )
    if sparse := [name for name, p in model.named_parameters() if p.layout is not torch.strided]:
        raise ModelContractError(
            f"{listed(sparse)}: the parameter is sparse ({_name(tensors[sparse[0]].layout)}); expected dense ones, "
            "which are averaged over tasks. Make it nn.Parameter(parameter.to_dense())."
        )
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    if sparse := [name or "the model" for name, m in layers.items() if m.sparse and m.weight.requires_grad]:
        raise ModelContractError(
            f"{listed(sparse)}: the embedding has sparse gradients, which have no second derivative; expected dense "
            "ones. Build it with sparse=False."
        )
    if empty := [name for name, t in tensors.items() if t.is_meta]:
        raise ModelContractError(
            f"{listed(empty)}: on torch's device 'meta', which holds shapes without numbers; expected weights. Build "
            'the model without torch.device("meta"), or model.to_empty(device="cpu") and load its weights.'
        )
    if len(devices := sorted({str(t.device) for t in tensors.values()})) > 1:
        raise ModelContractError(
            f"The model is spread over the devices {listed(devices)}; expected one, since each worker holds a whole "
            'copy. Call model.to("cpu"): workers with a GPU move their copy there.'
        )


def require_tensor(output: object, needs: str) -> torch.Tensor:
    """The output of a model, which must be one tensor.

    Args:
        output: what the model returned.
        needs: who needs it, such as ``"MAML"``.

    Raises:
        ModelContractError: it is a tuple, a dictionary or an object with several parts; shows the wrapper to write.
    """
    if isinstance(output, torch.Tensor):
        return output
    parts = _parts(output)
    seen = type(output).__name__
    tensors = {access: shape for access, shape in parts.items() if shape is not None}
    if not tensors:
        raise ModelContractError(
            f"{needs} needs a model that returns one tensor; it returned {seen}. Return the logits or the features."
        )
    usual = [a for word in ("logits", "pooler_output", "last_hidden_state") for a in tensors if word in a]
    access = (usual or list(tensors))[0]
    if "last_hidden_state" in access:
        access += "[:, 0]"  # [B, tokens, D]: the first token stands for the whole input
    shapes = listed(f"{access} {shape}" for access, shape in tensors.items())
    raise ModelContractError(
        f"{needs} needs a model that returns one tensor; it returned {seen} with {shapes}. Wrap it:\n"
        "class One(nn.Module):\n"
        "    def __init__(self, model): super().__init__(); self.model = model\n"
        f"    def forward(self, x): return self.model(x){access}\n"
        "and give One(model), or choose another part; or return that tensor in the model itself."
    )


def mixed_types(model: nn.Module) -> str:
    """A hint where frozen parameters or buffers have another floating point type than what is trained, or nothing."""
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if others := [name for name, t in tensors.items() if t.is_floating_point() and t.dtype not in trained]:
        return (
            f"{listed(others)} {'is' if len(others) == 1 else 'are'} {_name(tensors[others[0]].dtype)}, the trained "
            f"parameters {' and '.join(sorted(map(_name, trained)))}: model.float() makes all of one type."
        )
    return ""


def _parts(output: object) -> dict[str, list[int] | None]:
    """The parts of an output by the text that takes each out of it: the shape of a tensor, ``None`` for others."""
    found: dict[str, object] = {}
    if isinstance(output, Mapping):
        found = {f"[{key!r}]": value for key, value in output.items()}
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", None)
        found = {f".{names[i]}" if names else f"[{i}]": value for i, value in enumerate(output)}
    elif is_dataclass(output) and not isinstance(output, type):
        found = {f".{f.name}": getattr(output, f.name) for f in fields(output)}
    elif hasattr(output, "__dict__"):
        found = {f".{name}": value for name, value in vars(output).items()}
    return {access: list(v.shape) if isinstance(v, torch.Tensor) else None for access, v in found.items()}


def _plain(module: nn.Module, name: str, taken: dict[str, str], known: dict[int, nn.Module]) -> nn.Module:
    if id(module) in known:
        return known[id(module)]
    given, where = module, f"The model's part {name}" if name else "The model"
    while (inner := _inside(module)) is not None:
        kind = type(module).__name__
        if kind == "OptimizedModule":
            taken["compiled"] = _not_compiled(where)
        else:
            taken[kind] = f"{where} is used without its {kind}: the workers share out tasks instead."
        module = inner
    _refuse_script(module, where)
    own = _without_compiled_forward(module, where)
    if own is not module.__dict__:
        taken["compiled"] = _not_compiled(where)
    parts = {
        key: None if child is None else _plain(child, f"{name}.{key}".lstrip("."), taken, known)
        for key, child in module._modules.items()
    }
    if own is not module.__dict__ or any(parts[key] is not child for key, child in module._modules.items()):
        copied = type(module).__new__(type(module))
        copied.__dict__.update({**own, "_modules": parts})
        module = copied
    known[id(given)] = module
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper; ``None`` where ``module`` is none."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    elif type(module).__name__ == "OptimizedModule":  # by name: the class is in torch's compiler, slow to import
        inner = module._modules.get("_orig_mod")
    else:
        return None
    assert isinstance(inner, nn.Module)
    return inner


def _not_compiled(where: str) -> str:
    return (
        f"{where} is used as it is without torch.compile, whose code has no second derivative and cannot be "
        "vectorised over tasks."
    )


def _refuse_script(module: nn.Module, where: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelContractError(
            f"{where} is a TorchScript module (torch.jit.script, trace or load), whose parameters cannot be replaced "
            "by those of a task; expected a plain nn.Module. Give the module that it was made from, and load the "
            "weights: model.load_state_dict(scripted.state_dict())."
        )
    if type(module).__name__ == "FullyShardedDataParallel":
        raise ModelContractError(
            f"{where} is sharded by FullyShardedDataParallel, so that no process has whole parameters; expected a "
            "plain nn.Module. Give the module that it was made from."
        )


def _without_compiled_forward(module: nn.Module, where: str) -> dict[str, Any]:
    """The module's attributes without what ``module.compile()`` or ``module.forward = torch.compile(...)`` left."""
    own = module.__dict__
    if _is_compiled(type(module).forward):
        raise ModelContractError(
            f"{where} has a forward() that is decorated with torch.compile, which has no second derivative and cannot "
            f"be vectorised over tasks. Remove the decorator from {type(module).__name__}.forward."
        )
    if own.get("_compiled_call_impl") is not None:
        own = {**own, "_compiled_call_impl": None}
    if _is_compiled(own.get("forward")):
        own = {key: value for key, value in own.items() if key != "forward"}
    return own


def _is_compiled(function: object) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable")


def _let_pickle(module: nn.Module) -> None:
    """Let a module with parametrizations, such as ``weight_norm``, be sent to workers.

    torch makes a class for every such module and forbids to pickle it, since the class has no name to find it by.
    """
    type(module).__reduce_ex__ = _reduce_parametrized  # type: ignore[method-assign,assignment]


def _reduce_parametrized(module: nn.Module, protocol: int) -> tuple[Callable[..., nn.Module], tuple[Any, ...]]:
    return _rebuild_parametrized, (parametrize.type_before_parametrizations(module), dict(module.__dict__))


def _rebuild_parametrized(kind: type[nn.Module], attributes: dict[str, Any]) -> nn.Module:
    module = kind.__new__(kind)
    module.__dict__.update(attributes)
    parametrize._inject_new_class(module)
    for name in attributes["_modules"]["parametrizations"]:
        parametrize._inject_property(module, name)
    _let_pickle(module)
    return module


def _name(kind: torch.layout | torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def built_for(factory: ModelFactory, spec: TaskSpec) -> nn.Module:
    """The module that a factory builds for tasks of these shapes.

    Raises:
        ModelContractError: it fails, or builds something else.
    """
    name = getattr(factory, "__qualname__", type(factory).__name__)
    try:
        model: object = factory(spec)
    except DistmetaError:
        raise
    except Exception as error:
        raise ModelContractError(
            f"The model factory {name} fails on the tasks' spec: {type(error).__name__}: {error}. A factory takes one "
            f"argument, the TaskSpec (here {spec}), and returns an nn.Module"
            f"{f'; to use a module class, give an instance: {name}(...)' if isinstance(factory, type) else ''}."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelContractError(
            f"The model factory {name} returned {type(model).__name__}; expected a torch.nn.Module. Return the module."
        )
    return model


__all__ = ["built_for", "mixed_types", "plain", "require_tensor", "require_usable"]
