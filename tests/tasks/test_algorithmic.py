"""Graves's five tasks against their definitions."""

import math
import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from distmeta import AssociativeRecallTask, CopyTask, Episode, NGramsTask, PrioritySortTask, RepeatCopyTask
from distmeta.errors import ConfigError, TaskContractError
from distmeta.types import SPLITS, TaskRef

FIVE = [CopyTask, RepeatCopyTask, AssociativeRecallTask, NGramsTask, PrioritySortTask]
VARIABLE = [CopyTask, RepeatCopyTask, AssociativeRecallTask]
every_task = pytest.mark.parametrize("kind", FIVE)

splits, steps, indices = st.sampled_from(SPLITS), st.integers(0, 10**5), st.integers(0, 10**4)


def episode(tasks, split="meta_train", step=0, index=0, seed=0):
    return tasks.episode(TaskRef(split, step, index), seed)


def is_binary(values):
    return bool(((values == 0) | (values == 1)).all())


@given(splits, steps, indices, st.integers(1, 9), st.integers(1, 9))
def test_copy_is_the_input_shifted(split, step, index, bits, length):
    x, y = list(episode(CopyTask(bits=bits, length=length, max_length=9), split, step, index))[2:]
    n = (len(x) - 1) // 2
    assert n == length or (split == "meta_train" and 1 <= n <= 9)
    assert (x.shape, y.shape) == ((2 * n + 1, bits + 1), (2 * n + 1, bits))
    assert x[:, bits].nonzero().flatten().tolist() == [n]
    assert is_binary(x)
    assert torch.equal(y[n + 1 :], x[:n, :bits])
    assert not x[n + 1 :].any()
    assert not x[n, :bits].any()
    assert (y[: n + 1] == -1).all()


@given(splits, steps, indices, st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_repeat_copy_is_so_many_copies_and_an_end_marker(split, step, index, bits, length, repeats):
    tasks = RepeatCopyTask(bits=bits, length=length, repeats=repeats, max_length=5, min_repeats=2, max_repeats=6)
    x, y = list(episode(tasks, split, step, index))[2:]
    (n,) = x[:, bits].nonzero().flatten().tolist()
    copies = (len(x) - n - 2) // n
    if split == "meta_train":
        assert 1 <= n <= 5
        assert 2 <= copies <= 6
    else:
        assert (n, copies) == (length, repeats)
    assert x.shape == (n + 1 + copies * n + 1, bits + 2)
    assert is_binary(x[:n, :bits])
    assert torch.equal(y[n + 1 : -1, :bits], x[:n, :bits].repeat(copies, 1))
    assert y[n + 1 :, bits].nonzero().flatten().tolist() == [copies * n]
    assert not y[-1, :bits].any()
    assert (y[: n + 1] == -1).all()
    assert not x[n + 1 :].any()
    assert float(x[n, bits + 1]) == pytest.approx(tasks.normalised(copies))
    assert x[:n, bits:].abs().sum() == 0


def test_the_number_of_copies_has_mean_0_and_variance_1():
    tasks = RepeatCopyTask(min_repeats=3, max_repeats=11)
    seen = [tasks.normalised(r) for r in range(3, 12)]
    assert np.mean(seen) == pytest.approx(0)
    assert np.var(seen) == pytest.approx(1)
    assert RepeatCopyTask(min_repeats=4, max_repeats=4).normalised(4) == 0


@given(splits, steps, indices, st.integers(1, 4), st.integers(2, 6))
def test_recall_answers_with_the_item_after_the_query(split, step, index, vectors, length):
    bits = 16  # wide: no two items alike
    x, y = list(episode(AssociativeRecallTask(bits=bits, vectors=vectors, length=length), split, step, index))[2:]
    starts = x[:, bits].nonzero().flatten().tolist()
    items = [x[at + 1 : at + 1 + vectors, :bits] for at in starts]
    assert len(items) == length or (split == "meta_train" and 2 <= len(items) <= 6)
    first, last = x[:, bits + 1].nonzero().flatten().tolist()
    assert first == len(items) * (vectors + 1) == starts[-1] + vectors + 1
    query = x[first + 1 : last, :bits]
    (asked,) = [i for i, item in enumerate(items) if torch.equal(item, query)]
    assert torch.equal(y[last + 1 :], items[asked + 1])
    assert len(y) == last + 1 + vectors
    assert (y[: last + 1] == -1).all()
    assert not x[last + 1 :].any()
    assert is_binary(x)


def test_recall_asks_for_every_item_but_the_first():
    tasks = AssociativeRecallTask(bits=16, vectors=1, length=4)
    answers = []
    for index in range(300):
        x, y = list(episode(tasks, "meta_test", index=index))[2:]
        answers += [i for i in range(4) if torch.equal(x[2 * i + 1, :16], y[-1])]
    counts = np.bincount(answers, minlength=4)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 100).max() < 5 * math.sqrt(100)


