"""A prior-data fitted network for tables: pre-trained on random tables alone, tested on iris, wine and breast cancer.

The prior and the test are those of Prior Labs' pre-training cookbook (2026): 50 rows, 3 features, 2 or 3 classes by
random networks. The real tables have 4, 13 and 30 features: the network takes any number.
"""

from distmeta import Evaluation, Experiment, InContext, Outer, Runtime, Tables, table_transformer

experiment = Experiment(
    learner=InContext(table_transformer(width=96, heads=4, layers=3), standardise="inputs"),
    tasks=Tables(rows=50, support=(10, 47), features=3, classes=(2, 3), test=("iris", "wine", "breast_cancer")),
    outer=Outer(optimizer="adamw", lr=1e-3, schedule="cosine", iterations=1250, meta_batch_size=50, clip_norm=1.0),
    runtime=Runtime(chunk_size=25),
    # Training goes on to its end: the accuracy on random tables has no share in it.
    evaluation=Evaluation(every=250, validation_tasks=200, test_tasks=3),
)
