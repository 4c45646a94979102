"""Prototypical networks on Omniglot, 5-way 1-shot, as in Snell et al. (2017), table 1.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/protonet_omniglot.py --data DIR``. The 20-way cell needs no new run, only
``--set tasks.ways=20`` (training tasks have 60 ways either way).
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, ProtoNet, Runtime, conv4

experiment = Experiment(
    # Section 3.1: four blocks of 64 filters with max-pooling, squared Euclidean distance, 64 features.
    learner=ProtoNet(conv4(width=64, pool="max", head=False)),
    # One-shot training on 60 ways with 5 queries per class; rotations are classes.
    tasks=FewShot(
        data="omniglot", ways=5, shots=1, queries=5, train_ways=60, train_shots=1, train_queries=5, rotations="all"
    ),
    # One episode per step, as in the paper; its rate is halved every 2,000 steps, here a cosine does that.
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", iterations=4000, meta_batch_size=1),
    runtime=Runtime(chunk_size=1),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
