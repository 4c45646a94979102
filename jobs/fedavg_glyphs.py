"""FedAvg (McMahan et al. 2017) is Reptile under other settings: inner SGD, and an outer step that takes the average.

A task is a client with data of its own, an outer step a round of all of them; with outer SGD of rate 1 the new theta is
the mean of the clients' phi. As in the paper every round begins with a fresh inner optimizer, SGD having no state.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, Reptile, Runtime, conv4

experiment = Experiment(
    learner=Reptile(conv4(), inner_optimizer="sgd", inner_lr=0.05, inner_steps=10, inner_batch=10, test_inner_steps=20),
    tasks=FewShot(data="glyphs", ways=5, shots=1, queries=5, train_shots=10),
    outer=Outer(optimizer="sgd", lr=1.0, iterations=300, meta_batch_size=8),
    runtime=Runtime(chunk_size=4),
    evaluation=Evaluation(every=100, validation_tasks=100, test_tasks=300),
)
