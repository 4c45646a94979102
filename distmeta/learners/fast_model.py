"""A model adapted to one task, with the face of a scikit-learn estimator."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from distmeta.errors import DistmetaError, LearnerContractError, first_sentence, line_of
from distmeta.learners.engine import Engine
from distmeta.learners.functional import evaluating, ordinary, ordinary_tensors, vectorised
from distmeta.learners.labels import Classes, Labels, is_regression, kind_of
from distmeta.learners.losses import prediction_loss
from distmeta.learners.predictive import Predictive
from distmeta.types import Episode, Params

_AT_ONCE = 512  # inputs in memory together


class FastModel:
    """A model adapted to one task.

    A prediction depends on the support set and its own input alone: one input at a time, all in one batch or in
    another order give the same up to rounding. Batch statistics are therefore those of the support set, taken once;
    where the model mixes the inputs of a batch in another way, each input joins the support set in a forward pass of
    its own. A *transductive* model predicts the inputs of a call in one batch instead, by the statistics of that batch.

    The support set and the parameters are copied. The model is in evaluation mode during a call and has its former mode
    afterwards: before calls from several threads, call ``model.eval()``. Gradient steps are taken under
    ``torch.no_grad()`` and ``torch.inference_mode()`` too.

    Args:
        learner: the learner as it is in evaluation, its model built.
        params: meta-parameters, by name.
        support_x: ``[S, ...]`` inputs.
        support_y: ``[S]`` labels: a tensor of integers, or any hashable values in a list or an array; or ``[S, D]``
            floats for regression.
        transductive: predict the inputs of a call together.
        learned: what was learned from this very support set before, which is then not learned again.

    Raises:
        LearnerContractError: these are no examples, or none that the model can learn from.

    Example:
        >>> import distmeta
        >>> fast = distmeta.MAML(torch.nn.Linear(2, 3)).adapt(torch.eye(2), torch.tensor([30, 7]))
        >>> fast.classes_.tolist(), fast.predict_proba(torch.rand(4, 2)).shape
        ([7, 30], torch.Size([4, 2]))
        >>> fast = distmeta.MAML(torch.nn.Linear(2, 3)).adapt(torch.eye(2), ["cat", "ant"])
        >>> set(fast.predict(torch.rand(4, 2)).tolist()) <= {"ant", "cat"}
        True
    """

    def __init__(
        self,
        learner: Engine,
        params: Params,
        support_x: torch.Tensor,
        support_y: Labels,
        *,
        transductive: bool = False,
        learned: Params | None = None,
    ) -> None:
        support_y = require_examples(support_x, support_y)
        # One task: a plain loop takes any model, so nothing needs to be probed before the inner loop.
        self._learner, self._vectorise = learner.with_config(vectorise="loop"), learner.config.vectorise
        self._transductive = transductive
        self._classes: Classes | None = None
        if isinstance(support_y, torch.Tensor) and support_y.is_floating_point():
            targets, self._columns = support_y, support_y.shape[1]
        else:
            self._classes, targets = Classes.of(support_y)
            self._columns = len(self._classes)
        with self._evaluation(support_x), vectorised(False):
            self._support_x = support_x.detach().clone()
            targets = targets.detach().to(support_x.device).clone()
            self._params = {name: p.detach().clone() for name, p in params.items()}
            if self._classes is not None and isinstance(self._classes.values, torch.Tensor):
                self._classes = Classes(ordinary(self._classes.values))
            _require_fit(learner, self._params, self._support_x, targets, self._classes)
            ways = None if self._classes is None else len(self._classes)
            self._task = Episode(self._support_x, targets, self._support_x[:0], targets[:0], ways=ways, outputs=ways)
            self._learned = self._learner.learned(self._params, self._task) if learned is None else learned
            self._predict = self._learner.using(self._params, self._learned, self._task)
            if not transductive:
                self._predict = self._learner.keeping_statistics(self._predict, self._params, self._task)

    @property
    def classes_(self) -> torch.Tensor | npt.NDArray[Any] | None:
        """The different labels of the support set ``[N]``, the columns of ``predict_proba``; ``None`` in regression.

        Sorted where they can be, else in the order of their first examples. A tensor where the labels were one, an
        array otherwise.
        """
        return None if self._classes is None else self._classes.values

    @property
    def support_x(self) -> torch.Tensor:
        """The inputs ``[S, ...]`` that the model was adapted to."""
        return self._support_x

    @property
    def transductive(self) -> bool:
        """Whether the inputs of a call are predicted together."""
        return self._transductive

    @property
    def learned(self) -> Params:
        """What was learned from the support set: phi of a gradient learner, nothing of a metric learner."""
        return self._learned

    def predict(self, x: torch.Tensor) -> torch.Tensor | npt.NDArray[Any]:
        """The most likely label of each input ``[B, ...]``, ``[B]``; in regression the values ``[B, D]``.

        Labels are those of the support set: a tensor where these were one, an array otherwise.
        """
        found = self.logits(x)
        return found if self._classes is None else self._classes.named(found.argmax(-1))

    def predict_proba(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities ``[B, N]`` of the labels of the support set, columns in the order of ``classes_``.

        Raises:
            LearnerContractError: the model is adapted to a regression task.
        """
        self._require_classes("predict_proba")
        return self.logits(x).softmax(-1)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, N]``, columns in the order of ``classes_``; in regression the values ``[B, D]``.

        No graph is kept. An output of the model that stands for none of the support set's labels is left out.

        Raises:
            LearnerContractError: the inputs are no batch of inputs such as the support set's.
        """
        self._require_inputs(x)
        with self._evaluation(x):
            x = ordinary(x)
            if not len(x):
                return self._together(self._support_x[[0, 0]])[:0, : self._columns]
            if self._transductive:
                found = self._together(x)
            elif self.inputs_are_independent:
                parts = (x[start : start + _AT_ONCE] for start in range(0, len(x), _AT_ONCE))
                # Never a batch of one, which some layers refuse and some models squeeze.
                one = self._support_x[:1]
                found = torch.cat([self._together(torch.cat([one, part]))[1:] for part in parts])
            else:
                found = self._alone(x, loop=not self._vmap_works)
        if self._classes is not None and found.shape[-1] < self._columns:
            raise LearnerContractError(
                f"{type(self._learner).__name__} returned {found.shape[-1]} numbers per input for a support set of "
                f"{self._columns} classes; expected one per class. Adapt with fewer classes, or give a model with more "
                "outputs."
            )
        return found if self._classes is None else found[:, : self._columns]

    def predict_distribution(self, x: torch.Tensor) -> Predictive:
        """The distributions of the targets ``[B, D]`` of inputs ``[B, ...]``: mean, scale, quantiles, densities.

        Raises:
            LearnerContractError: the learner predicts no distribution, or the task is a classification.

        Example:
            >>> import distmeta
            >>> learner = distmeta.InContext(distmeta.cnp()).bind(distmeta.Sinusoids().spec)
            >>> fast = learner.adapt(torch.rand(3, 1), torch.rand(3, 1))
            >>> fast.predict_distribution(torch.rand(5, 1)).quantile(0.95).shape
            torch.Size([5, 1])
        """
        self._require_inputs(x)
        with self._evaluation(x):
            found = self._learner.predictive(self._params, self._learned, self._task)
            if found is None or self._classes is not None:
                what = "in a classification, probabilities" if self._classes is not None else "values alone"
                raise LearnerContractError(
                    f"{type(self._learner).__name__} predicts {what}; expected distributions of a regression, as "
                    f"InContext has. Use {'predict_proba' if self._classes is not None else 'predict'}()."
                )
            x = ordinary(x)
            first, *others = (found(x[start : start + _AT_ONCE]) for start in range(0, max(len(x), 1), _AT_ONCE))
            return first.joined(others)

    @property
    def has_distributions(self) -> bool:
        """Whether :meth:`predict_distribution` answers: a regression of a learner that predicts distributions."""
        return self._classes is None and self._learner.predictive(self._params, self._learned, self._task) is not None

    def explain(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What decided the predictions of ``x [B, ...]``, each input without the others.

        Returns:
            ``support_weights [B, S]`` of metric learners: the weight of each support example, rows sum to 1.
            ``logits_by_step [B, steps + 1, N]`` of gradient learners: the logits after each inner step. Empty for
            learners that have neither.

        Raises:
            LearnerContractError: the inputs are no batch of inputs such as the support set's.
        """
        self._require_inputs(x)
        with self._evaluation(x), vectorised(False):
            found = self._learner.explained(self._params, self._task, ordinary(x))
        if self._classes is not None and "logits_by_step" in found:
            found["logits_by_step"] = found["logits_by_step"][..., : self._columns]
        return found

    def evaluate(self, x: torch.Tensor, y: Labels) -> float:
        """Mean loss on labelled examples: cross-entropy in nats for labels, mean squared error for float targets.

        Raises:
            LearnerContractError: there are no examples, or a label is not among those of the support set.
        """
        targets, found = self._targets(_require_some(x, y)), self.logits(x)
        return float(prediction_loss(found, targets.to(found.device)))

    def accuracy(self, x: torch.Tensor, y: Labels) -> float:
        """Fraction of ``x`` whose most likely label is ``y``, 0 to 1.

        Raises:
            LearnerContractError: there are no examples, a label is not among those of the support set, or the task is
                a regression.
        """
        self._require_classes("accuracy")
        targets, found = self._targets(_require_some(x, y)), self.logits(x).argmax(-1)
        return float((found == targets.to(found.device)).double().mean())

    @contextlib.contextmanager
    def _evaluation(self, x: torch.Tensor) -> Iterator[None]:
        """The model in evaluation mode; what it raises on ``x`` becomes an error that names the shapes."""
        with ordinary_tensors(), evaluating(self._learner.model):
            try:
                yield
            except (DistmetaError, MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise _not_taken(self._learner, x, error) from error

    def _together(self, x: torch.Tensor) -> torch.Tensor:
        with vectorised(False):
            return self._predict(x)

    def _alone(self, x: torch.Tensor, *, loop: bool) -> torch.Tensor:
        with vectorised(not loop):
            return self._learner.predict_alone(self._predict, self._support_x, x, loop=loop)

    @cached_property
    def inputs_are_independent(self) -> bool:
        """Whether a batch of inputs gives what each input gives alone, measured on inputs that lie further out."""
        probe = _probe(self._support_x, self._learner.model)
        if probe is None:
            return False
        one = self._support_x[:1]
        try:
            alone = self._alone(probe, loop=True)
            forward = self._together(torch.cat([one, probe]))[1:]
            backward = self._together(torch.cat([one, probe.flip(0)]))[1:].flip(0)
        except Exception:  # noqa: BLE001 (a model may refuse inputs unlike its own; alone it gets the user's only)
            return False
        # Of a set model the probe has shown it before; here is more arithmetic, which rounds more.
        relative = 1e-4 if self._learner.model_kind == "set" and alone.dtype != torch.float64 else None
        return _equal_rows(forward, alone, relative) and _equal_rows(backward, alone, relative)

    @cached_property
    def _vmap_works(self) -> bool:
        """Whether several inputs can be predicted in one vectorised call, each alone with the support set."""
        if self._vectorise != "auto":
            return bool(self._vectorise != "loop")
        few = self._support_x[[0, -1]]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="There is a performance drop")
                found = self._alone(few, loop=False)
        except Exception:  # noqa: BLE001 (a user's module may raise anything under vmap; the loop takes any model)
            return False
        return _close(found, self._alone(few, loop=True))

    def _targets(self, y: Labels) -> torch.Tensor:
        """``y`` as positions in ``classes_``; float targets as they are."""
        if self._classes is None:
            if not isinstance(y, torch.Tensor) or not y.is_floating_point() or y.shape[1] != self._columns:
                raise LearnerContractError(
                    f"The targets are {kind_of(y)}; the model is adapted to a regression task, expected floats "
                    f"[n, {self._columns}]. Give targets such as the support set's."
                )
            return y
        if is_regression(y):
            raise LearnerContractError(
                f"The targets are {kind_of(y)}; the model is adapted to a classification task, expected labels "
                f"[n] from {self._classes}. Give labels such as the support set's."
            )
        return self._classes.positions(y)

    def _require_classes(self, method: str) -> None:
        if self._classes is None:
            raise LearnerContractError(
                f"{method}() needs classes; the model is adapted to a regression task, with float targets. Use "
                "predict() or evaluate(), or adapt with integer labels."
            )

    def _require_inputs(self, x: torch.Tensor) -> None:
        one = list(self._support_x.shape[1:])
        if not isinstance(x, torch.Tensor):
            raise LearnerContractError(
                f"The inputs are a {type(x).__name__}; expected a tensor {['B', *one]}. Use torch.as_tensor(...)."
            )
        if list(x.shape[1:]) != one or not x.dim():
            fix = "For a single input, give x[None]" if list(x.shape) == one else "Prepare them as the support set"
            raise LearnerContractError(
                f"The inputs have shape {list(x.shape)}; expected [B, {', '.join(map(str, one))}], as the support "
                f"set has. {fix}."
            )
        if x.dtype != self._support_x.dtype or x.device != self._support_x.device:
            expected = f"{_name(self._support_x.dtype)} on {self._support_x.device}"
            raise LearnerContractError(
                f"The inputs are {_name(x.dtype)} on {x.device}; expected {expected}, as the support set is. Use "
                f'x.to("{self._support_x.device}", {self._support_x.dtype}).'
            )


