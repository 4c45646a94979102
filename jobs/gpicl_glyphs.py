"""From memorising to learning to learn: Kirsch et al. (2022), figure 2, on glyphs behind random projections.

With few training tasks the network remembers them; with many it learns from the support set, and does so for maps and
characters that it has never seen. Change ``tasks.tasks`` for the other points of the curve.
"""

from distmeta import Evaluation, Experiment, InContext, Outer, Projections, Runtime, tnp

experiment = Experiment(
    learner=InContext(tnp(), standardise="inputs"),
    tasks=Projections(data="glyphs", tasks=2**16, ways=5, shots=5, queries=5, size=32),
    outer=Outer(optimizer="adam", lr=5e-4, schedule="cosine", iterations=3000, meta_batch_size=16, clip_norm=1.0),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=500, validation_tasks=200, test_tasks=600),
)
