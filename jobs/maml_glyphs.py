"""MAML on glyphs, 5-way 1-shot: the first job to run, with nothing to download.

Glyphs are characters drawn from the fonts that matplotlib ships; the classes of the test come from Unicode
blocks that are absent from training.
"""

from distmeta import MAML, Evaluation, Experiment, FewShot, Outer, Runtime, conv4

experiment = Experiment(
    learner=MAML(conv4(width=32, pool="stride"), inner_lr=0.4, inner_steps=1, test_inner_steps=3),
    tasks=FewShot(data="glyphs", ways=5, shots=1, queries=3),
    outer=Outer(optimizer="adam", lr=2e-3, schedule="cosine", iterations=1000, meta_batch_size=16),
    runtime=Runtime(chunk_size=8),
    evaluation=Evaluation(every=250, validation_tasks=100, test_tasks=600),
)
