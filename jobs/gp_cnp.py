"""Conditional neural process on functions of Gaussian processes: Garnelo et al. (2018) by the protocol of TNP (2022).

Length scale, scale and points are drawn anew; every result has that of the exact posterior beside it.
"""

from distmeta import Evaluation, Experiment, GaussianProcesses, InContext, Outer, Runtime, cnp

experiment = Experiment(
    learner=InContext(cnp()),
    tasks=GaussianProcesses(kernel="rbf"),
    outer=Outer(optimizer="adam", lr=5e-4, schedule="cosine", iterations=100_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16, checkpoint_every=1000),
    evaluation=Evaluation(every=5000, validation_tasks=480, test_tasks=4800),
)
