from distmeta import Evaluation, Experiment, FewShot, Outer, Runtime, Siamese, conv4

experiment = Experiment(
    learner=Siamese(conv4(width=64, pool="stride", head=False), form="contrastive", vectorise="loop"),
    tasks=FewShot(data="omniglot", ways=5, shots=1, queries=5, train_ways=20, train_queries=5, rotations="all"),
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", iterations=4000, meta_batch_size=1),
    runtime=Runtime(chunk_size=1),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
