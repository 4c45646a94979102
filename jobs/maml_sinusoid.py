"""MAML on sinusoid regression, as in Finn et al. (2017), section 5.1 and figure 3.

Ten points of a sine of unknown amplitude and phase; ten gradient steps at test. The run directory gets a picture of a
fitted sine, ``fit.png``.
"""

from distmeta import MAML, Evaluation, Experiment, Outer, Runtime, Sinusoids, mlp

experiment = Experiment(
    # Two hidden layers of 40 units, ReLU; one step of 0.01 in training.
    learner=MAML(mlp((40, 40)), inner_lr=0.01, inner_steps=1, test_inner_steps=10),
    tasks=Sinusoids(shots=10, queries=10),
    outer=Outer(optimizer="adam", lr=1e-3, iterations=20_000, meta_batch_size=25),
    runtime=Runtime(chunk_size=25),
    evaluation=Evaluation(every=2000, validation_tasks=200, test_tasks=600),
)
