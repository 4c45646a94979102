"""What the numbers of an evaluation are called for people, and in which order they are shown."""

from __future__ import annotations

from collections.abc import Iterable

from distmeta.occurrences import INSTANCES

_LABELS = {
    "accuracy": "accuracy, transductive (all queries in one batch)",
    "accuracy_non_transductive": "accuracy, non-transductive (each query alone)",
    "baseline_accuracy": "nearest neighbour on raw inputs, same tasks",
    "baseline_mean_accuracy": "nearest class mean on raw inputs, same tasks",
    "baseline_probe_accuracy": "logistic probe on raw inputs, same tasks",
    "accuracy_verification": "accuracy of same or different, pairs",
    "bits": "bits per sequence",
    "bit_errors": "wrong bits per sequence",
    "baseline_bits": "bits per sequence of the task's baseline",
    "log_likelihood": "log-likelihood of a target, nats",
    "exact_log_likelihood": "log-likelihood of the exact posterior, same tasks",
    "mse": "mean squared error",
    "exact_mse": "mean squared error of the exact posterior, same tasks",
    "baseline_mse": "predicting the mean of the support targets",
    "loss": "loss on the queries",
    "exact_loss": "loss of the exact posterior, same tasks",
    "nll": "negative log-likelihood of a query, nats, each query alone",
    "roc_auc": "area under the ROC curve, one class against the others",
    "ece": "expected calibration error, all queries pooled",
    "coverage_50": "targets inside the 50 % interval, share",
    "coverage_90": "targets inside the 90 % interval, share",
    "coverage_95": "targets inside the 95 % interval, share",
    "coverage_error": "distance of coverage from its level, mean over levels",
    "baseline_loss": "predicting the mean of the support targets",
}


_BY_INSTANCE = {"accuracy": "accuracy", "baseline_accuracy": "nearest earlier image"}


def metric_labels(metrics: Iterable[str]) -> dict[str, str]:
    """Metric to what it is called for people, in the order to show them; a metric of the user's keeps its name.

    Example:
        >>> metric_labels(["loss", "accuracy", "mine"])
        {'accuracy': 'accuracy', 'loss': 'loss on the queries', 'mine': 'mine'}
    """
    metrics = list(metrics)
    labels = _LABELS | {
        f"{name}_instance_{k}": f"{text}, instance {k}" for name, text in _BY_INSTANCE.items() for k in INSTANCES
    }
    if "accuracy_non_transductive" not in metrics:
        labels["accuracy"] = "accuracy"
    if "bits" in metrics or any("_instance_" in name for name in metrics):  # a sequence has no queries
        labels |= {"loss": "loss", "nll": "negative log-likelihood of a step, nats"}
        labels["ece"] = "expected calibration error, all steps pooled"
    order = list(labels)
    metrics.sort(key=lambda name: order.index(name) if name in labels else len(order))
    return {name: labels.get(name, name) for name in metrics}
