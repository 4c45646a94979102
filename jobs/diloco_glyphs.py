"""DiLoCo (Douillard et al. 2023) is Reptile under other settings: inner AdamW, outer SGD with Nesterov momentum.

A task is a client with data of its own, an outer step a round of all of them, and what a client sends is theta - phi.
One limit: every round begins with a fresh inner optimizer, where DiLoCo keeps each client's AdamW statistics from round
to round; a task would then depend on the rounds before it, and a kill could change the result.
"""

from distmeta import Evaluation, Experiment, FewShot, Outer, Reptile, Runtime, conv4

experiment = Experiment(
    learner=Reptile(
        conv4(), inner_optimizer="adamw", inner_lr=1e-3, inner_weight_decay=0.1, inner_steps=10, test_inner_steps=20
    ),
    tasks=FewShot(data="glyphs", ways=5, shots=1, queries=5, train_shots=10),
    outer=Outer(optimizer="sgd", lr=0.7, momentum=0.9, nesterov=True, iterations=300, meta_batch_size=8),
    runtime=Runtime(chunk_size=4),
    evaluation=Evaluation(every=100, validation_tasks=100, test_tasks=300),
)
