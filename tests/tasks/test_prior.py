"""Anyone's generator of tables, whatever global random numbers it draws."""

import functools
import itertools
import pickle
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distmeta import Evaluation, Experiment, InContext, LocalBackend, Outer, Prior, Runtime, meta_train
from distmeta.errors import ConfigError, TaskContractError
from distmeta.run.place import Place
from distmeta.tasks.global_random import seeded_globals
from distmeta.tasks.prior_batches import read_tables
from distmeta.types import SPLITS, TaskRef
from set_models import Reader

pytestmark = pytest.mark.usefixtures("one_thread")


def refs(count, split="meta_train", step=0):
    return [TaskRef(split, step, i) for i in range(count)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def pfn(batch_size, seq_len=30, num_features=3, single_eval_pos=None, **more):
    """In the form of PFNs: rows first, three global generators."""
    x = torch.randn(seq_len, batch_size, num_features)
    weights = np.random.normal(size=(batch_size, num_features))
    y = (x * torch.from_numpy(weights).float()).sum(-1) > random.uniform(-0.3, 0.3)
    return x, y.float(), y.float()


def tabicl_like(batch_size, most=40):
    """In the form of TabICL: tables of their own sizes, padded with zeros to one shape."""
    columns = torch.randint(1, 5, (batch_size,))
    rows = torch.randint(30, most + 1, (batch_size,))
    x = torch.randn(batch_size, most, 6) * (torch.arange(6) < columns[:, None, None])
    y = torch.randint(0, 3, (batch_size, most))
    return x, y, columns, rows, torch.randint(10, 20, (batch_size,))


def test_a_table_is_a_function_of_its_ref_and_the_global_generators_are_left_alone():
    tasks = Prior(pfn, classes=2, support=20)
    tasks.check()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = tasks.episodes(refs(6), 5)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    random.seed(7), np.random.seed(8), torch.manual_seed(9)
    for i in reversed(range(6)):
        assert same(tasks.episode(refs(6)[i], 5), first.map(lambda part, i=i: part[i]))
    assert len({part.numpy().tobytes() for part in first.support_x}) == 6
    assert not same(tasks.episodes(refs(6), 6), first)
    assert not same(tasks.episodes(refs(6, step=1), 5), first)


def test_the_same_table_in_another_process():
    tasks = Prior(pfn, classes=2, support=20)
    code = (
        "import sys, torch; torch.manual_seed(4); torch.set_num_threads(2); sys.path[:0] = sys.argv[1:]\n"
        "import test_prior\n"
        "from distmeta import Prior; from distmeta.types import TaskRef\n"
        "tasks = Prior(test_prior.pfn, classes=2, support=20)\n"
        "print(tasks.fingerprint, float(tasks.episode(TaskRef('meta_train', 0, 3), 5).query_x.double().sum()))"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent)]
    fingerprint, total = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert fingerprint == tasks.fingerprint
    assert float(total) == float(tasks.episode(refs(4)[3], 5).query_x.double().sum())


def test_bounds_of_arguments_are_drawn_per_step_and_are_at_their_middle_elsewhere():
    arguments = {"seq_len": (30, 40), "num_features": (2, 5)}
    tasks = Prior(pfn, classes=2, arguments=arguments, support=(10, 20))
    shapes = [tuple(tasks.episodes(refs(3, step=step), 0).query_x.shape[1:]) for step in range(60)]
    assert {columns for _, columns in shapes} == {2, 3, 4, 5}
    assert min(rows for rows, _ in shapes) >= 10
    assert max(rows for rows, _ in shapes) <= 30
    assert len(set(shapes)) > 25
    train = tasks.spec_of("meta_train")
    assert (train.input_shape, train.outputs, train.support, train.queries) == ((5,), 2, 20, 30)
    assert (tasks.spec.input_shape, tasks.spec.support, tasks.spec.queries) == ((3,), 15, 20)
    for split in SPLITS[1:]:
        assert tasks.episodes(refs(2, split), 1).support_x.shape == (2, 15, 3)
    sent = pickle.loads(pickle.dumps(tasks))
    assert same(sent.episodes(refs(3, step=4), 0), tasks.episodes(refs(3, step=4), 0))


