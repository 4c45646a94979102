"""Attentive conditional neural process on functions of Gaussian processes: Kim et al. (2019), protocol of TNP.

Length scale, scale and points are drawn anew; every result has that of the exact posterior beside it.
"""

from distmeta import Evaluation, Experiment, GaussianProcesses, InContext, Outer, Runtime, attentive_cnp

experiment = Experiment(
    learner=InContext(attentive_cnp()),
    tasks=GaussianProcesses(kernel="rbf"),
    outer=Outer(optimizer="adam", lr=5e-4, schedule="cosine", iterations=100_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16, checkpoint_every=1000),
    evaluation=Evaluation(every=5000, validation_tasks=480, test_tasks=4800),
)