@given(splits, steps, indices, st.integers(2, 12), st.integers(1, 2))
def test_priority_sort_is_sorted_by_priority(split, step, index, length, fewer):
    tasks = PrioritySortTask(bits=5, length=length, answers=max(length - fewer, 1))
    x, y = list(episode(tasks, split, step, index))[2:]
    shown = [(float(priority), bits.tolist()) for priority, bits in zip(x[:length, 5], x[:length, :5], strict=True)]
    assert y[length + 1 :].tolist() == [bits for _, bits in sorted(shown, reverse=True)[: tasks.config.answers]]
    assert all(-1 <= priority <= 1 for priority, _ in shown)
    assert x[:, 6].nonzero().flatten().tolist() == [length]
    assert not x[length, :6].any()
    assert not x[length + 1 :].any()
    assert is_binary(x[:, :5])
    assert (y[: length + 1] == -1).all()


def test_priorities_are_uniform():
    tasks = PrioritySortTask()
    seen = np.concatenate([episode(tasks, index=i).query_x[:20, 8].numpy() for i in range(100)])
    assert np.histogram(seen, bins=4, range=(-1, 1))[0] == pytest.approx(500, abs=5 * math.sqrt(500))


@given(splits, steps, indices, st.integers(2, 6), st.integers(8, 60))
def test_ngrams_ask_for_the_next_bit_after_the_first_context(split, step, index, order, length):
    x, y = list(episode(NGramsTask(order=order, length=length), split, step, index))[2:]
    assert x.shape == y.shape == (length - 1, 1)
    assert is_binary(x)
    scored = (y >= 0).flatten()
    assert scored.tolist() == [step >= order - 2 for step in range(length - 1)]
    assert torch.equal(y[scored][:-1], x[1:][scored[:-1]])


def brute_force(bits, order):
    """The cost of equation 10 in bits, counting anew at each step by looking at the whole past."""
    cost = 0.0
    for t in range(order - 1, len(bits)):
        context = bits[t - order + 1 : t]
        followed = [bits[s] for s in range(order - 1, t) if bits[s - order + 1 : s] == context]
        one = (followed.count(1) + 0.5) / (len(followed) + 1)
        cost -= math.log2(one if bits[t] else 1 - one)
    return cost


@settings(max_examples=15)
@given(st.integers(2, 6), st.integers(8, 60))
def test_the_optimal_predictor_counts_what_followed_each_context(order, length):
    tasks = NGramsTask(order=order, length=length)
    episodes = tasks.episodes([TaskRef("meta_test", 0, i) for i in range(3)], 0)
    found = tasks.baseline(episodes)["baseline_bits"]
    for x, y, cost in zip(episodes.query_x, episodes.query_y, found, strict=True):
        bits = [*x.flatten().int().tolist(), int(y[-1])]
        assert float(cost) == pytest.approx(brute_force(bits, order), rel=1e-5)


def test_the_optimal_predictor_is_between_the_tables_entropy_and_guessing():
    """Beta(1/2, 1/2) has a mean entropy of 2 - 1/ln 2 = 0.557 bits; learning 32 numbers from 195 bits costs some."""
    tasks = NGramsTask()
    found = tasks.baseline(tasks.episodes([TaskRef("meta_test", 0, i) for i in range(200)], 0))["baseline_bits"]
    assert 0.557 * 195 < float(found.mean()) < 0.85 * 195


@pytest.mark.parametrize("kind", [CopyTask, RepeatCopyTask, AssociativeRecallTask, PrioritySortTask])
def test_the_others_baseline_is_one_bit_per_scored_bit(kind):
    tasks = kind()
    episodes = tasks.episodes([TaskRef("meta_test", 0, i) for i in range(2)], 0)
    scored = {CopyTask: 160, RepeatCopyTask: 909, AssociativeRecallTask: 18, PrioritySortTask: 128}[kind]
    assert tasks.baseline(episodes)["baseline_bits"].tolist() == [scored, scored]


@every_task
@given(splits, steps, indices)
def test_a_task_is_a_pure_function_of_its_name(kind, split, step, index):
    tasks = kind()
    first = episode(tasks, split, step, index)
    copied = episode(pickle.loads(pickle.dumps(tasks)), split, step, index)
    assert all(torch.equal(a, b) for a, b in zip(first, copied, strict=True))
    other = episode(tasks, split, step, index + 1).query_x
    assert other.shape == first.query_x.shape
    assert len(first.support_x) == len(first.support_y) == 0