def test_tables_that_differ_are_filled_up():
    tasks = Prior(tabicl_like, classes=3, rows=40, features=4)
    tasks.check()
    spec = tasks.spec
    assert (spec.padded, spec.input_shape, spec.support, spec.queries) == (True, (4,), 39, 39)
    episodes = tasks.episodes(refs(30), 0)
    support = (episodes.support_y >= 0).sum(1)
    rows = support + (episodes.query_y >= 0).sum(1)
    assert (int(support.min()), int(support.max())) == (10, 19)
    assert int(rows.min()) >= 30
    assert int(rows.max()) <= 40
    assert (episodes.support_x[episodes.support_y < 0] == 0).all()
    assert {int((one != 0).any(0).sum()) for one in episodes.support_x} == {1, 2, 3, 4}
    fixed = Prior(tabicl_like, classes=3, rows=40, features=4, support=12)
    assert (fixed.spec.support, fixed.spec.queries) == (12, 28)
    assert (fixed.episodes(refs(9), 0).support_y >= 0).all()


def test_every_class_is_in_a_support_set_of_ones_own_size():
    def rare(batch_size):
        y = torch.zeros(batch_size, 30)
        y[:, torch.randint(0, 30, (1,))] = 5
        return torch.randn(batch_size, 30, 2), y

    tasks = Prior(rare, classes=3, support=5)
    for episode in (tasks.episode(ref, 0) for ref in refs(40)):
        assert episode.support_y.unique().tolist() == [0, 1]  # numbered without gaps


def test_labels_are_permuted_per_task_where_that_is_asked_for():
    def ordered(batch_size):
        return torch.randn(batch_size, 12, 1), torch.arange(12).expand(batch_size, -1) % 3

    kept = Prior(ordered, classes=3, support=6, permute_labels=False)
    assert {tuple(kept.episode(ref, 0).support_y.tolist()) for ref in refs(20)} == {(0, 1, 2, 0, 1, 2)}
    drawn = {tuple(Prior(ordered, classes=3, support=6).episode(ref, 0).support_y.tolist()[:3]) for ref in refs(60)}
    assert drawn == set(itertools.permutations(range(3)))


def test_tasks_that_share_a_call():
    calls = []

    def counted(batch_size):
        calls.append(batch_size)
        return torch.randn(batch_size, 20, 2), torch.randint(0, 2, (batch_size, 20))

    tasks = Prior(counted, classes=2, support=12, tables_per_call=4, permute_labels=False)
    whole = tasks.episodes(refs(10), 0)
    assert calls.count(4) == 3
    for start, stop in ((0, 3), (3, 7), (7, 10), (9, 10)):  # a chunk may begin and end anywhere
        part = tasks.episodes(refs(10)[start:stop], 0)
        assert same(part, whole.map(lambda one, a=start, b=stop: one[a:b]))
    assert len({part.numpy().tobytes() for part in whole.support_x}) == 10
    tasks.check()


def test_a_factory_makes_the_generator_once_in_each_process():
    made = []

    class Generator:
        def __init__(self):
            self.shift = torch.randn(())  # the same in every process
            self.unsendable = (i for i in ())
            made.append(float(self.shift))

        def __call__(self, batch_size):
            return self.shift + torch.randn(batch_size, 20, 2), torch.randint(0, 2, (batch_size, 20))

    tasks = Prior(Generator, factory=True, classes=2, support=12)
    tasks.check()
    tasks.episodes(refs(4), 0)
    assert len(made) == 1
    torch.manual_seed(11)
    again = Prior(Generator, factory=True, classes=2, support=12)
    assert same(again.episodes(refs(4), 0), tasks.episodes(refs(4), 0))
    assert made == [made[0]] * 2


