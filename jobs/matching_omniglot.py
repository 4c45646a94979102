"""Matching networks on Omniglot, 5-way 1-shot, as in Vinyals et al. (2016), table 1 (no fine-tuning, no full context).

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/matching_omniglot.py --data DIR``. The paper's plain cosine is
``--set learner.temperature=1``; the Euclidean variant ``--set learner.distance=euclidean --set learner.temperature=1``;
full-context embeddings ``--set learner.full_context=true``.
"""

from distmeta import Evaluation, Experiment, FewShot, MatchingNet, Outer, Runtime, conv4

experiment = Experiment(
    # Section 4.1.1: four blocks of 64 filters with max-pooling, 64 features.
    learner=MatchingNet(conv4(width=64, pool="max", head=False), distance="cosine", temperature=0.1),
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=5, train_ways=20, train_queries=5, rotations="all"),
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", iterations=8000, meta_batch_size=1),
    runtime=Runtime(chunk_size=1),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
