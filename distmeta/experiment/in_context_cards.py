"""The protocol cards of in-context learners; :mod:`distmeta.experiment.cards` shows how to write one."""

from __future__ import annotations

from distmeta.experiment.card import Card, Published

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
)