def test_the_fingerprint_follows_source_object_and_version():
    class Made:
        def __init__(self, size):
            self.size = size

        def __repr__(self):
            return f"Made({self.size})"

        def get_batch(self, batch_size):
            return pfn(batch_size, self.size)

    found = [
        Prior(pfn, classes=2, support=9),
        Prior(pfn, classes=2, support=9, version="2"),
        Prior(tabicl_like, classes=3, support=9),
        Prior(functools.partial(pfn, seq_len=40), classes=2, support=9),
        Prior(functools.partial(pfn, seq_len=50), classes=2, support=9),
        Prior(Made(20).get_batch, classes=2, support=9),
        Prior(Made(30).get_batch, classes=2, support=9),
        Prior(pfn, lambda drawn: (drawn[0].transpose(0, 1), drawn[1].T), classes=2, support=9),
    ]
    assert len({one.fingerprint for one in found}) == len(found)
    assert found[5].fingerprint == Prior(Made(20).get_batch, classes=2, support=9).fingerprint
    assert found[5].describe()["name"].endswith("Made.get_batch")
    assert found[0].describe() == {"name": "pfn", "source": "generator pfn"}


# -- generators that are no functions of the global ones


OWN = np.random.default_rng(0)


def with_its_own(batch_size):
    return OWN.normal(size=(batch_size, 20, 2)), OWN.integers(0, 2, (batch_size, 20))


def from_entropy(batch_size):
    x = np.random.default_rng().normal(size=(batch_size, 20, 2))
    return x, (x[..., 0] > 0).astype(int)


def from_the_clock(batch_size):
    torch.manual_seed(time.time_ns() % 2**32)
    return torch.randn(batch_size, 20, 2), torch.randint(0, 2, (batch_size, 20))


def seeds_itself(batch_size):
    torch.manual_seed(0)
    return torch.randn(batch_size, 20, 2), torch.randint(0, 2, (batch_size, 20))


COUNT = itertools.count()


def counts(batch_size):
    return torch.randn(batch_size, 20, 2) + next(COUNT), torch.randint(0, 2, (batch_size, 20))


@pytest.mark.parametrize("broken", [with_its_own, from_entropy, from_the_clock, counts])
def test_a_generator_that_draws_from_elsewhere_is_named(broken):
    with pytest.raises(TaskContractError, match=rf"{broken.__name__} made another table when the same task was drawn"):
        Prior(broken, classes=2, support=10, permute_labels=False).check()


def test_a_generator_that_seeds_itself_is_named():
    with pytest.raises(TaskContractError, match=r"seeds_itself made the same table for two tasks.*index=0"):
        Prior(seeds_itself, classes=2, support=10, permute_labels=False).check()


def test_seeding_is_undone_when_the_generator_fails():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_num_threads()

    def draw():
        with seeded_globals(np.random.default_rng(0)):
            raise ZeroDivisionError(random.random(), np.random.rand(), torch.rand(3))

    with pytest.raises(ZeroDivisionError):
        draw()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert (random.getstate(), torch.get_num_threads()) == before[2:]


# -- forms


@dataclass
class Batch:
    """As in PFNs."""

    x: torch.Tensor
    y: torch.Tensor
    target_y: torch.Tensor
    single_eval_pos: int | None = None


