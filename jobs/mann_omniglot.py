"""MANN on Omniglot, accuracy by instance, as in Santoro et al. (2016), table 1."""

from distmeta import MANN, Evaluation, Experiment, LabelSequences, Outer, Runtime, mann

experiment = Experiment(
    learner=MANN(mann(size=200, slots=128, width=40, reads=4)),
    tasks=LabelSequences(data="omniglot", ways=5, length=50, labels="one-hot", size=20),
    outer=Outer(optimizer="adam", lr=1e-3, iterations=8500, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=500, validation_tasks=96, test_tasks=600),
)
