"""A small MAML on sinusoids, for run directories that an older version wrote."""

from distmeta import MAML, Evaluation, Experiment, Outer, Runtime, Sinusoids, mlp

experiment = Experiment(
    learner=MAML(mlp((12,)), inner_lr=0.01),
    tasks=Sinusoids(shots=5, queries=5),
    outer=Outer(iterations=30, meta_batch_size=8),
    runtime=Runtime(chunk_size=4, checkpoint_every=5),
    evaluation=Evaluation(every=10, validation_tasks=8, test_tasks=8),
)
