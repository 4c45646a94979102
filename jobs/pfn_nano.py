"""A prior-data fitted network of nanoTabPFN's size: Pfefferle et al. (2025), 150 rows, 5 features, 2 classes.

Network, tables per step, steps and optimizer are those of its training script; the prior is another, random networks.
The test is breast cancer, split in halves ten times.
"""

from distmeta import Evaluation, Experiment, InContext, Outer, Runtime, Tables, table_transformer

experiment = Experiment(
    learner=InContext(table_transformer(width=96, heads=4, layers=3), standardise="inputs"),
    tasks=Tables(rows=150, support=(15, 135), features=5, classes=2, test=("breast_cancer",), test_splits=10),
    outer=Outer(optimizer="schedulefree", lr=4e-3, iterations=2500, meta_batch_size=32, clip_norm=1.0),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=10),
)
