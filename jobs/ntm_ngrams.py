"""The Neural Turing Machine on dynamic 6-grams (Graves et al. 2014, section 4.4): 200 bits of a random table each.

``baseline_bits`` is the cost of the optimal predictor (equation 10).
"""

from distmeta import NTM, Evaluation, Experiment, NGramsTask, Outer, Runtime, ntm

experiment = Experiment(
    # An LSTM controller of 100 units, one read and one write head, as in table 2.
    learner=NTM(ntm()),
    tasks=NGramsTask(order=6, length=200),
    # Adam in place of the paper's RMSProp at 1e-4: fewer sequences to the same cost, and a rate that falls to 0: at a
    # constant one the cost still jumps late in training. Clipping as in the paper.
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", clip_value=10.0, iterations=6_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=500, validation_tasks=50, test_tasks=600),
)
