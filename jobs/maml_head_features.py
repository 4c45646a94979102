"""MAML of the head alone, on the features of a frozen encoder, 5-way 1-shot.

Make the features first:
``distmeta data encode PICTURES --encoder jobs/encoders/efficientnet_lite0.py:encoder --out DIR``, then
``distmeta train jobs/maml_head_features.py --data DIR``.
"""

from distmeta import MAML, Evaluation, Experiment, FewShot, Outer, Runtime, mlp

experiment = Experiment(
    # No hidden layer: one linear layer with an output per class.
    learner=MAML(mlp(()), inner_lr=0.05, inner_steps=5, test_inner_steps=10),
    tasks=FewShot(data="features", ways=5, shots=1, queries=3),
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", iterations=500, meta_batch_size=16),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=100, validation_tasks=200, test_tasks=600),
)
