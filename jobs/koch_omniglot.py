"""Koch, Zemel, Salakhutdinov (2015): a Siamese network trained on pairs, tested on Lake's runs.

Build the data first, from the official archives: ``distmeta data build omniglot-runs --from ZIPS --out DIR``, then
``distmeta train jobs/koch_omniglot.py --data DIR``. The final meta-test is the 20 runs: 400 trials, 20-way, within an
alphabet. Koch et al. report 92.0 %, humans 95.5 %, the nearest neighbour on pixels 21.7 % (table 2).

From the paper: the weighted L1 distance with a sigmoid and the binary cross-entropy, affine augmentation of every
training image, the 30 background alphabets for training, 10 evaluation alphabets for validation and the 10 of the runs
for the test. Differences: images of 28x28 and the four-block network of the other jobs, since the paper's 105x105 one
costs about 1.3 TFLOP per batch of 128 pairs, too much for a CPU (``koch_cnn()`` on data built with ``--size 105`` is
that network); Adam with a cosine rate in place of momentum SGD with layer-wise rates; pairs are all
those of a 20-way episode, both kinds weighing the same; characters turned by quarter turns are classes too.

Report ``accuracy_non_transductive``: in a trial there is one test image, while batch statistics see the whole run.
"""

from distmeta import Evaluation, Experiment, LakeRuns, Outer, Runtime, Siamese, conv4

experiment = Experiment(
    learner=Siamese(conv4(width=64, pool="stride", head=False), form="koch", vectorise="loop"),
    tasks=LakeRuns(
        data="omniglot-runs",
        train_ways=20,
        train_queries=5,
        rotations="meta_train",
        augment="affine",
        within_group="evaluation",
    ),
    outer=Outer(optimizer="adam", lr=1e-2, schedule="cosine", iterations=20000, meta_batch_size=1),
    runtime=Runtime(chunk_size=1, checkpoint_every=500),
    # A validation task has the form of a run, 20-way within an alphabet, but other alphabets.
    evaluation=Evaluation(every=2000, validation_tasks=60, test_tasks=20),
)
