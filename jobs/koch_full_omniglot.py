"""Koch, Zemel, Salakhutdinov (2015) with the paper's own network, for a GPU: 105x105 images, 38.9 million weights.

Build the data first, at the drawings' own size: ``distmeta data build omniglot-runs --from ZIPS --out DIR --size 105``,
then ``distmeta train jobs/koch_full_omniglot.py --data DIR``. A step of 120 images costs about 0.6 TFLOP. Everything
but the network, the size of the images and the rate is as in ``koch_omniglot.py``, which a CPU can train.
"""

from koch_omniglot import experiment as small

from distmeta import Siamese, koch_cnn

# No batch norm: a prediction does not depend on the other images, and the rate must be lower.
experiment = small.replace(learner=Siamese(koch_cnn(), form="koch", vectorise="loop")).with_overrides(
    {"outer.lr": 1e-4}
)
