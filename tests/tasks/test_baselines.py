"""The heads that need no meta-training, on stacked tasks of vectors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distmeta.tasks import baselines
from distmeta.types import Episode


def tasks(count=4, ways=3, shots=5, dim=20, noise=1.0, size=1.0):
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(ways), shots)
    centres = random.normal(size=(count, ways, dim))

    def inputs():
        return torch.from_numpy(size * (centres[:, y] + noise * random.normal(size=(count, len(y), dim)))).float()

    labels = torch.from_numpy(np.tile(y, (count, 1)))
    return Episode(inputs(), labels, inputs(), labels)


def test_vectors_have_three_baselines_and_images_have_one():
    vectors = tasks()
    assert set(baselines.classification(vectors)) == {
        "baseline_accuracy",
        "baseline_mean_accuracy",
        "baseline_probe_accuracy",
    }
    images = vectors.map(lambda part: part.unflatten(2, (1, 4, 5)) if part.dim() == 3 else part)
    found = baselines.classification(images)
    assert set(found) == {"baseline_accuracy"}
    assert torch.equal(found["baseline_accuracy"], baselines.classification(vectors)["baseline_accuracy"])


def test_the_nearest_class_mean_by_hand():
    episodes = tasks(noise=2.0)
    expected = []
    for sx, sy, qx, qy in zip(*episodes, strict=True):
        means = [sx[sy == c].mean(0) for c in range(3)]
        hits = [min(range(3), key=lambda c: float((x - means[c]).norm())) == y for x, y in zip(qx, qy, strict=True)]
        expected.append(np.mean(hits))
    assert baselines.classification(episodes)["baseline_mean_accuracy"].tolist() == pytest.approx(expected)
    assert 0.4 < np.mean(expected) < 1


@pytest.mark.parametrize("size", [0.1, 1.0, 16.0])
@pytest.mark.parametrize(("ways", "shots"), [(3, 5), (5, 1), (20, 5)])
def test_the_probe_is_scikit_learns_logistic_regression(ways, shots, size):
    linear = pytest.importorskip("sklearn.linear_model")
    episodes = tasks(2, ways, shots, dim=60, size=size)
    labels = F.one_hot(episodes.support_y).double()
    found = baselines.probe_logits(episodes.support_x.double(), labels, episodes.query_x.double()).softmax(-1)
    for t in range(2):
        probe = linear.LogisticRegression(fit_intercept=False, tol=1e-10, max_iter=10_000)

        def with_one(x):
            return np.hstack([x.numpy().astype(float), np.ones((len(x), 1))])

        probe.fit(with_one(episodes.support_x[t]), episodes.support_y[t])
        expected = probe.predict_proba(with_one(episodes.query_x[t]))
        np.testing.assert_allclose(found[t], expected, atol=2e-4)


def test_a_task_does_not_depend_on_the_tasks_beside_it():
    together = tasks()
    for t in range(4):
        alone = baselines.classification(together.map(lambda part, t=t: part[t : t + 1]))
        for name, value in baselines.classification(together).items():
            assert value[t] == alone[name][0]


def test_equal_examples_and_a_class_without_examples_are_no_trouble():
    episodes = tasks()
    same = Episode(torch.ones_like(episodes.support_x), episodes.support_y * 2, episodes.query_x, episodes.query_y * 2)
    for value in baselines.classification(same).values():
        assert value.isfinite().all()
