"""The Neural Turing Machine on associative recall (Graves et al. 2014, section 4.3): 2 to 6 items, tested at 6.

Items are three vectors of six bits. For lists longer than in training, evaluate the run with ``tasks.length`` up to 20.
"""

from distmeta import NTM, AssociativeRecallTask, Evaluation, Experiment, Outer, Runtime, ntm

experiment = Experiment(
    # An LSTM controller of 100 units, one read and one write head, as in table 2.
    learner=NTM(ntm()),
    tasks=AssociativeRecallTask(bits=6, vectors=3, length=6, min_length=2, max_length=6),
    # Adam in place of the paper's RMSProp at 1e-4: fewer sequences to the same cost, and a rate that falls to 0: at a
    # constant one the cost still jumps late in training. Clipping as in the paper.
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", clip_value=10.0, iterations=20_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=1000, validation_tasks=100, test_tasks=600),
)
