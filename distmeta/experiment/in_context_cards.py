"""The protocol cards of in-context learners; :mod:`distmeta.experiment.cards` shows how to write one."""

from __future__ import annotations

from distmeta.experiment.card import OMNIGLOT, Card, Dataset, Published

_TABLES = "table transformer: 3 layers of 96, 4 heads, attention over features and over rows, 0.36 million parameters"

IN_CONTEXT: tuple[Card, ...] = (
    Card(
        name="pfn/tables-50x3",
        paper="Prior Labs' pre-training cookbook 2026 (pretrain_nanotabpfn): mean ROC AUC of iris, wine, breast cancer",
        job="pfn_tables",
        dataset=None,
        network=_TABLES,
        published=(Published("roc_auc", 0.986, None, "3.71 million parameters, 80 epochs of 1,250 tables"),),
        notes=(
            "The cookbook's network has 6 layers of 192 units and 6 heads; ours a tenth of its parameters.",
            "The cookbook trains with schedule-free AdamW at 1e-4; here AdamW at 1e-3 falls to 0 along a cosine.",
            "Each real table is one task, split in halves by class with seed 42: the interval is over three tasks.",
        ),
    ),
    Card(
        name="pfn/nano-150x5",
        paper="Pfefferle, Hog, Purucker, Hutter 2025 (nanoTabPFN), its training script; test on breast cancer",
        job="pfn_nano",
        dataset=None,
        network=_TABLES,
        published=(Published("roc_auc", 0.9877, 0.0034, "a random forest, computed here; logistic regression .9933"),),
        notes=(
            "The paper publishes no number for this table: it finds traditional baselines reached within a minute.",
            "The script reads stored tables of a prior of its own, of 2 classes; here random networks draw them.",
        ),
        differs="another prior; what is aimed at is a baseline",
    ),
    *(
        Card(
            name=f"gp/{name}-rbf",
            paper=f"Nguyen and Grover 2022 (TNP), table 1: {model}",
            job=f"gp_{name}",
            dataset=None,
            network=network,
            published=(Published("log_likelihood", value, None, "RBF, 100,000 steps; from memory"),),
            notes=(
                "TNP's protocol: inputs in [-2, 2], 3 to 46 support points, noise 0.02; 16 functions per step.",
                f"Matern 5/2 at test ({matern} published): distmeta evaluate RUN --set tasks.test_kernel=matern52.",
                "The standard deviation is at least 0.01.",
                "exact_log_likelihood, beside every result, is that of the exact posterior on the same tasks.",
            ),
        )
        for name, model, network, value, matern in (
            ("cnp", "CNP", "CNP: perceptrons of 128, two means of the pairs", 0.26, 0.04),
            ("canp", "CANP", "attentive CNP: perceptrons of 128, 8 heads of cross-attention", 0.79, 0.62),
            ("tnpd", "TNP-D", "TNP-D: 6 layers of 64, 4 heads", 1.39, 0.95),
        )
    ),
    Card(
        name="pfn/gp-1d",
        paper="Müller et al. 2022, section 5.1: the posterior of a fixed Gaussian process",
        job="pfn_gp",
        dataset=None,
        network="TNP-D: 6 layers of 64, 4 heads; 100 bars",
        published=(Published("log_likelihood", 0.513, 0.023, "the exact posterior, computed on the 1,600 test tasks"),),
        notes=("The paper shows curves and no table: what is aimed at is the exact posterior (exact_log_likelihood).",),
        differs="a curve, not a table cell",
    ),
    Card(
        name="snail/omniglot-5w1s",
        paper="Mishra, Rohaninejad, Chen, Abbeel 2018, table 1 (SNAIL)",
        job="image_context_omniglot",
        dataset=OMNIGLOT,
        network="image_context: conv4 with group norm, then 2 transformer blocks of 128 over support and query",
        published=(Published("accuracy", 0.9907, 0.0016, "SNAIL; from memory"),),
        notes=("SNAIL interleaves convolutions in time and attention over one sequence; here attention over a set.",),
        differs="another network than SNAIL's",
    ),
    Card(
        name="cnp/glyph-completion",
        paper="Garnelo et al. 2018, section 4.2, on glyphs in place of MNIST",
        job="cnp_glyphs",
        dataset=Dataset("glyphs", None, "characters of matplotlib's fonts, split by Unicode block", (1, 28, 28)),
        network="CNP: perceptrons of 128, two means of the pairs",
        published=(Published("mse", 0.016, None, "CelebA, 100 random pixels, from memory: other images"),),
        differs="other images than the paper's",
    ),
    Card(
        name="gpicl/small",
        paper="Kirsch, Harrison, Sohl-Dickstein, Metz 2022, figure 2: 2^16 tasks",
        job="gpicl_glyphs",
        dataset=Dataset("glyphs", None, "characters of matplotlib's fonts, split by Unicode block", (1, 28, 28)),
        network="transformer: 6 layers of 64, 4 heads",
        published=(Published("accuracy", 0.737, None, "MNIST, 10 classes, after 100 examples"),),
        notes=("The figure to look at is the curve over tasks.tasks: test tasks are solved from about 2^14 on.",),
        differs="other images, 5 classes, a set in place of a sequence",
    ),
)
