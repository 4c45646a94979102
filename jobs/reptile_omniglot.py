"""Reptile on Omniglot, 5-way 1-shot, as in Nichol et al. (2018), table 2 and appendix A.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/reptile_omniglot.py --data DIR``. The serial version is ``--set outer.meta_batch_size=1``.

In 45 minutes on one CPU thread (about 35 tasks per second): SGD inside, which learned faster than Adam in short runs,
epsilon down to 0 over the steps that fit, and no validations, each of which costs as much as some 400 steps:
``--workers 1 --set learner.inner_optimizer=sgd --set learner.inner_lr=0.1 --set outer.iterations=15000
--set evaluation.every=0``.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, Reptile, Runtime, conv4

experiment = Experiment(
    # Appendix A: Adam (beta1 = 0) at 1e-3; 5 steps on 10 examples in training, 50 steps on 5 at test.
    learner=Reptile(
        conv4(width=64, pool="stride"),
        inner_lr=1e-3,
        inner_steps=5,
        inner_batch=10,
        test_inner_steps=50,
        test_inner_batch=5,
    ),
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=1, train_shots=10, rotations="meta_train"),
    # epsilon from 1 to 0, five tasks per step.
    outer=Outer(optimizer="sgd", lr=1.0, schedule="linear", iterations=100_000, meta_batch_size=5),
    runtime=Runtime(chunk_size=5),
    evaluation=Evaluation(every=1000, validation_tasks=200, test_tasks=600),
)
