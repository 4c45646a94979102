"""Ridge regression in closed form (R2-D2) on the features of a frozen encoder, 5-way 1-shot.

Make the features first:
``distmeta data encode PICTURES --encoder jobs/encoders/efficientnet_lite0.py:encoder --out DIR``, then
``distmeta train jobs/ridge_features.py --data DIR``.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, Ridge, Runtime, adapter

experiment = Experiment(
    learner=Ridge(adapter(rank=64)),
    tasks=FewShot(data="features", ways=5, shots=1, queries=3),
    outer=Outer(optimizer="adamw", lr=3e-5, weight_decay=0.01, schedule="cosine", iterations=500, meta_batch_size=16),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=100, validation_tasks=200, test_tasks=600),
)
