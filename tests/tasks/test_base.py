"""The promises of every task distribution: pure draws, checked shapes and values, baselines."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from distmeta import Episode, FunctionTasks, Sinusoids, task_distribution
from distmeta.errors import TaskContractError
from distmeta.tasks.base import TaskDistribution
from distmeta.types import SPLITS, TaskRef


@task_distribution
def lines(random, split):
    slope, x = random.normal(), random.uniform(-1, 1, size=(20, 1))
    return x[:8], slope * x[:8], x[8:], slope * x[8:]


def rings(random, split):
    """Three classes, by distance from the origin."""
    y = np.repeat(np.arange(3), 4)
    angle = random.uniform(0, 2 * np.pi, 12)
    x = (y + random.uniform(0.2, 0.8, 12))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return x[::2], y[::2], x[1::2], y[1::2]


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


DISTRIBUTIONS = [Sinusoids(shots=3), lines, FunctionTasks(rings)]


@pytest.mark.parametrize("tasks", DISTRIBUTIONS, ids=["sinusoids", "lines", "rings"])
class TestEveryDistribution:
    @given(st.sampled_from(SPLITS), st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 99))
    def test_a_task_is_a_pure_function_of_its_name(self, tasks, split, step, index, seed):
        ref = TaskRef(split, step, index)
        first = tasks.episode(ref, seed)
        tasks.episode(TaskRef(split, step, index + 1), seed)
        assert equal(first, tasks.episode(ref, seed))
        for other in (TaskRef(split, step, index + 1), TaskRef(split, step + 1, index)):
            assert not equal(first, tasks.episode(other, seed))
        assert not equal(first, tasks.episode(ref, seed + 1))

    def test_splits_are_different_tasks(self, tasks):
        drawn = [tasks.episode(TaskRef(split, 0, 0), 0) for split in tasks.splits]
        assert not equal(drawn[0], drawn[1])
        assert not equal(drawn[1], drawn[2])

    def test_global_random_state_is_neither_read_nor_written(self, tasks):
        np.random.seed(1)
        torch.manual_seed(1)
        before = tasks.episode(TaskRef("meta_train", 0, 0), 0), torch.get_rng_state(), np.random.get_state()[1]
        np.random.seed(2)
        torch.manual_seed(2)
        assert equal(before[0], tasks.episode(TaskRef("meta_train", 0, 0), 0))
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_shapes_are_what_the_spec_says(self, tasks):
        spec, episode = tasks.spec, tasks.episode(TaskRef("meta_test", 0, 5), 0)
        assert episode.support_x.shape == (spec.support, *spec.input_shape)
        assert episode.query_x.shape == (spec.queries, *spec.input_shape)
        assert (episode.support_x.dtype, episode.query_x.dtype) == (torch.float32, torch.float32)
        if spec.kind == "regression":
            assert episode.query_y.shape == (spec.queries, spec.outputs)
            assert episode.query_y.dtype == torch.float32
        else:
            assert episode.query_y.shape == (spec.queries,)
            assert episode.query_y.dtype == torch.int64

    def test_a_chunk_is_its_tasks_stacked(self, tasks):
        refs = [TaskRef("meta_train", 3, index) for index in range(4)]
        stacked = tasks.episodes(refs, 5)
        for i, ref in enumerate(refs):
            assert equal((part[i] for part in stacked), tasks.episode(ref, 5))

    def test_it_checks_itself_and_describes_itself(self, tasks):
        tasks.check()
        assert len(tasks.fingerprint) == 64
        assert {"name", "source"} <= set(tasks.describe())

    def test_tasks_can_be_held_and_iterated(self, tasks):
        taken = tasks.take(3, split="meta_validation", seed=4)
        assert [task.id for task in taken] == [f"meta_validation/{i}" for i in range(3)]
        x, y = taken[1].sample()
        expected = tasks.episode(TaskRef("meta_validation", 0, 1), 4)
        assert torch.equal(x, expected.support_x)
        assert torch.equal(y, expected.support_y)
        assert equal(taken[1].episode, expected)
        listed = list(tasks)
        assert [task.id for task in listed] == [f"meta_test/{i}" for i in range(20)]
        assert equal(listed[0].episode, tasks.take(1)[0].episode)


X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ((X[:2], Y[:2], X, Y), "support_x of a task from FunctionTasks has shape [2, 2]; expected [4, 2]"),
        ((X, Y, X[:, :1], Y), "query_x of a task from FunctionTasks has shape [4, 1]; expected [4, 2]"),
        ((X, Y[:, None], X, Y), "support_y of a task from FunctionTasks has shape [4, 1]; expected [4]"),
        ((X, Y, X, 2 * Y), "labels from 0 to 2"),
    ],
)
def test_a_task_unlike_the_first_is_named(later, message):
    tasks = FunctionTasks(lambda random, split: (X, Y, X, Y) if split == "meta_train" else later)
    ref = TaskRef("meta_test", 0, 3)
    with pytest.raises(TaskContractError) as caught:
        tasks.episodes([ref], 0)
    assert message in str(caught.value)
    assert caught.value.task_ref == ref


def test_baseline_of_classification_is_the_nearest_support_example():
    random = np.random.default_rng(0)
    support_x, query_x = random.normal(size=(5, 12, 2, 3)), random.normal(size=(5, 40, 2, 3))
    support_y, query_y = random.integers(0, 4, (5, 12)), random.integers(0, 4, (5, 40))
    found = Sinusoids().baseline(Episode(*map(torch.from_numpy, (support_x, support_y, query_x, query_y))))
    expected = []
    for sx, sy, qx, qy in zip(support_x, support_y, query_x, query_y, strict=True):
        hits = [
            sy[min(range(len(sx)), key=lambda i: ((sx[i] - x) ** 2).sum())] == y for x, y in zip(qx, qy, strict=True)
        ]
        expected.append(np.mean(hits))
    assert set(found) == {"baseline_accuracy"}
    assert found["baseline_accuracy"].tolist() == pytest.approx(expected)


def test_baseline_of_regression_is_the_mean_of_the_support_targets():
    random = np.random.default_rng(0)
    support_y, query_y = random.normal(size=(3, 7, 2)), random.normal(size=(3, 9, 2))
    x = torch.zeros(3, 7, 1)
    found = Sinusoids().baseline(Episode(x, torch.from_numpy(support_y), x, torch.from_numpy(query_y)))
    expected = [((q - s.mean(0)) ** 2).mean() for s, q in zip(support_y, query_y, strict=True)]
    assert found["baseline_loss"].tolist() == pytest.approx(expected)


def test_a_distribution_must_say_what_it_is():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (TaskDistribution,), {"draw": lambda self, split, random: None})()


class TestDrawnTogether:
    class Halves(Sinusoids):
        """A distribution that draws a chunk at once; ``change`` spoils it."""

        change = staticmethod(lambda episode: episode)

        def draw_refs(self, refs, seed):
            return self.change(super().draw_refs(refs, seed))

    REFS = tuple(TaskRef("meta_train", 0, index) for index in range(4))

    def spoiled(self, change):
        tasks = self.Halves(shots=3)
        tasks.change = change
        return tasks

    def test_a_task_too_few_is_refused(self):
        with pytest.raises(TaskContractError, match="returned 3 tasks for 4 refs; expected as many"):
            self.spoiled(lambda e: e.map(lambda part: part[:3])).episodes(self.REFS, 0)

    def test_another_shape_is_refused(self):
        with pytest.raises(TaskContractError, match=r"support_x of a task from Halves has shape \[2, 1\]"):
            self.spoiled(lambda e: e.map(lambda part: part[:, :2])).episodes(self.REFS, 0)

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
    def test_the_task_with_a_number_that_is_none_is_named(self, number):
        def change(episode):
            episode.query_y[2, 5] = number
            return episode

        with pytest.raises(TaskContractError, match="query_y of a task from Halves has NaN or infinite") as caught:
            self.spoiled(change).episodes(self.REFS, 0)
        assert caught.value.task_ref == self.REFS[2]

    def test_finite_numbers_whose_sum_is_infinite_are_right(self):
        def change(episode):
            episode.query_y[:] = 3e38
            return episode

        assert float(self.spoiled(change).episodes(self.REFS, 0).query_y.min()) == np.float32(3e38)
