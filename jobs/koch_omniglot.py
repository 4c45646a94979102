from distmeta import Evaluation, Experiment, LakeRuns, Outer, Runtime, Siamese, conv4

experiment = Experiment(
    learner=Siamese(conv4(width=64, pool="stride", head=False), form="koch", vectorise="loop"),
    tasks=LakeRuns(
        data="omniglot-runs",
        train_ways=20,
        train_queries=5,
        rotations="meta_train",
        distort="affine",
        within_group="evaluation",
    ),
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", iterations=4000, meta_batch_size=1),
    runtime=Runtime(chunk_size=1),
    evaluation=Evaluation(every=500, validation_tasks=60, test_tasks=20),
)