def require_examples(x: torch.Tensor, y: Labels) -> Labels:
    """Raise where ``y`` cannot be the labels of ``x``: a wrong type would be a wrong loss, silently.

    Returns:
        ``y``; floats in an array as a tensor.

    Raises:
        LearnerContractError: names what was seen and the fix.
    """
    if not isinstance(x, torch.Tensor):
        raise LearnerContractError(
            f"Examples are a {type(x).__name__} and a {type(y).__name__}; expected tensors. Use torch.as_tensor(...)."
        )
    if is_regression(y):
        y = torch.as_tensor(y)
        if y.dim() != 2:
            raise LearnerContractError(
                f"Labels are {kind_of(y)}; expected integers [n], or floats [n, D] for regression. Use y.long(), or "
                "y[:, None] for one number per input."
            )
        y = y.to(x.device, x.dtype if x.is_floating_point() else y.dtype)
    else:
        Classes.of(y)
    if len(x) != len(y):
        raise LearnerContractError(f"There are {len(x)} inputs and {len(y)} labels; expected as many.")
    return y


def _require_some(x: torch.Tensor, y: Labels) -> Labels:
    """Raise where these are no examples to average over."""
    y = require_examples(x, y)
    if not len(x):
        raise LearnerContractError(
            "There are 0 examples, whose mean is no number; expected at least one. Leave the call out."
        )
    return y


