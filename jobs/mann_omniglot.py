"""MANN on Omniglot, accuracy by occurrence of the class, as in Santoro et al. (2016), table 1.

Build the data first: ``distmeta data build omniglot --out DIR``, then
``distmeta train jobs/mann_omniglot.py --data DIR``. The labels of table 2, strings of five characters, by
``--set tasks.labels=strings``; fifteen classes in addition by ``--set tasks.ways=15 --set tasks.length=150``, ten
images of each as with five classes (the paper has up to fifteen classes in 100 steps). The ablation, the same network
with the addressing of a Neural Turing Machine: ``distmeta train jobs/mann_omniglot_ntm_access.py --data DIR``.

The paper has 1200 classes for training and 423 for the test; the split here (Vinyals) has 1028, 172 for validation and
as many, 423, for the test. The paper trains on 100,000 sequences; its figures at instances 1, 2, 3, 4, 5 and 10 are
36.4, 82.8, 91.0, 92.6, 94.9 and 98.1 %.
"""

from distmeta import MANN, Evaluation, Experiment, LabelSequences, Outer, Runtime, mann

experiment = Experiment(
    # Section 4.1 and the authors' sizes: an LSTM of 200 units, 128 slots of 40 numbers, four reads.
    learner=MANN(mann(size=200, slots=128, width=40, reads=4)),
    # Ten images of each of five classes, 20x20; a turned class is a class of its own.
    tasks=LabelSequences(data="omniglot", ways=5, length=50, labels="one-hot", size=20, rotations="all"),
    # A decayed rate, where the paper's is constant. The gradient is that of 50 steps in time: rare large ones are cut.
    outer=Outer(optimizer="adam", lr=2e-3, schedule="cosine", iterations=24_000, meta_batch_size=16, clip_norm=10.0),
    runtime=Runtime(chunk_size=16),
    evaluation=Evaluation(every=1000, validation_tasks=96, test_tasks=600),
)
