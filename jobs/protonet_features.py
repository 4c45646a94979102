"""Prototypical networks on the features of a frozen encoder, 5-way 1-shot.

Make the features first:
``distmeta data encode PICTURES --encoder jobs/encoders/efficientnet_lite0.py:encoder --out DIR``, then
``distmeta train jobs/protonet_features.py --data DIR``. The report has the nearest class mean and a logistic
probe on the features as they are, on the same tasks: what meta-training adds.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, ProtoNet, Runtime, adapter

experiment = Experiment(
    # The adapter changes no direction at first: the run starts from the nearest class mean of normalised features.
    learner=ProtoNet(adapter(rank=64)),
    tasks=FewShot(data="features", ways=5, shots=1, queries=3),
    # The decay pulls back to the frozen features.
    outer=Outer(optimizer="adamw", lr=3e-5, weight_decay=0.01, schedule="cosine", iterations=500, meta_batch_size=16),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=100, validation_tasks=200, test_tasks=600),
)