def _require_fit(learner: Engine, params: Params, x: torch.Tensor, y: torch.Tensor, classes: Classes | None) -> None:
    """Raise where the learner or its model cannot learn from such a support set."""
    name = type(learner).__name__
    if not len(x):
        raise LearnerContractError(f"The support set of {name} is empty; expected at least one labelled example.")
    if learner.model_kind == "encoder" and classes is None:
        raise LearnerContractError(
            f"{name} compares with the examples of each class; the targets are {kind_of(y)}, expected integer labels "
            "[n]. Use MAML or Reptile for regression."
        )
    if learner.model_kind != "classifier":
        return
    outputs = learner.forward(params, x[[0, -1]]).shape[-1]  # two: batch statistics of one may not exist
    if classes is not None and len(classes) > outputs:
        raise LearnerContractError(
            f"The support set has {len(classes)} classes, {classes}, but the model of {name} "
            f"has {outputs} outputs; expected at most {outputs} classes. Meta-train with tasks.ways={len(classes)}, or "
            "use a metric learner such as ProtoNet, which takes any number."
        )
    if classes is None and y.shape[1] != outputs:
        raise LearnerContractError(
            f"The targets are {kind_of(y)}, but the model of {name} has {outputs} outputs; expected floats "
            f"[n, {outputs}]. Give as many numbers per input as the model has outputs."
        )


