"""A trained learner that is given a few examples of a new task, and then asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distmeta.data.pictures import MAX_PIXELS
from distmeta.data.preprocessing import Preprocessing
from distmeta.errors import ConfigError, DataError, LearnerContractError, listed
from distmeta.learners.base import MetaLearner
from distmeta.learners.fast_model import FastModel
from distmeta.learners.functional import evaluating, ordinary_tensors
from distmeta.learners.labels import Labels
from distmeta.learners.predictive import Predictive
from distmeta.serving.exported import Exported
from distmeta.serving.kept_task import KeptTask, task_files
from distmeta.serving.sealed import require_new, write_sealed
from distmeta.serving.together import Answer, Question, Together
from distmeta.types import Params, TaskSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Explanation:
    """What decided the answer about one input.

    Args:
        classes: the labels ``[N]``.
        logits: ``[N]``.
        support_weights: the weight of each support example ``[S]``, sums to 1; ``None`` for learners without.
        support_labels: the label of each support example ``[S]``.
        logits_by_step: the logits after each inner step ``[steps + 1, N]``; ``None`` for learners without.
    """

    classes: Array
    logits: Array
    support_labels: Array
    support_weights: Array | None = None
    logits_by_step: Array | None = None

    def strongest(self, count: int = 3) -> list[int]:
        """Places in the support set of the examples that weighed most; empty where there are no weights."""
        if self.support_weights is None:
            return []
        return [int(place) for place in np.argsort(-self.support_weights, kind="stable")[:count]]


class Predictor:
    """A trained learner, ready for new tasks. Make one with :func:`distmeta.load`.

    Args:
        learner: its model built and holding ``params``, on the CPU.
        params: the meta-parameters that the run was evaluated by.
        spec: shapes of the training tasks.
        preprocessing: how the inputs of the training were made.
        card: JSON-ready facts: name, learner, dataset, test result.
        exported: makes the files of the learner, for :meth:`AdaptedModel.save`; ``None`` for one that has no job file.

    Example:
        >>> import distmeta
        >>> learner = distmeta.ProtoNet(torch.nn.Flatten())
        >>> spec = TaskSpec((1, 8, 8), 5, "classification", 5, 5)
        >>> predictor = Predictor(learner, {}, spec, Preprocessing((1, 8, 8), "uint8"), {})
        >>> black, white = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
        >>> fast = predictor.adapt([black, white], ["night", "snow"])
        >>> fast.predict([white]).tolist(), fast.classes_.tolist()
        (['snow'], ['night', 'snow'])
    """

    def __init__(
        self,
        learner: MetaLearner,
        params: Params,
        spec: TaskSpec,
        preprocessing: Preprocessing,
        card: Mapping[str, Any],
        exported: Callable[[], Exported] | None = None,
    ) -> None:
        self.learner = learner.for_evaluation()
        self.params = params
        self.spec = spec
        self.preprocessing = preprocessing
        self.card = card
        self._exported = exported
        learner.model.eval()  # once, so that several threads may predict
        self._together = Together(self.learner, params, self.most_classes)
        self._tried: dict[int, bool] = {}  # whether a set model takes rows of so many numbers

    @classmethod
    def of(cls, exported: Exported) -> Predictor:
        """The learner of an export; its job file is run.

        Raises:
            ConfigError: the job file does not run.
            CheckpointMismatch: the model is not the one that was trained.
        """
        facts = exported.learned_from
        learner = exported.learner()
        return cls(learner, exported.params, facts.spec, facts.preprocessing, exported.card, lambda: exported)

    def exported(self) -> Exported:
        """All that the learner is made of.

        Raises:
            ConfigError: there is no job file that builds its model.
        """
        if self._exported is None:
            raise ConfigError(
                "The learner has no job file, which builds its model where it is loaded; expected one that was loaded "
                "from a run of a job file, or from an export. Train it from a job file."
            )
        return self._exported()

    def __repr__(self) -> str:
        name, unfinished = self.card.get("name", ""), f", {self.unfinished}" if self.unfinished else ""
        return f"Predictor({type(self.learner).__name__}, {name!r}, inputs {list(self.input_shape)}{unfinished})"

    @property
    def unfinished(self) -> str:
        """``"step 250 of 1000, the run is not finished"``; empty for a finished run."""
        return str(self.card.get("unfinished") or "")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, as the network was built for it."""
        # The preprocessing is that of the test, whose tables may have other numbers of columns than the training's.
        rows = self.learner.model_kind == "set" and len(self.spec.input_shape) == 1
        return self.spec.input_shape if rows else self.preprocessing.input_shape

    @property
    def any_columns(self) -> bool:
        """Whether rows may have more columns than those of the training."""
        return self.learner.model_kind == "set" and len(self.input_shape) == 1 and self._takes(self.input_shape[0] + 1)

    @property
    def most_classes(self) -> int | None:
        """The number of classes that a task may have at most; ``None`` for learners that take any number."""
        return self.spec.outputs if self.learner.model_kind in ("classifier", "set") else None

    def columns(self, count: int) -> int:
        """The number of columns that the network is given for rows of ``count`` numbers.

        It is ``count`` where the network takes so many, which is tried once; or that of the training, where its tasks
        were filled up with columns of zeros, so that these are filled up too.

        Raises:
            DataError: the network takes another number; or its inputs are no rows.
        """
        shape = self.input_shape
        if len(shape) != 1:
            raise DataError(f"{self!r} takes inputs of shape {list(shape)}; expected a learner of rows of numbers.")
        if count == shape[0] or self._takes(count):
            return count
        if self.spec.padded and count < shape[0]:
            return shape[0]
        raise DataError(
            f"The rows have {count} numbers; {self!r} takes {shape[0]}. Choose as many columns, or meta-train a model "
            "that takes any number, such as table_transformer()."
        )

    def inputs(self, given: Any, *, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
        """Prepare inputs as those of the training were made: ``[B, *input_shape]``.

        Rows for an in-context learner may have another number of columns, see :meth:`columns`.

        Args:
            given: see :meth:`distmeta.data.preprocessing.Preprocessing.inputs`.
            max_pixels: width times height of a picture, at most.

        Raises:
            DataError: an input cannot be converted.
        """
        like, made, filled = next(iter(self.params.values()), torch.zeros(())), self.preprocessing, 0
        count = made.columns(given) if self.learner.model_kind == "set" else None
        if count is not None:
            filled, made = self.columns(count) - count, replace(made, input_shape=(count,))
        x = torch.from_numpy(made.inputs(given, max_pixels=max_pixels)).to(like.dtype)
        return torch.nn.functional.pad(x, (0, filled)) if filled else x

    def adapt(self, images: Any, labels: Labels, *, transductive: bool = False) -> AdaptedModel:
        """Learn one new task from a few labelled examples.

        Args:
            images: S examples: paths, PIL images, arrays or tensors; or rows of numbers, where the learner was trained
                on such.
            labels: S labels, any hashable values; floats ``[S, D]`` for regression.
            transductive: let the inputs of a later call share batch statistics, see :class:`FastModel`.

        Raises:
            DataError: an example cannot be converted.
            LearnerContractError: these are no examples with their labels, or more classes than the model has outputs.
        """
        if self.learner.model_kind == "sequence":
            self._refuse_support()
        fast = self.learner.adapt(self.inputs(images), labels, transductive=transductive, params=self.params)
        return AdaptedModel(self, fast, labels)

    def adapt_all(self, tasks: Sequence[tuple[torch.Tensor, Labels]]) -> list[AdaptedModel]:
        """Learn several tasks; those of equal shapes and numbers of classes in one vectorised call.

        Args:
            tasks: of each task prepared inputs ``[S, ...]`` (:meth:`inputs`) and labels ``[S]``.

        Raises:
            LearnerContractError: as :meth:`adapt`, for the first task that is no task.
        """
        if self.learner.model_kind == "sequence":
            self._refuse_support()
        learned = self._together.learned(tasks)
        return [
            AdaptedModel(self, FastModel(self.learner, self.params, x, labels, learned=learned.get(place)), labels)
            for place, (x, labels) in enumerate(tasks)
        ]

    def predict_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Learn several tasks and answer their queries; those of equal shapes in one vectorised call.

        Every answer is that of :meth:`adapt` and :meth:`AdaptedModel.logits`, up to rounding. One task after the other
        is computed where the learner cannot be vectorised, or its model mixes the inputs of a batch.

        Raises:
            LearnerContractError: as :meth:`adapt`, for the first task that is no task.

        Example:
            >>> import distmeta
            >>> learner = distmeta.ProtoNet(torch.nn.Flatten(), vectorise="vmap")
            >>> spec = TaskSpec((3,), 5, "classification", 5, 5)
            >>> predictor = Predictor(learner, {}, spec, Preprocessing((3,)), {})
            >>> questions = [Question(torch.eye(3), list(labels), torch.eye(3)[1:2]) for labels in ("abc", "def")]
            >>> [answer.predictions.tolist() for answer in predictor.predict_all(questions)]
            [['b'], ['e']]
        """
        if self.learner.model_kind == "sequence":
            self._refuse_support()
        found = self._together.answers(questions)
        return [found[n] if n in found else self._answer(question) for n, question in enumerate(questions)]

    def _answer(self, question: Question) -> Answer:
        """The answer to one question alone."""
        fast = self.learner.adapt(question.support_x, question.labels, params=self.params)
        return Answer.of(fast, question.query_x)

    def run(self, sequence: Any) -> Array:
        """The model's output at each step of a sequence that holds its labels, for NTM and MANN.

        Args:
            sequence: ``[L, ...]`` inputs, or ``[B, L, ...]`` sequences of one length.

        Returns:
            ``[L, outputs]`` logits (``[B, L, outputs]``): per bit, or per class.

        Raises:
            LearnerContractError: the learner is of another kind, or the inputs have another shape.
        """
        kind, shape = type(self.learner).__name__, list(self.spec.input_shape)
        if self.learner.model_kind != "sequence":
            raise LearnerContractError(
                f"run() is for learners of sequences; {kind} learns from a support set. Use adapt(images, labels)."
            )
        like = next(iter(self.params.values()))
        x = torch.as_tensor(np.asarray(sequence) if not isinstance(sequence, torch.Tensor) else sequence)
        x = x.to(like.dtype)
        single = x.dim() == 1 + len(shape)
        if list(x.shape[2 - single :]) != shape or x.dim() not in (1 + len(shape), 2 + len(shape)) or not x.numel():
            raise LearnerContractError(
                f"The sequence has shape {list(x.shape)}; expected [L, {', '.join(map(str, shape))}], or the same with "
                "a batch axis in front."
            )
        if not bool(torch.isfinite(x).all()):
            raise LearnerContractError("The sequence has NaN or infinite numbers; expected finite ones. Repair it.")
        with ordinary_tensors(), evaluating(self.learner.model):
            output = self.learner.forward(self.params, x[None] if single else x)
        return np.asarray((output[0] if single else output).numpy())

    def _takes(self, count: int) -> bool:
        """Whether a set model takes rows of ``count`` numbers; tried once."""
        if count not in self._tried:
            spec, like = self.spec, next(iter(self.params.values()), torch.zeros(()))
            x, numbers = (torch.zeros(1, 2, size, dtype=like.dtype) for size in (count, spec.outputs))
            y = numbers if spec.kind == "regression" else torch.zeros(1, 2, dtype=torch.long)
            try:
                with ordinary_tensors(), evaluating(self.learner.model):
                    self._tried[count] = self.learner.forward(self.params, x, y, x[:, :1]).shape[:2] == (1, 1)
            except Exception:  # noqa: BLE001 (a user's model raises anything on inputs that it does not take)
                self._tried[count] = False
        return self._tried[count]

    def _refuse_support(self) -> None:
        raise LearnerContractError(
            f"{type(self.learner).__name__} learns a task from one sequence that holds the labels too; expected no "
            "separate support set. Use run(sequence)."
        )


class AdaptedModel:
    """A trained learner that has learned one task: ask it about new inputs.

    Args:
        predictor: where it comes from.
        fast: the adapted model of tensors.
        labels: of the support set, as they were given.
    """

    def __init__(self, predictor: Predictor, fast: FastModel, labels: Labels) -> None:
        self.predictor = predictor
        self.fast = fast
        self._labels = labels

    def __repr__(self) -> str:
        learner, count = type(self.predictor.learner).__name__, len(self.fast.support_x)
        classes = self.classes_
        learned = "targets" if classes is None else f"classes {listed(map(repr, classes.tolist()), 5)}"
        of = f"{count} example{'' if count == 1 else 's'}"
        return f"AdaptedModel({learner}, {self.predictor.card.get('name', '')!r}, {learned} from {of})"

    @property
    def classes_(self) -> Array | None:
        """The labels ``[N]``, in the order of the columns of :meth:`predict_proba`; ``None`` in regression."""
        values = self.fast.classes_
        return None if values is None else np.asarray(values)

    def predict(self, images: Any) -> Array:
        """The most likely label of each input ``[B]``; in regression the values ``[B, D]``.

        Args:
            images: paths, PIL images, arrays, tensors; see :meth:`Predictor.inputs`.
        """
        return np.asarray(self.fast.predict(self.predictor.inputs(images)))

    def predict_proba(self, images: Any) -> Array:
        """Probabilities ``[B, N]``, columns in the order of :attr:`classes_`; rows sum to 1."""
        return np.asarray(self.fast.predict_proba(self.predictor.inputs(images)))

    def predict_distribution(self, images: Any) -> Predictive:
        """The distributions of the targets ``[B, D]``: mean, scale, quantiles and densities, as tensors.

        Raises:
            LearnerContractError: the learner predicts no distribution, or the task is a classification.
        """
        return self.fast.predict_distribution(self.predictor.inputs(images))

    def predict_interval(self, images: Any, coverage: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper ends, each ``[B, D]``, of the central interval that holds a target with some probability.

        Args:
            images: as :meth:`predict` takes them.
            coverage: the probability, above 0 and below 1.

        Raises:
            LearnerContractError: as :meth:`predict_distribution`; or ``coverage`` is no such probability.
        """
        if not 0 < coverage < 1:
            raise LearnerContractError(f"coverage={coverage} is no probability above 0 and below 1. Give one, as 0.9.")
        found = self.predict_distribution(images)
        return found.quantile(0.5 - coverage / 2).numpy(), found.quantile(0.5 + coverage / 2).numpy()

    def save(self, folder: Path | str) -> Path:
        """Write the learner and what it learned of this task as a new folder, without a pickle.

        :meth:`load` gives the model back, with the same bits. Its ``predictor`` learns other tasks.

        Raises:
            ConfigError: the folder holds something, or cannot be written; the learner has no job file.
            LearnerContractError: a label cannot be written as JSON: expected strings, integers, booleans or None.
        """
        require_new(Path(folder))
        task = task_files(self.fast, self._labels)
        return write_sealed(Path(folder), {**self.predictor.exported().files(learned=repr(self)), **task})

    @classmethod
    def load(cls, folder: Path | str) -> AdaptedModel:
        """The model that :meth:`save` wrote; nothing is learned again. The learner's job file is run.

        Raises:
            FileDamaged: a file is not as it was written, or the folder has no task.
            ConfigError, CheckpointMismatch: as :func:`distmeta.load`.
        """
        exported, task = Exported.read(Path(folder)), KeptTask.read(Path(folder))
        predictor = Predictor.of(exported)
        fast = FastModel(
            predictor.learner,
            predictor.params,
            task.support_x,
            task.labels,
            transductive=task.transductive,
            learned=task.learned,
        )
        return cls(predictor, fast, task.labels)

    def logits(self, images: Any) -> Array:
        """Logits ``[B, N]``, columns in the order of :attr:`classes_`; in regression the values."""
        return np.asarray(self.fast.logits(self.predictor.inputs(images)))

    def explain(self, image: Any) -> Explanation:
        """What decided the answer about one input.

        Metric learners have a weight for each support example; gradient learners the logits after each inner step.

        Args:
            image: one input, or a batch of one.

        Raises:
            LearnerContractError: the task is a regression, or these are several inputs.
        """
        x = self.predictor.inputs(image)
        classes = self.classes_
        if classes is None or len(x) != 1:
            seen = "the task is a regression" if classes is None else f"{len(x)} inputs were given"
            raise LearnerContractError(f"explain() is for one input of a classification; {seen}. Give one input.")
        found = {name: part[0].numpy() for name, part in self.fast.explain(x).items()}
        return Explanation(
            classes,
            self.fast.logits(x)[0].numpy(),
            np.asarray(self._labels),
            found.get("support_weights"),
            found.get("logits_by_step"),
        )


__all__ = ["AdaptedModel", "Explanation", "Predictor"]