@every_task
def test_tasks_of_other_names_differ(kind):
    tasks = kind(min_length=5, max_length=5) if kind in VARIABLE else kind()
    seen = {
        episode(tasks, split, step, index, seed).query_x.numpy().tobytes()
        for split in SPLITS
        for step in (0, 1)
        for index in range(5)
        for seed in (0, 1)
    }
    assert len(seen) == 3 * 2 * 5 * 2


@every_task
def test_the_spec_is_true_of_evaluation_tasks(kind):
    tasks = kind()
    tasks.check()
    assert tasks.spec.kind == "sequence"
    for split in ("meta_validation", "meta_test"):
        x, y = list(episode(tasks, split, index=3))[2:]
        assert x.shape == (tasks.spec_of(split).queries, *tasks.spec.input_shape)
        assert y.shape == (tasks.spec_of(split).queries, tasks.spec.outputs)


@pytest.mark.parametrize("kind", VARIABLE)
def test_one_length_within_a_step_and_others_in_other_steps(kind):
    """All chunks of a step agree on it, whichever worker has them; every length occurs, none is beyond the spec."""
    tasks, lengths = kind(), []
    for step in range(150):
        parts = [tasks.episodes([TaskRef("meta_train", step, i) for i in chunk], 0) for chunk in ((0, 1), (7,))]
        assert parts[0].query_x.shape[1:] == parts[1].query_x.shape[1:]
        lengths.append(parts[0].query_x.shape[1])
    longest = tasks.spec_of("meta_train").queries
    assert max(lengths) <= longest
    expected = {
        CopyTask: {2 * n + 1 for n in range(1, 21)},
        RepeatCopyTask: None,
        AssociativeRecallTask: {4 * n + 8 for n in range(2, 7)},
    }[kind]
    if expected is None:
        assert len(set(lengths)) > 20
    else:
        assert set(lengths) == expected
    assert tasks.spec_of("meta_train").queries == longest  # a step leaves the distribution as it was


@pytest.mark.parametrize("kind", VARIABLE)
def test_evaluation_tasks_do_not_depend_on_the_training_lengths(kind):
    usual, other = kind(), kind(min_length=3, max_length=4)
    for split in ("meta_validation", "meta_test"):
        assert all(torch.equal(a, b) for a, b in zip(episode(usual, split), episode(other, split), strict=True))


@pytest.mark.parametrize("kind", [CopyTask, RepeatCopyTask, AssociativeRecallTask, NGramsTask, PrioritySortTask])
def test_a_longer_task_of_the_same_index_begins_like_the_shorter_one(kind):
    short, long = kind(), kind().with_config(length=kind().config.length + 17)
    assert short.fingerprint == long.fingerprint
    for index in range(5):
        a, b = (episode(tasks, "meta_test", index=index).query_x for tasks in (short, long))
        assert len(b) > len(a)
        shown = {AssociativeRecallTask: 6 * 4}.get(kind, short.config.length - (kind is NGramsTask))
        assert torch.equal(a[:shown], b[:shown])


def test_the_five_are_different_data():
    assert len({kind().fingerprint for kind in FIVE}) == 5


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            CopyTask(min_length=5, max_length=3),
            "min_length=5 is above max_length=3; expected a range. Set tasks",
        ),
        (RepeatCopyTask(min_repeats=5, max_repeats=3), "min_repeats=5 is above max_repeats=3"),
        (NGramsTask(order=6, length=6), "length=6 leaves nothing to predict in 6-grams"),
        (PrioritySortTask(length=10), "answers=16 but only length=10 vectors are shown"),
    ],
)
def test_settings_that_make_no_task(tasks, message):
    # A run is checked on all splits, an evaluation on the one that it judges.
    for check in (tasks.check, lambda: tasks.check_split("meta_test")):
        with pytest.raises(TaskContractError) as caught:
            check()
        assert message in str(caught.value)


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="min_length"):
        AssociativeRecallTask(min_length=1)
    with pytest.raises(ConfigError, match=r"CopyTask has no setting 'lenght'\. Did you mean 'length'"):
        CopyTask(lenght=3)


def test_the_baseline_of_n_grams_keeps_type_and_place():
    x = torch.tensor([[[1.0], [0.0], [1.0], [1.0]]])
    y = torch.tensor([[[0.0], [1.0], [1.0], [1.0]]])
    found = NGramsTask(order=2, length=8).baseline(Episode(x[:, :0], y[:, :0], x, y))["baseline_bits"]
    # after 1: 0 (1/2), after 0: 1 (1/2), after 1: 1 (0.5 of 2), after 1: 1 (1.5 of 3)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([1 + 1 + 2 + 1])
