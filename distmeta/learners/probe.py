"""Checks of a model and a learner before any worker starts, and the choice of the engine."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import nn

from distmeta.errors import (
    DistmetaError,
    LearnerContractError,
    ModelContractError,
    NonFiniteGradientError,
    line_of,
    listed,
)
from distmeta.learners.base import MetaLearner
from distmeta.learners.engine_choice import suits_engine_2
from distmeta.learners.engine_errors import EngineErrors, shortened
from distmeta.learners.functional import evaluating, has_fused_rnn, in_training, vectorised
from distmeta.learners.losses import of_task
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.precision import Precision
from distmeta.learners.user_model import mixed_types
from distmeta.seeding import rng
from distmeta.types import Episode, Params, TaskSpec


@dataclass(frozen=True)
class Probe:
    """Result of :func:`probe`.

    Args:
        learner: the learner with ``vectorise`` chosen, ``"vmap"``, ``"vmap-2"`` or ``"loop"``.
        message: why a slower engine was chosen, or what of the model is not used, if so.
    """

    learner: MetaLearner
    message: str | None


def probe(learner: MetaLearner, spec: TaskSpec, episodes: Episode, test: TaskSpec | None = None) -> Probe:
    """Check a bound learner on a few tasks and choose how it is vectorised.

    Args:
        learner: with its model built.
        spec: shapes of the training tasks.
        episodes: two or more training tasks, stacked.
        test: shapes of the test tasks, where they differ.

    Raises:
        ModelContractError: the model keeps running statistics, returns the wrong shape, changes its buffers or leaves a
            parameter unused.

    Example:
        >>> from distmeta.learners.maml import MAML
        >>> spec = TaskSpec(input_shape=(4,), outputs=5, kind="classification", support=5, queries=5)
        >>> x, y = torch.rand(2, 5, 4), torch.arange(5).expand(2, 5)
        >>> probe(MAML(nn.Linear(4, 5)), spec, Episode(x, y, x, y)).learner.config.vectorise
        'vmap'
    """
    refuse_running_statistics(learner.model)
    params = learner.init_meta_params(rng(0, "init"))
    layout = ParamLayout.of(params)
    precision, learner = learner.config.precision, learner.with_config(precision="float32")
    if precision != "float32" and layout.torch_dtype != torch.float32:
        raise ModelContractError(
            f"learner.precision={precision}, but the model's parameters are {layout.dtype}; expected float32. Give "
            "model.float(), or leave learner.precision out."
        )
    episodes = episodes.to(next(iter(params.values())).device, layout.torch_dtype)
    loop = learner.with_config(vectorise="loop")
    messages = [learner._unused_wrapper]
    ways = {spec.outputs, (test or spec).outputs}
    with in_training(learner.model):
        _check_one_task(loop, spec, ways, params, episodes.counted().map(lambda part: part[0]))
    found = Probe(loop, None) if learner.config.vectorise == "loop" else _choose_engine(learner, loop, params, episodes)
    if found.learner.loops:
        _require_loop(loop, params, episodes)
    messages.append(found.message or "")
    if precision != "float32":
        found, slower = _in_precision(found, precision, params, episodes, asked=learner.config.vectorise)
        messages.append(slower)
    if learner.model_kind != "sequence" and has_fused_rnn(learner.model):
        messages.append("cuDNN's recurrent kernels have no second derivative: on a GPU torch's own are used, slower.")
    return replace(found, message=" ".join(filter(None, messages)) or None)


def require_equal_ways(learner: MetaLearner, train: TaskSpec, test: TaskSpec) -> None:
    """Raise if a learner cannot be tested on such tasks: another number of ways, or of columns, or padding.

    Raises:
        LearnerContractError: names what differs and the fix.
    """
    other_columns = len(train.input_shape) == 1 and train.input_shape != test.input_shape
    if learner.model_kind not in ("set", "sequence") and (test.padded or other_columns):
        what = "are filled up with padding" if test.padded else f"have inputs of shape {list(test.input_shape)}"
        raise LearnerContractError(
            f"{type(learner).__name__} is trained on inputs of shape {list(train.input_shape)}; the test tasks {what}. "
            "Use InContext, whose models take any number of rows and columns, or test tasks like those of training "
            "(of Tables: leave tasks.test out)."
        )
    if learner.model_kind == "sequence" and train.outputs != test.outputs:
        raise LearnerContractError(
            f"{type(learner).__name__} is trained on sequences with {train.outputs} outputs per step and evaluated on "
            f"ones with {test.outputs}, but its model's outputs are fixed. Evaluate it on tasks of the same "
            "kind (tasks.ways, tasks.bits, tasks.labels as in training); only with tasks.labels=strings does the "
            "number of ways leave the outputs as they are."
        )
    if train.fewest is not None and train.fewest <= test.outputs <= train.outputs:
        return
    if learner.model_kind == "set" and train.kind == "classification" and test.outputs <= train.outputs:
        return  # fewer classes than the model has outputs: the others have probability 0
    if learner.model_kind in ("classifier", "set") and train.outputs != test.outputs:
        trained_on = train.outputs if train.fewest is None else f"{train.fewest}- to {train.outputs}"
        raise LearnerContractError(
            f"{type(learner).__name__} is trained on {trained_on}-way tasks and tested on {test.outputs}-way ones, "
            "but its model has one output per class. Train it with tasks.train_ways equal to tasks.ways, or "
            "bounds around it such as train_ways=(5, 20), or use a metric learner such as ProtoNet, which takes any "
            "number."
        )


def refuse_running_statistics(model: nn.Module) -> None:
    """Raise if a norm layer updates running averages: they would carry one task's statistics into the next.

    Those of a frozen layer, without gradients and in eval mode, are constants and may stay.

    Raises:
        ModelContractError: names the layers and the fix.
    """
    with in_training(model):
        keeping = [
            (f"{name} ({type(layer).__name__})".strip(), layer)
            for name, layer in model.named_modules()
            if getattr(layer, "track_running_stats", False)
            and (layer.training or any(p.requires_grad for p in layer.parameters()))
        ]
    if not keeping:
        return
    names = listed(name for name, _ in keeping)
    if not any(p.requires_grad for _, layer in keeping for p in layer.parameters()):
        raise ModelContractError(
            f"{names}: the norm layer's weights are frozen, but it is in training mode and would go on averaging "
            "statistics over tasks; expected eval mode, in which they stay. Call .eval() on the frozen part before "
            "giving the model to the learner, or distmeta.use_batch_statistics(model)."
        )
    raise ModelContractError(
        f"{names}: the norm layer keeps running statistics, which leak from one task to the next; "
        "expected statistics of the batch. Build it with track_running_stats=False, or call "
        "distmeta.use_batch_statistics(model), or use GroupNorm. Those of a pretrained part that is not to be trained "
        "may stay: part.requires_grad_(False).eval()."
    )


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Switch every norm layer of ``model`` to the statistics of the batch, in place; its weights stay.

    Frozen parts are switched too; to keep the statistics of one, call this on the other parts.

    Returns:
        The same model.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> use_batch_statistics(norm).running_mean is None
        True
    """
    for layer in model.modules():
        if getattr(layer, "track_running_stats", False):
            # The module's attributes are typed as modules or tensors; these three may be None or bool.
            setattr(layer, "track_running_stats", False)  # noqa: B010
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                layer.register_buffer(name, None)
    return model


