"""The Neural Turing Machine on the copy task (Graves et al. 2014, section 4.1): lengths 1 to 20, tested at 20.

For sequences longer than in training, evaluate the run with ``tasks.length`` at 30, 50 and 120.
"""

from distmeta import NTM, CopyTask, Evaluation, Experiment, Outer, Runtime, ntm

experiment = Experiment(
    # An LSTM controller of 100 units, one read and one write head, 128 slots of 20 numbers; memory starts constant.
    learner=NTM(ntm()),
    tasks=CopyTask(bits=8, length=20, min_length=1, max_length=20),
    # Adam in place of the paper's RMSProp at 1e-4: fewer sequences to the same cost, and a rate that falls to 0: at a
    # constant one the cost still jumps late in training. Clipping as in the paper.
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", clip_value=10.0, iterations=10_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=1000, validation_tasks=100, test_tasks=600),
)
