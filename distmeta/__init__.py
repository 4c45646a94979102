"""distmeta: distributed task-parallel meta-training with exact meta-gradients.

The public names. ``import distmeta`` needs neither Ray nor MLflow; both are imported where a run asks for them.
"""

from distmeta.data.sources.arrays import from_arrays
from distmeta.errors import DistmetaError
from distmeta.experiment.experiment import Experiment
from distmeta.experiment.job import load_job
from distmeta.experiment.settings import Evaluation, Outer, Runtime
from distmeta.intervals import EvaluationReport
from distmeta.learners.base import FastModel, MetaLearner, MetaModule
from distmeta.learners.maml import MAML
from distmeta.learners.maml_plus import MAMLPlusPlus
from distmeta.learners.mann import MANN
from distmeta.learners.matching_net import MatchingNet
from distmeta.learners.meta_sgd import MetaSGD
from distmeta.learners.ntm import NTM
from distmeta.learners.probe import use_batch_statistics
from distmeta.learners.protonet import ProtoNet
from distmeta.learners.reptile import Reptile
from distmeta.learners.siamese import Siamese
from distmeta.models.backbones import conv4, koch_cnn, mlp
from distmeta.models.lstm import lstm
from distmeta.models.mann import mann
from distmeta.models.ntm import ntm
from distmeta.run.evaluating import Yardstick, compare, evaluate, judge, sweep
from distmeta.run.training import Place, RunResult, inspect_run, meta_train
from distmeta.runtime.backend import LocalBackend
from distmeta.tasks.algorithmic import AssociativeRecallTask, CopyTask, NGramsTask, PrioritySortTask, RepeatCopyTask
from distmeta.tasks.base import Task, TaskDistribution
from distmeta.tasks.few_shot import FewShot
from distmeta.tasks.function import FunctionTasks, task_distribution
from distmeta.tasks.label_sequences import LabelSequences
from distmeta.tasks.lake_runs import LakeRuns
from distmeta.tasks.sinusoids import Sinusoids
from distmeta.types import Episode, TaskSpec

__version__ = "0.1.0"

__all__ = [
    "MAML",
    "MANN",
    "NTM",
    "AssociativeRecallTask",
    "CopyTask",
    "DistmetaError",
    "Episode",
    "Evaluation",
    "EvaluationReport",
    "Experiment",
    "FastModel",
    "FewShot",
    "FunctionTasks",
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
    "PrioritySortTask",
    "ProtoNet",
    "RepeatCopyTask",
    "Reptile",
    "RunResult",
    "Runtime",
    "Siamese",
    "Sinusoids",
    "Task",
    "TaskDistribution",
    "TaskSpec",
    "Yardstick",
    "compare",
    "conv4",
    "evaluate",
    "from_arrays",
    "inspect_run",
    "judge",
    "koch_cnn",
    "load_job",
    "lstm",
    "mann",
    "meta_train",
    "mlp",
    "ntm",
    "sweep",
    "task_distribution",
    "use_batch_statistics",
]
