"""Likelihood, ROC AUC, confidences and coverage per task: closed forms, and scikit-learn's numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distmeta.calibration import Calibration
from distmeta.uncertainty import BINS, LEVELS, of_classes, of_intervals, roc_auc


def drawn(tasks=6, queries=40, classes=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tasks, queries, classes, generator=random)
    return logits, torch.randint(classes, (tasks, queries), generator=random), torch.arange(classes).expand(tasks, -1)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_area_under_the_curve_is_scikit_learns(classes):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is an extra")
    logits, target, support = drawn(classes=classes)
    logits = (2 * logits).round()  # many ties
    found, _ = of_classes(logits, target, support)
    for i in range(len(logits)):
        p = logits[i].double().softmax(-1).numpy()
        given = p[:, 1] if classes == 2 else p
        expected = metrics.roc_auc_score(target[i], given, multi_class="ovr", average="macro")
        assert found["roc_auc"][i].item() == pytest.approx(expected, abs=1e-6)


def test_a_class_without_queries_is_left_out_and_a_task_of_one_class_has_no_curve():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1]])
    target = torch.tensor([[0, 1, 1], [2, 2, 2]])
    found = roc_auc(p.expand(2, -1, -1), target, torch.ones(2, 3, dtype=torch.bool))
    assert found[0] == 1.0  # of classes 0 and 1; class 2 would have made it 5/6 or NaN
    assert found[1].isnan()


def test_the_likelihood_is_the_cross_entropy():
    logits, target, support = drawn()
    found, _ = of_classes(logits, target, support)
    for i in range(len(logits)):
        assert found["nll"][i].item() == pytest.approx(F.cross_entropy(logits[i], target[i]).item(), rel=1e-6)


def test_padding_and_absent_classes_are_not_scored():
    logits, target, _ = drawn(tasks=1, queries=24, classes=3)
    support = torch.tensor([[0, 1, 0, 1, -1]])
    padded = torch.where(torch.arange(24) < 18, target, -1)
    kept = (padded[0] >= 0) & (padded[0] < 2)
    found, sums = of_classes(logits, padded, support)
    alone, own = of_classes(logits[:, kept], padded[:, kept], support)
    assert found["nll"] == pytest.approx(alone["nll"], rel=1e-6)
    assert found["roc_auc"].equal(alone["roc_auc"])
    assert 0 < found["roc_auc"] < 1
    assert sums.equal(own)
    assert sums[0, 0].sum() == kept.sum()


def test_the_calibration_error_by_hand():
    """Four queries sure by .9, half of them right; four sure by .6, all right: (4 * .4 + 4 * .4) / 8."""
    p = torch.tensor([[[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 4])
    _, sums = of_classes(p.log(), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]]), torch.tensor([[0, 1]]))
    found = Calibration.of(sums.numpy())
    assert found.error == pytest.approx(0.4, abs=1e-6)
    filled = {i: n for i, n in enumerate(found.count) if n}
    assert filled == {int(0.6 * BINS): 4, int(0.9 * BINS): 4}
    assert [found.observed[i] for i in filled] == [1.0, 0.5]


def test_the_calibration_error_is_that_of_all_queries_and_no_mean_of_tasks():
    """One task is right by .5 too often, one too seldom: pooled, the model is calibrated."""
    p = torch.full((2, 4, 2), 0.5)
    target = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    _, sums = of_classes(p.log(), target, torch.tensor([[0, 1]] * 2))
    assert Calibration.of(sums.numpy()).error == 0
    assert [Calibration.of(sums[i : i + 1].numpy()).error for i in range(2)] == [0.5, 0.5]


def test_sums_have_the_same_bits_in_any_order_and_in_any_chunks():
    logits, target, support = drawn(tasks=40, queries=75, classes=5)
    _, whole = of_classes(logits, target, support)
    order = torch.randperm(75)
    _, shuffled = of_classes(logits[:, order], target[:, order], support)
    assert whole.equal(shuffled)
    parts = [of_classes(*(part[i : i + 7] for part in (logits, target, support)))[1] for i in range(0, 40, 7)]
    assert whole.equal(torch.cat(parts))
    backwards = Calibration.of(whole.flip(0).numpy())
    assert Calibration.of(whole.numpy()).error.hex() == backwards.error.hex()


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_the_gap():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(200, 50, 5, generator=random)
    target = (logits.softmax(-1).cumsum(-1) < torch.rand(200, 50, 1, generator=random)).sum(-1).clamp_max(4)
    support = torch.arange(5).expand(200, -1)
    right, wrong = (Calibration.of(of_classes(k * logits, target, support)[1].numpy()) for k in (1, 4))
    assert right.error < 0.02
    sure = (4 * logits).softmax(-1).amax(-1).mean() - (logits.argmax(-1) == target).double().mean()
    assert wrong.error == pytest.approx(sure.item(), abs=0.01)


def test_coverage_of_normal_targets_is_its_level():
    z = torch.randn(300, 40, 2, generator=torch.Generator().manual_seed(2))
    metrics, counts = of_intervals(torch.special.ndtr(z))
    found = {name: float(value.mean()) for name, value in metrics.items()}
    assert found == pytest.approx({"coverage_50": 0.5, "coverage_90": 0.9, "coverage_95": 0.95}, abs=0.01)
    assert counts.shape == (300, 1, LEVELS)
    calibration = Calibration.of(counts.numpy())
    np.testing.assert_allclose(calibration.observed, calibration.expected, atol=0.01)
    assert calibration.observed[9] == pytest.approx(found["coverage_50"], abs=1e-6)
    narrow, _ = of_intervals(torch.special.ndtr(2 * z))
    assert narrow["coverage_95"].mean() == pytest.approx(0.673, abs=0.01)  # P(|z| < 1.96 / 2)
