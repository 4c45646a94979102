"""Siamese network on Omniglot, 5-way 1-shot, with the contrastive loss of Hadsell et al. (2006), Vinyals split.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/siamese_omniglot.py --data DIR``. Vinyals et al. (2016), table 1, report 96.7 % for a
convolutional Siamese network, theirs with Koch's loss: ``--set learner.form=koch``, which also does better here. The
report has the verification accuracy of same and different pairs beside the 5-way accuracy.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, Runtime, Siamese, conv4

experiment = Experiment(
    # Stride-2 blocks cost a third of max-pooling. Distances of their features start between 2 and 3: with a margin of
    # that size the network need neither shrink nor stretch them first.
    learner=Siamese(conv4(width=64, pool="stride", head=False), form="contrastive", margin=3.0),
    # 20 ways with 5 queries: 2,000 pairs from 120 images, all of them used, both kinds weighing the same.
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=5, train_ways=20, train_queries=5, rotations="all"),
    outer=Outer(optimizer="adam", lr=1e-2, schedule="cosine", iterations=20000, meta_batch_size=1),
    runtime=Runtime(chunk_size=1, checkpoint_every=500),
    evaluation=Evaluation(every=2000, validation_tasks=200, test_tasks=600),
)