@given(tables=st.integers(1, 6), rows=st.integers(7, 20), columns=st.integers(1, 5), split=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_every_form_gives_the_same_tables(tables, rows, columns, split):
    generator = torch.Generator().manual_seed(tables * rows + columns)
    x = torch.randn(tables, rows, columns, generator=generator)
    y, target = (torch.randint(0, 3, (tables, rows), generator=generator).float() for _ in range(2))
    sizes = torch.full((tables,), columns), torch.full((tables,), rows), torch.full((tables,), split)
    forms = {
        "PFNs": ((x.transpose(0, 1), y.T, target.T), True, None),
        "PFNs, a Batch": (Batch(x.transpose(0, 1), y.T, target.T, split), True, split),
        "PFNs, tables first": (Batch(x, y, target), True, None),
        "TabICL": ((x, y, *sizes), False, split),
        "TFM-Playground": ({"x": x, "y": y, "target_y": target, "train_test_split_index": split}, True, split),
        "plain": ((x, y, split), False, split),
        "numpy": ((x.numpy(), y.numpy()), False, None),
    }
    for name, (returned, has_target, expected) in forms.items():
        found = read_tables(returned, tables)
        assert len(found) == tables, name
        for i, table in enumerate(found):
            assert torch.equal(table.x, x[i]), name
            assert torch.equal(table.y, y[i]), name
            assert torch.equal(table.target, target[i] if has_target else y[i]), name
            assert table.split == expected, name


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tables_of_their_own_lengths():
    xs, ys = [torch.randn(n, 2) for n in (5, 7)], [torch.zeros(n) for n in (5, 7)]
    x, y = (torch.nested.nested_tensor(parts) for parts in (xs, ys))
    sizes = torch.tensor([2, 2]), torch.tensor([5, 7]), torch.tensor([3, 4])
    found = read_tables((x, y, *sizes), 2)
    assert [(len(table.x), table.split) for table in found] == [(5, 3), (7, 4)]
    assert torch.equal(found[1].x, xs[1])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(3), "returned a Tensor; expected .*Give an adapter"),
        ((1, 2, 3, 4), "returned a tuple of 4"),
        ({"features": 1}, "dictionary of features"),
        ((torch.zeros(2, 9, 3), torch.zeros(9)), r"x of shape \[2, 9, 3\] and y of shape \[9\]"),
        ((torch.zeros(3, 9, 3), torch.zeros(3, 9)), r"asked for 2 tables.*one axis of 2.*as many tables as its first"),
        ((torch.zeros(2, 2, 3), torch.zeros(2, 2)), "another number than that of the rows"),
        ((torch.zeros(2, 9, 3), torch.zeros(2, 9), np.zeros(3)), "numbers of rows for 2 tables"),
    ],
)
def test_other_forms_are_refused(returned, message):
    with pytest.raises(TaskContractError, match=message):
        read_tables(returned, 2)


def test_an_adapter_takes_any_form():
    def mine(batch_size):
        return {"tables": [(torch.randn(20, 2), torch.randint(0, 2, (20,))) for _ in range(batch_size)]}

    def adapter(returned):
        x, y = (torch.stack(parts) for parts in zip(*returned["tables"], strict=True))
        return x, y, 15

    tasks = Prior(mine, adapter, classes=2)
    tasks.check()
    assert (tasks.spec.support, tasks.spec.queries) == (15, 5)


# -- what does not fit


def table(x=None, y=None, split=10, classes=2):
    def made(batch_size):
        inputs = torch.randn(batch_size, 20, 2) if x is None else x(batch_size)
        return inputs, torch.randint(0, classes, inputs.shape[:2]) if y is None else y(inputs), split

    return made