def unused_parameters(learner: MetaLearner, params: Params, episode: Episode) -> list[str]:
    """Names of the meta-parameters that the loss of a task does not depend on."""
    theta = {name: p.detach().requires_grad_() for name, p in params.items()}
    with vectorised(False):
        loss, _ = learner.with_config(vectorise="loop").meta_loss(theta, episode)
    if not loss.requires_grad:
        return list(theta)
    gradient = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    return [name for name, part in zip(theta, gradient, strict=True) if part is None]


def _check_one_task(learner: MetaLearner, spec: TaskSpec, ways: set[int], params: Params, episode: Episode) -> None:
    name = type(learner).__name__
    # Copies, not references: a module that writes to a buffer in place would change both.
    before = {key: buffer.clone() for key, buffer in learner.model.named_buffers()}
    inputs = _inputs(learner, spec, episode)
    x = inputs[0]
    try:
        output, again = _forward_twice(learner, params, inputs)
    except DistmetaError:
        raise
    except Exception as error:
        raise ModelContractError(
            f"{name} could not run the model on inputs of shape {list(x.shape)}: {type(error).__name__}: "
            f"{_short(str(error))} ({line_of(error)}). "
            f"{mixed_types(learner.model) or _takes(learner, x)}"
        ) from error
    _check_output(learner, spec, ways, len(x), output)
    if learner.model_kind == "set":
        _check_queries(learner, params, inputs)
    try:
        with torch.no_grad(), vectorised(False):
            prediction = learner.query_logits(params, episode)
    except DistmetaError:
        raise
    except Exception as error:
        raise LearnerContractError(
            f"{name}.query_logits fails on one task, though the model takes its inputs: {type(error).__name__}: "
            f"{_short(str(error))} ({line_of(error)}). {mixed_types(learner.model) or 'Fix that line.'}"
        ) from error
    seen = list(prediction.shape) if isinstance(prediction, torch.Tensor) else type(prediction).__name__
    expected = [len(episode.query_x), spec.outputs if episode.outputs is None else episode.outputs]
    if not isinstance(prediction, torch.Tensor) or list(of_task(prediction, episode).shape) != expected:
        raise LearnerContractError(
            f"{name}.query_logits returned {seen} for one task; expected {expected}, a row "
            "of logits (or values) for every query."
        )
    changed = [key for key, buffer in learner.model.named_buffers() if not torch.equal(buffer, before[key])]
    if changed:
        raise ModelContractError(
            f"The model changes its own buffer {listed(changed)} in forward; expected a pure function of its "
            "inputs, or a task would depend on the tasks before it. Keep such state out of meta-training."
        )
    if not torch.allclose(output, again, rtol=1e-4, atol=1e-6, equal_nan=True):  # kernels of a GPU may round otherwise
        raise ModelContractError(
            "The model returned other numbers for the same inputs the second time, with torch's random numbers seeded "
            "alike; expected a pure function of its inputs, or a task would depend on the tasks before it. Keep no "
            "state in attributes, and take random numbers from torch alone."
        )
    if not bool(torch.isfinite(prediction).all()):
        raise NonFiniteGradientError(
            "The model's predictions for the first task are NaN or infinite after adaptation; expected finite "
            "numbers. Lower learner.inner_lr, or look at the model's initial weights."
        )
    try:
        unused = unused_parameters(learner, params, episode)
    except DistmetaError:
        raise
    except Exception as error:
        raise _not_differentiable(name, error) from error
    if unused:
        raise ModelContractError(
            f"The loss does not depend on the parameter {listed(unused)}: it would never be trained. Use it in "
            "forward(), remove it, or set requires_grad=False to freeze it."
        )


