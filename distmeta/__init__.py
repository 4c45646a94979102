"""distmeta: distributed task-parallel meta-training with exact meta-gradients.

The public names. Each is loaded when it is first used, so ``import distmeta`` costs milliseconds; Ray and MLflow are
imported where a run asks for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distmeta.data.sources.arrays import from_arrays
    from distmeta.errors import DistmetaError
    from distmeta.experiment.experiment import Experiment
    from distmeta.experiment.job import load_job
    from distmeta.experiment.settings import Evaluation, Outer, Runtime
    from distmeta.intervals import EvaluationReport
    from distmeta.learners.base import MetaLearner
    from distmeta.learners.fast_model import FastModel
    from distmeta.learners.in_context import InContext
    from distmeta.learners.maml import MAML
    from distmeta.learners.maml_plus import MAMLPlusPlus
    from distmeta.learners.mann import MANN
    from distmeta.learners.matching_net import MatchingNet
    from distmeta.learners.meta_sgd import MetaSGD
    from distmeta.learners.ntm import NTM
    from distmeta.learners.probe import use_batch_statistics
    from distmeta.learners.protonet import ProtoNet
    from distmeta.learners.reptile import Reptile
    from distmeta.learners.ridge import Ridge
    from distmeta.learners.siamese import Siamese
    from distmeta.learners.user_face import MetaModule
    from distmeta.models.backbones import adapter, conv4, koch_cnn, mlp
    from distmeta.models.image_context import image_context
    from distmeta.models.lstm import lstm
    from distmeta.models.mann import mann, mann_network
    from distmeta.models.neural_process import attentive_cnp, cnp, tnp
    from distmeta.models.ntm import ntm, ntm_network
    from distmeta.models.table_transformer import table_transformer
    from distmeta.run.evaluating import compare, evaluate, sweep
    from distmeta.run.finishing import RunResult
    from distmeta.run.inspecting import inspect_run
    from distmeta.run.place import Place
    from distmeta.run.results import Comparison, EvaluationRequest, EvaluationResult, Sweep
    from distmeta.run.training import meta_train
    from distmeta.runtime.backend import LocalBackend
    from distmeta.serving.export import export
    from distmeta.serving.loading import load
    from distmeta.serving.predictor import AdaptedModel, Predictor
    from distmeta.tasks.algorithmic import (
        AssociativeRecallTask,
        CopyTask,
        NGramsTask,
        PrioritySortTask,
        RepeatCopyTask,
    )
    from distmeta.tasks.base import Task, TaskDistribution
    from distmeta.tasks.few_shot import FewShot
    from distmeta.tasks.function import FunctionTasks, task_distribution
    from distmeta.tasks.gaussian_processes import GaussianProcesses
    from distmeta.tasks.image_completion import ImageCompletion
    from distmeta.tasks.label_sequences import LabelSequences
    from distmeta.tasks.lake_runs import LakeRuns
    from distmeta.tasks.prior import Prior
    from distmeta.tasks.projections import Projections
    from distmeta.tasks.sinusoids import Sinusoids
    from distmeta.tasks.tables import Tables
    from distmeta.types import Episode, TaskSpec

__version__ = "0.2.0"

# The same names again, for the interpreter: a test compares the two lists.
_HOMES = {
    "data.sources.arrays": ("from_arrays",),
    "errors": ("DistmetaError",),
    "experiment.experiment": ("Experiment",),
    "experiment.job": ("load_job",),
    "experiment.settings": ("Evaluation", "Outer", "Runtime"),
    "intervals": ("EvaluationReport",),
    "learners.base": ("MetaLearner",),
    "learners.fast_model": ("FastModel",),
    "learners.in_context": ("InContext",),
    "learners.maml": ("MAML",),
    "learners.maml_plus": ("MAMLPlusPlus",),
    "learners.mann": ("MANN",),
    "learners.matching_net": ("MatchingNet",),
    "learners.meta_sgd": ("MetaSGD",),
    "learners.ntm": ("NTM",),
    "learners.probe": ("use_batch_statistics",),
    "learners.protonet": ("ProtoNet",),
    "learners.reptile": ("Reptile",),
    "learners.ridge": ("Ridge",),
    "learners.siamese": ("Siamese",),
    "learners.user_face": ("MetaModule",),
    "models.backbones": ("adapter", "conv4", "koch_cnn", "mlp"),
    "models.image_context": ("image_context",),
    "models.lstm": ("lstm",),
    "models.mann": ("mann", "mann_network"),
    "models.neural_process": ("attentive_cnp", "cnp", "tnp"),
    "models.ntm": ("ntm", "ntm_network"),
    "models.table_transformer": ("table_transformer",),
    "run.evaluating": ("compare", "evaluate", "sweep"),
    "run.finishing": ("RunResult",),
    "run.inspecting": ("inspect_run",),
    "run.place": ("Place",),
    "run.results": ("Comparison", "EvaluationRequest", "EvaluationResult", "Sweep"),
    "run.training": ("meta_train",),
    "runtime.backend": ("LocalBackend",),
    "serving.export": ("export",),
    "serving.loading": ("load",),
    "serving.predictor": ("AdaptedModel", "Predictor"),
    "tasks.algorithmic": ("AssociativeRecallTask", "CopyTask", "NGramsTask", "PrioritySortTask", "RepeatCopyTask"),
    "tasks.base": ("Task", "TaskDistribution"),
    "tasks.few_shot": ("FewShot",),
    "tasks.function": ("FunctionTasks", "task_distribution"),
    "tasks.gaussian_processes": ("GaussianProcesses",),
    "tasks.image_completion": ("ImageCompletion",),
    "tasks.label_sequences": ("LabelSequences",),
    "tasks.lake_runs": ("LakeRuns",),
    "tasks.prior": ("Prior",),
    "tasks.projections": ("Projections",),
    "tasks.sinusoids": ("Sinusoids",),
    "tasks.tables": ("Tables",),
    "types": ("Episode", "TaskSpec"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MAML",
    "MANN",
    "NTM",
    "AdaptedModel",
    "AssociativeRecallTask",
    "Comparison",
    "CopyTask",
    "DistmetaError",
    "Episode",
    "Evaluation",
    "EvaluationReport",
    "EvaluationRequest",
    "EvaluationResult",
    "Experiment",
    "FastModel",
    "FewShot",
    "FunctionTasks",
    "GaussianProcesses",
    "ImageCompletion",
    "InContext",
    "LabelSequences",
    "LakeRuns",
    "LocalBackend",
    "MAMLPlusPlus",
    "MatchingNet",
    "MetaLearner",
    "MetaModule",
    "MetaSGD",
    "NGramsTask",
    "Outer",
    "Place",
    "Predictor",
    "Prior",
    "PrioritySortTask",
    "Projections",
    "ProtoNet",
    "RepeatCopyTask",
    "Reptile",
    "Ridge",
    "RunResult",
    "Runtime",
    "Siamese",
    "Sinusoids",
    "Sweep",
    "Tables",
    "Task",
    "TaskDistribution",
    "TaskSpec",
    "adapter",
    "attentive_cnp",
    "cnp",
    "compare",
    "conv4",
    "evaluate",
    "export",
    "from_arrays",
    "image_context",
    "inspect_run",
    "koch_cnn",
    "load",
    "load_job",
    "lstm",
    "mann",
    "mann_network",
    "meta_train",
    "mlp",
    "ntm",
    "ntm_network",
    "sweep",
    "table_transformer",
    "task_distribution",
    "tnp",
    "use_batch_statistics",
]

_PACKAGES = ("data", "errors", "learners", "models", "tasks", "testing")
"""Modules that are public too: ``distmeta.data.verify`` works after ``import distmeta``."""


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"distmeta.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in (*_PACKAGES, "sklearn"):  # sklearn is not listed: it needs an extra
        return importlib.import_module(f"distmeta.{name}")
    raise AttributeError(f"module 'distmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES, "__version__"])
