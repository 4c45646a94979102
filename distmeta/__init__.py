"""distmeta: distributed task-parallel meta-training."""
from distmeta.learners.base import MetaLearner, MetaModule, FastModel
from distmeta.learners.maml import MAML
from distmeta.models.backbones import conv4, mlp
from distmeta.tasks.sinusoids import Sinusoids
from distmeta.tasks.base import TaskDistribution, FunctionTasks, task_distribution