def _takes(learner: MetaLearner, x: torch.Tensor) -> str:
    if learner.model_kind == "set":
        one = ", ".join(map(str, x.shape[2:]))
        return f"Make forward take (support_x [T, S, {one}], support_y [T, S], query_x [T, Q, {one}])."
    return f"Make the model take a batch of {list(x.shape[1:])} inputs."


def _inputs(learner: MetaLearner, spec: TaskSpec, episode: Episode) -> tuple[torch.Tensor, ...]:
    """What the model is given of one task."""
    if learner.model_kind == "set":
        return episode.support_x[None], episode.support_y[None], episode.query_x[None]
    return (episode.query_x[None] if spec.kind == "sequence" else episode.support_x,)


def _check_queries(learner: MetaLearner, params: Params, inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise if a query has an influence on another: the answers would depend on what else is asked."""
    support_x, support_y, query_x = inputs
    with evaluating(learner.model), torch.no_grad():
        output = learner.forward(params, *inputs)
        try:
            queries = (query_x[:, :1], query_x[:, -1:])
            alone = [learner.forward(params, support_x, support_y, query) for query in queries]
        except DistmetaError:
            raise
        except Exception as raised:
            raise ModelContractError(
                f"{type(learner).__name__} could not ask the model for one query alone: {type(raised).__name__}: "
                f"{_short(str(raised))} ({line_of(raised)}). Make forward take any number of queries, and use no batch "
                "normalisation, whose statistics mix them (GroupNorm or LayerNorm do not)."
            ) from raised
    found, expected = torch.cat(alone, 1), output[:, [0, -1]]
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= 1e-3:
        raise ModelContractError(
            f"{type(learner).__name__} needs a set model whose queries do not see each other: one query alone and "
            f"among others gave predictions that differ by {error:.1e}, relative; expected the same. Let queries "
            "attend to the support set only, and use no batch normalisation, whose statistics mix them (GroupNorm "
            "or LayerNorm do not)."
        )


def _forward_twice(learner: MetaLearner, params: Params, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The output of the model for its inputs, from the same random numbers each time."""
    x = inputs[0]
    outputs = []
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        for _ in range(2):
            torch.manual_seed(0)
            outputs.append(learner.forward(params, *inputs))
    return outputs


def _check_output(learner: MetaLearner, spec: TaskSpec, ways: set[int], batch: int, output: torch.Tensor) -> None:
    name = type(learner).__name__
    expected = [batch, spec.outputs]
    if learner.model_kind == "sequence":
        _check_sequence_output(name, [1, spec.queries, spec.outputs], output)
    if learner.model_kind == "set":
        wanted = learner.spec_for_model(spec).outputs
        if output.dim() != 3 or list(output.shape[::2]) != [1, wanted]:
            raise ModelContractError(
                f"{name} needs a set model: the model returned {list(output.shape)} for one task; expected "
                f"[1, queries, {wanted}]. Return a row of {wanted} numbers for every query of every task, or give a "
                "factory such as table_transformer(), which reads the number from the tasks."
            )
    if learner.model_kind == "classifier" and list(output.shape) != expected:
        task = f"{spec.outputs}-way episode" if spec.kind == "classification" else "regression task"
        role = "classifier" if spec.kind == "classification" else "regressor"
        raise ModelContractError(
            f"{name} needs a {role}: the model returned {list(output.shape)} for a {task}, expected {expected}. "
            f"Give the last layer {spec.outputs} outputs, or give a factory such as conv4() that reads the number from "
            "the tasks. ProtoNet and MatchingNet take an encoder."
        )
    if learner.model_kind == "encoder":
        flat = output.dim() == 2
        if not flat or output.shape[1] in ways:
            seen = "one number per class" if flat else "not one feature vector per input"
            fix = "where as many features as classes are meant, take one more" if flat else "flatten the features"
            raise ModelContractError(
                f"{name} needs an encoder: the model returned {list(output.shape)} for {batch} inputs, {seen}; "
                f"expected [{batch}, D]. Leave the last layer out, as conv4(head=False) does; {fix}."
            )


def _check_sequence_output(name: str, expected: list[int], output: torch.Tensor) -> None:
    if output.dim() != 3 or [output.shape[0], output.shape[2]] != [expected[0], expected[2]]:
        raise ModelContractError(
            f"{name} needs a sequence model: the model returned {list(output.shape)}, expected {expected}: "
            f"{expected[2]} numbers for each of {expected[1]} time steps. Use a factory such as ntm() or mann(), or "
            "return [B, L, outputs] for inputs [B, L, ...]."
        )


def _choose_engine(learner: MetaLearner, loop: MetaLearner, params: Params, episodes: Episode) -> Probe:
    vmapped, fast = (learner.with_config(vectorise=engine) for engine in ("vmap", "vmap-2"))
    asked = learner.config.vectorise
    errors = EngineErrors(learner, episodes)
    with in_training(learner.model):
        suits = asked == "auto" and suits_engine_2(learner, params, episodes.counted().map(lambda part: part[0]))
    if suits or asked == "vmap-2":
        # First, since what passes needs no look at the slower engines: they take most of the time with large images.
        reason = _why_not(fast, params, episodes, errors)
        if reason is None and (errors.in_float64 or asked == "vmap-2"):
            return Probe(fast, None)
        if asked == "vmap-2":
            raise ModelContractError(
                f"learner.vectorise=vmap-2 but distmeta's kernels cannot take this model ({reason}). Set "
                "learner.vectorise=vmap, or auto."
            )
    reason = _why_not(vmapped, params, episodes, errors)
    if reason is None:
        return Probe(vmapped, None)
    if learner.model_kind == "set":
        raise ModelContractError(
            f"{type(learner).__name__} computes the tasks of a chunk stacked, and one by one they came out otherwise "
            f"({reason}); expected a set model in which no task has an influence on another. Mix numbers along the "
            "axes of rows and features only, never along the first, and use no batch normalisation."
        )
    if asked == "vmap":
        raise ModelContractError(
            f"learner.vectorise={asked} but torch.func.vmap cannot take this model ({reason}). Set "
            "learner.vectorise=loop, or auto."
        )
    return Probe(loop, f"torch.func.vmap cannot take this model ({reason}); looping over tasks: slower, same numbers.")


def _why_not(learner: MetaLearner, params: Params, episodes: Episode, errors: EngineErrors) -> str | None:
    """Why an engine cannot be used, if so: it fails, or its meta-gradient is not that of a plain loop."""
    try:
        with warnings.catch_warnings():
            # Where torch lacks a batching rule it warns once and runs task by task: our own loop is no slower.
            warnings.filterwarnings("error", message="There is a performance drop")
            few = shortened(learner)
            few.meta_gradient(params, episodes)
            few.for_evaluation().evaluate(params, episodes)
            return errors.of(learner.config.vectorise)
    except Exception as error:  # noqa: BLE001 (a user's module may raise anything under vmap)
        return f"{type(error).__name__}: {_short(str(error))}"


def _require_loop(learner: MetaLearner, params: Params, episodes: Episode) -> None:
    """Raise if even a plain loop over tasks cannot train and evaluate, which a worker would find out too late."""
    name = type(learner).__name__
    try:
        learner.meta_gradient(params, episodes)
    except DistmetaError:
        raise
    except Exception as error:
        raise _not_differentiable(name, error) from error
    try:
        learner.for_evaluation().evaluate(params, episodes)
    except DistmetaError:
        raise
    except Exception as error:
        raise ModelContractError(
            f"{name} can train the model but not evaluate it, in eval mode: {type(error).__name__}: "
            f"{_short(str(error))} ({line_of(error)}). Fix that line."
        ) from error


def _in_precision(
    found: Probe, precision: Precision, params: Params, episodes: Episode, *, asked: str
) -> tuple[Probe, str]:
    """The learner in the precision asked for, in a loop where it fails vectorised, and a line about that.

    Raises:
        ModelContractError: it cannot compute the meta-gradient.
        NonFiniteGradientError: the meta-gradient is NaN or infinite.
    """
    learner, slower = found.learner.with_config(precision=precision), ""
    try:
        try:
            gradient = learner.meta_gradient(params, episodes).gradient
        except Exception as error:
            if learner.loops or asked != "auto" or learner.model_kind in ("sequence", "set"):
                raise
            learner = learner.with_config(vectorise="loop")
            gradient = learner.meta_gradient(params, episodes).gradient
            slower = (
                f"With learner.precision={precision}, torch.func.vmap cannot take this model ({type(error).__name__}: "
                f"{_short(str(error))}); looping over tasks: slower."
            )
    except Exception as error:
        fix = "Make" if learner.loops else "Set learner.vectorise=loop, make"
        raise ModelContractError(
            f"learner.precision={precision} fails where float32 does not: {type(error).__name__}: {_short(str(error))} "
            f"({line_of(error)}). Expected a model that torch.autocast can take. {fix} that line take "
            "tensors of both types, or leave learner.precision out."
        ) from error
    if bad := [name for name, part in gradient.items() if not bool(torch.isfinite(part).all())]:
        raise NonFiniteGradientError(
            f"With learner.precision={precision} the first meta-gradient of {listed(bad)} is NaN or infinite; expected "
            "finite numbers. Leave learner.precision out, or lower learner.inner_lr."
        )
    return replace(found, learner=learner), slower


def _not_differentiable(name: str, error: Exception) -> ModelContractError:
    return ModelContractError(
        f"{name} could not compute the meta-gradient of one task: {type(error).__name__}: {_short(str(error))} "
        f"({line_of(error)}). Expected operations that torch can differentiate, twice for MAML and its kin. Replace "
        "that one, or take first derivatives only where the learner has the option (first_order=True)."
    )


def _short(text: str) -> str:
    """The first sentence of torch's long messages."""
    line = (text.strip().splitlines() or [""])[0].split(". ")[0].rstrip(".")
    return line if len(line) <= 160 else line[:157] + "..."
