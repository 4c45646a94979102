"""The Neural Turing Machine on priority sort (Graves et al. 2014, section 4.5): the 16 highest of 20 vectors."""

from distmeta import NTM, Evaluation, Experiment, Outer, PrioritySortTask, Runtime, ntm

experiment = Experiment(
    # Eight read and eight write heads and a feed-forward controller of 512 units, as in table 1.
    learner=NTM(ntm("feedforward", size=512, heads=8)),
    tasks=PrioritySortTask(bits=8, length=20, answers=16),
    # Adam in place of the paper's RMSProp at 3e-5: fewer sequences to the same cost, and a rate that falls to 0: at a
    # constant one the cost still jumps late in training. The norm is clipped, where the paper clips every element to
    # 10: now and then a gradient explodes, and half a million elements of 10 are what Adam does not recover from.
    outer=Outer(optimizer="adam", lr=1e-3, schedule="cosine", clip_norm=50.0, iterations=8_000, meta_batch_size=16),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=1000, validation_tasks=50, test_tasks=600),
)
