"""Prototypical networks meta-trained on a small set of pictures, 5-way 1-shot: what to compare features with.

Build the data first:
``distmeta data build image-folder --from ROOT --out DIR --size 32 --channels 3 --split 60/15/25``, then
``distmeta train jobs/protonet_pictures.py --data DIR``.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, ProtoNet, Runtime, conv4

experiment = Experiment(
    learner=ProtoNet(conv4(width=32, pool="max", head=False)),
    tasks=FewShot(data="pictures", ways=5, shots=1, queries=3),
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", iterations=1000, meta_batch_size=4),
    runtime=Runtime(chunk_size=2),
    evaluation=Evaluation(every=250, validation_tasks=100, test_tasks=600),
)
