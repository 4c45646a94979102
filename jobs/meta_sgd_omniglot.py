"""Meta-SGD on Omniglot, 5-way 1-shot, as in Li et al. (2017), table 2: MAML's protocol and network, learned rates.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/meta_sgd_omniglot.py --data DIR``.
"""

from distmeta import Evaluation, Experiment, FewShot, MetaSGD, Outer, Runtime, conv4

experiment = Experiment(
    # One step in training and at test; the rates begin between 0.005 and 0.1.
    learner=MetaSGD(conv4(width=64, pool="stride"), inner_lr=(0.005, 0.1), inner_steps=1),
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=1, rotations="all"),
    outer=Outer(optimizer="adam", lr=1e-3, iterations=60_000, meta_batch_size=32),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
