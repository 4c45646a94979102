"""Omniglot in context: an encoder and a transformer over support and query images, in the place of SNAIL (2018).

Nothing is adapted and no distance is fixed. Build the data first: ``distmeta data build omniglot --out DIR``, then
``--data DIR``.
"""

from distmeta import Evaluation, Experiment, FewShot, InContext, Outer, Runtime, image_context

experiment = Experiment(
    learner=InContext(image_context()),
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=5, train_ways=20, rotations="meta_train"),
    outer=Outer(
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        schedule="cosine",
        warmup=200,
        iterations=20_000,
        meta_batch_size=8,
        clip_norm=1.0,
    ),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
