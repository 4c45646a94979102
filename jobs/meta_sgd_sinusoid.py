"""Meta-SGD on sinusoid regression, one step: Li, Zhou, Chen, Li (2017), table 1, ten points."""

from distmeta import Evaluation, Experiment, MetaSGD, Outer, Runtime, Sinusoids, mlp

experiment = Experiment(
    learner=MetaSGD(mlp((40, 40)), inner_lr=0.01, inner_steps=1),
    tasks=Sinusoids(shots=10, queries=10),
    outer=Outer(optimizer="adam", lr=1e-3, iterations=60_000, meta_batch_size=4),
    runtime=Runtime(chunk_size=4),
    evaluation=Evaluation(every=5000, validation_tasks=200, test_tasks=600),
)