def _not_taken(learner: Engine, x: torch.Tensor, error: Exception) -> LearnerContractError:
    """The error for inputs that the model fails on, most often of another shape than the training's."""
    trained, seen = learner._input_shape, list(x.shape[1:])
    if trained is not None and list(trained) != seen:
        fix = f"expected {list(trained)}, as in the training. Scale or reshape the inputs."
    else:
        fix = "expected inputs that the model takes. Give inputs as in the training, or mend that line."
    return LearnerContractError(
        f"{type(learner).__name__} cannot compute with inputs of shape {seen}: {type(error).__name__}: "
        f"{first_sentence(str(error))} ({line_of(error)}); {fix}"
    )


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether predictions are equal up to rounding."""
    relative = 1e-10 if a.dtype == torch.float64 else 1e-5
    return a.shape == b.shape and bool((a - b).abs().max() <= relative * b.abs().max().clamp_min(1))


def _equal_rows(a: torch.Tensor, b: torch.Tensor, relative: float | None = None) -> bool:
    """Return whether every row is equal up to the rounding of its own numbers; never where there is a NaN."""
    relative = relative or (1e-12 if a.dtype == torch.float64 else 1e-6)
    return a.shape == b.shape and bool(((a - b).abs().amax(-1) <= relative * b.abs().amax(-1)).all())


def _probe(support_x: torch.Tensor, model: nn.Module) -> torch.Tensor | None:
    """Inputs that move statistics which the support set itself would leave alone, such as a largest value.

    Returns:
        Inputs outside the range of the support set. For integers and for models with an embedding table, where such
        inputs would be no valid indices, rows whose positions are taken from several examples; ``None`` where all
        examples are equal.
    """
    first, last = support_x[[0]], support_x[[-1]]
    if support_x.is_floating_point() and not any(
        isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules()
    ):
        return torch.cat([first, last, -3 * first, 3 * last + 1])
    flat = support_x.flatten(1)
    count = len(flat)
    if bool((flat == flat[:1]).all()):
        return None
    columns = torch.arange(flat.shape[1], device=flat.device)
    rows = torch.arange(min(count, 4), device=flat.device)[:, None]
    mixed = flat[(rows + columns) % count, columns]
    return torch.cat([first, last, mixed.reshape(-1, *support_x.shape[1:])])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
