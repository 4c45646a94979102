"""MAML on Omniglot, 5-way 1-shot, as in Finn et al. (2017), table 1.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/maml_omniglot.py --data DIR``. Other cells of the table by overrides, for example 20-way with the
paper's settings for it: ``--set tasks.ways=20 --set learner.inner_lr=0.1 --set learner.inner_steps=5
--set learner.test_inner_steps=5 --set outer.meta_batch_size=16``.
"""

from distmeta import MAML, Evaluation, Experiment, FewShot, Outer, Runtime, conv4

experiment = Experiment(
    # Section 5.2: four strided convolutions of 64 filters, one step of 0.4 in training and three at test.
    learner=MAML(conv4(width=64, pool="stride"), inner_lr=0.4, inner_steps=1, test_inner_steps=3),
    # As many queries as shots, as in the authors' code. Turned characters are classes; there, each character of a task
    # is turned by one random quarter.
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=1, rotations="all"),
    outer=Outer(optimizer="adam", lr=1e-3, iterations=60_000, meta_batch_size=32),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
