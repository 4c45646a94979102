"""Conditional neural process that completes characters: Garnelo et al. (2018), section 4.2, on glyphs.

From 10 to 200 pixels of a character of 28x28 it gives the other ones, each with its spread; test characters are of
classes that training has not seen. The run directory gets a picture, ``drawing.png``.
"""

from distmeta import Evaluation, Experiment, ImageCompletion, InContext, Outer, Runtime, cnp

experiment = Experiment(
    learner=InContext(cnp()),
    tasks=ImageCompletion(data="glyphs", pixels=(10, 200), test_pixels=200, queries=300),
    outer=Outer(optimizer="adam", lr=5e-4, schedule="cosine", iterations=10_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=1000, validation_tasks=200, test_tasks=600),
)