@pytest.mark.parametrize(
    ("get_batch", "given", "error", "message"),
    [
        (table(), {}, TaskContractError, "target='class' and classes=None.*Set classes=10"),
        (table(), {"target": "number", "classes": 3}, TaskContractError, "none for numbers"),
        (table(), {"target": "number", "rows": 30}, TaskContractError, "only labels can mark such rows"),
        (table(), {"target": "text"}, ConfigError, "target"),
        (table(), {"classes": 1}, ConfigError, "classes"),
        (table(classes=9), {"classes": 3}, TaskContractError, r"expected at most classes=3. Set tasks.classes=\d"),
        (table(split=None), {"classes": 2}, TaskContractError, "None are the support set.*Set tasks.support"),
        (table(split=20), {"classes": 2}, TaskContractError, "20 are the support set"),
        (table(), {"classes": 2, "features": 1}, TaskContractError, "2 features; expected at most tasks.features=1"),
        (table(), {"classes": 2, "rows": 15}, TaskContractError, "20 rows; expected at most tasks.rows=15"),
        (table(y=lambda x: x[..., 0]), {"classes": 2}, TaskContractError, "no whole numbers.*tasks.target=number"),
        (table(y=lambda x: -torch.ones(x.shape[:2])), {"classes": 2}, TaskContractError, "20 rows of negative labels"),
        (table(x=lambda b: torch.full((b, 20, 2), torch.nan)), {"classes": 2}, TaskContractError, "NaN or infinite"),
        (
            pfn,
            {"classes": 2, "arguments": {"seq_len": "ten"}},
            TaskContractError,
            r"pfn fails \(.*test_prior.py, line \d+\), TypeError: randn.*Fix that line or the arguments",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_worker_starts(get_batch, given, error, message):
    with pytest.raises(error, match=message):
        Prior(get_batch, **given).check()


def test_tables_of_several_shapes_in_a_step_are_named_with_the_fix():
    def wild(batch_size):
        rows = int(torch.randint(10, 60, (1,)))
        return torch.randn(batch_size, rows, 2), torch.randint(0, 2, (batch_size, rows)), 5

    with pytest.raises(TaskContractError, match=r"other shapes in one step: 5 \+ \d+ rows of 2 features.*tasks.rows"):
        Prior(wild, classes=2).check()
    Prior(wild, classes=2, rows=59).check()


def test_rows_of_negative_labels_are_left_out_where_tables_may_differ():
    def some(batch_size):
        y = torch.randint(0, 2, (batch_size, 20))
        y[:, ::5] = -100
        return torch.arange(20.0).expand(batch_size, -1)[..., None] + torch.rand(batch_size, 1, 1) / 2, y, 10

    tasks = Prior(some, classes=2, rows=20)
    tasks.check()
    episode = tasks.episode(refs(1)[0], 0)
    kept = episode.support_y >= 0
    assert int(kept.sum()) == 8
    assert episode.support_x[kept].floor().flatten().tolist() == [1, 2, 3, 4, 6, 7, 8, 9]


def test_numbers():
    def line(batch_size):
        x = torch.randn(batch_size, 20, 2)
        return x, x.sum(-1) + torch.randn(batch_size, 1)

    tasks = Prior(line, target="number", support=(5, 15), features=4)
    tasks.check()
    spec = tasks.spec
    assert (spec.kind, spec.outputs, spec.input_shape, spec.padded) == ("regression", 1, (4,), False)
    assert tasks.episodes(refs(2), 0).query_y.shape[2] == 1


def test_training_on_a_prior_is_the_same_twice(tmp_path):
    experiment = Experiment(
        learner=InContext(Reader(3, 2, 2)),
        tasks=Prior(pfn, classes=2, support=(10, 20), tables_per_call=2),
        outer=Outer(iterations=3, meta_batch_size=4, lr=0.1),
        evaluation=Evaluation(every=0, test_tasks=4),
        runtime=Runtime(chunk_size=2),
        name="prior",
    )
    found = []
    for name in ("one", "other"):
        torch.manual_seed(len(found))
        found.append(meta_train(experiment, run_dir=tmp_path / name, place=Place(LocalBackend(), tracking=False)))
    assert found[0].params_sha256 == found[1].params_sha256


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("each", [1, 4])
def test_the_generator_of_tabicl(each):
    pytest.importorskip("tabicl", reason="needs the extra tabicl")
    pytest.importorskip("xgboost", reason="tabicl.prior imports xgboost")
    from tabicl.prior import PriorDataset

    made = PriorDataset(max_features=6, max_classes=3, max_seq_len=60, prior_type="mlp_scm", n_jobs=1)
    tasks = Prior(made.get_batch, classes=3, support=(20, 40), features=6, tables_per_call=each)
    tasks.check()
    sent = pickle.loads(pickle.dumps(tasks))
    assert sent.fingerprint == tasks.fingerprint
    assert same(sent.episodes(refs(5, step=2), 1), tasks.episodes(refs(5, step=2), 1))
    assert tasks.spec.padded
    again = PriorDataset(max_features=6, max_classes=3, max_seq_len=60, prior_type="mlp_scm", n_jobs=1)
    assert not np.array_equal(made.get_batch(1)[0], again.get_batch(1)[0])  # alone it is no function of anything
