"""A prior-data fitted network for one Gaussian process: Müller et al. (2022), section 5, where the posterior is known.

Kernel and hyper-parameters are fixed, so the network that fits the prior is the exact posterior: the likelihoods of
both meet. Targets are bars of a histogram, as in the paper.
"""

from distmeta import Evaluation, Experiment, GaussianProcesses, InContext, Outer, Runtime, tnp

experiment = Experiment(
    learner=InContext(tnp(), bins=100),
    tasks=GaussianProcesses(kernel="rbf", length=0.6, scale=1.0, noise=0.1),
    outer=Outer(optimizer="adam", lr=5e-4, schedule="cosine", iterations=10_000, meta_batch_size=16, clip_norm=1.0),
    runtime=Runtime(chunk_size=16, checkpoint_every=500, keep_checkpoints=30),
    evaluation=Evaluation(every=500, validation_tasks=320, test_tasks=1600),
)
