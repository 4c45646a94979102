"""The Neural Turing Machine on repeat copy (Graves et al. 2014, section 4.2): lengths and numbers of copies 1 to 10.

Tested at ten copies of ten vectors. Beyond the training range: evaluate with ``tasks.length=20`` or
``tasks.repeats=20``.
"""

from distmeta import NTM, Evaluation, Experiment, Outer, RepeatCopyTask, Runtime, ntm

experiment = Experiment(
    # An LSTM controller of 100 units, one read and one write head, as in table 2.
    learner=NTM(ntm()),
    tasks=RepeatCopyTask(bits=8, length=10, repeats=10, max_length=10, max_repeats=10),
    # Adam in place of the paper's RMSProp at 1e-4: fewer sequences to the same cost, and a rate that falls to 0: at a
    # constant one the cost still jumps late in training. Clipping as in the paper.
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", clip_value=10.0, iterations=15_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=1000, validation_tasks=50, test_tasks=300),
)
