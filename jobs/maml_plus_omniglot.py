"""MAML++ on Omniglot, 20-way 1-shot, with the settings of Antoniou et al. (2019) and MAML's network.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/maml_plus_omniglot.py --data DIR``. First-order gradients to begin with:
``--set learner.first_order_until=25000``. Not as in the paper: no batch normalisation per inner step, and no ensemble
of the five best models.
"""

from distmeta import Evaluation, Experiment, FewShot, MAMLPlusPlus, Outer, Runtime, conv4

experiment = Experiment(
    # Learned rates from 0.1, five steps; the loss after every step counts for the first ten epochs of 500.
    learner=MAMLPlusPlus(conv4(width=64, pool="stride"), inner_lr=0.1, inner_steps=5, multi_step_until=5000),
    tasks=FewShot(data="omniglot", ways=20, shots=1, queries=1, rotations="all"),
    outer=Outer(lr=1e-3, schedule="cosine", final_lr=1e-5, iterations=50_000, meta_batch_size=8),
    runtime=Runtime(chunk_size=2),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
