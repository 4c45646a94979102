"""A model adapted to one task: its predictions depend on nothing but the support set and their own input."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distmeta import MAML, FewShot, MatchingNet, MetaLearner, MetaModule, ProtoNet, Reptile, Siamese, conv4, mlp
from distmeta.errors import LearnerContractError
from distmeta.learners import find_learners
from distmeta.learners.fast_model import FastModel
from distmeta.learners.functional import task_gradient
from distmeta.seeding import rng
from distmeta.types import Episode, TaskSpec
from set_models import reader

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 4, 20
SPEC = TaskSpec((1, SIDE, SIDE), WAYS, "classification", WAYS * SHOTS, WAYS * QUERIES)


class NearestMean(MetaLearner):
    """A user's algorithm with two forward passes, so that even the queries' batch is its own."""

    def query_logits(self, params, episode):
        support, query = self.forward(params, episode.support_x), self.forward(params, episode.query_x)
        members = F.one_hot(episode.support_y, episode.ways).to(support)
        means = members.T @ support / members.sum(0)[:, None]
        return -(query[:, None] - means).square().sum(-1)


VARIANTS = {
    **{name: (kind, {}) for name, kind in find_learners().items() if kind.model_kind != "sequence"},
    "FOMAML": (MAML, {"first_order": True}),
    "ANIL": (MAML, {"adapt": "head"}),
    "Reptile with sgd": (Reptile, {"inner_optimizer": "sgd", "inner_batch": 4}),
    "Siamese koch": (Siamese, {"form": "koch"}),
    "MatchingNet euclidean": (MatchingNet, {"distance": "euclidean"}),
    "MatchingNet full context": (MatchingNet, {"full_context": True, "features": 8}),
    "ProtoNet cosine": (ProtoNet, {"distance": "cosine"}),
    "NearestMean": (NearestMean, {}),
}
every_learner = pytest.mark.parametrize("name", VARIANTS)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name, norm="batch", **more):
    kind, values = VARIANTS[name]
    model = reader() if kind.model_kind == "set" else conv4(8, norm=norm, head=kind.model_kind == "classifier")
    learner = kind(model, **values, **more).bind(SPEC, 0)
    learner.load(learner.init_meta_params(rng(0, "init")))
    return learner


def images(seed=0):
    """Support and query images whose classes differ, and class positions."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.rand(WAYS, 1, SIDE, SIDE, generator=random)
    support_y, query_y = torch.arange(WAYS).repeat_interleave(SHOTS), torch.arange(WAYS).repeat_interleave(QUERIES)
    noise = torch.rand(len(support_y) + len(query_y), 1, SIDE, SIDE, generator=random)
    x = centres[torch.cat([support_y, query_y])] + 0.7 * noise
    return x[: len(support_y)], support_y, x[len(support_y) :], query_y


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp_min(1))


# -- one picture at a time ---------------------------------------------------------------------------------------------


@every_learner
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("vectorise", ["auto", "loop"])
def test_one_at_a_time_in_one_batch_and_in_any_order_is_the_same(name, norm, vectorise):
    support_x, support_y, x, y = images()
    fast = build(name, norm, vectorise=vectorise).adapt(support_x, support_y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    whole = fast.logits(x), fast.predict_proba(x), fast.predict(x)
    for rows in (*([i] for i in range(len(x))), order, (y == 1).nonzero()[:, 0]):
        assert relative(fast.logits(x[rows]), whole[0][rows]) < 1e-6
        assert float((fast.predict_proba(x[rows]) - whole[1][rows]).abs().max()) < 1e-6
        assert torch.equal(fast.predict(x[rows]), whole[2][rows])
    assert fast.evaluate(x[order], y[order]) == pytest.approx(fast.evaluate(x, y), abs=1e-6)
    losses = [fast.evaluate(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert sum(losses) / len(losses) == pytest.approx(fast.evaluate(x, y), rel=1e-5)
    assert fast.accuracy(x[order], y[order]) == fast.accuracy(x, y)


@every_learner
def test_predictions_are_those_of_the_non_transductive_evaluation(name):
    support_x, support_y, x, y = images()
    learner = build(name, vectorise="loop").for_evaluation()
    episode = Episode(support_x, support_y, x, y, ways=WAYS)
    fast = learner.adapt(support_x, support_y)
    learner.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fast.logits(x), learner.query_logits_alone(learner.meta_params, episode))
    found = learner.evaluate(learner.meta_params, episode.map(lambda part: part[None]))
    assert fast.accuracy(x, y) == pytest.approx(float(found["accuracy_non_transductive"]))


@pytest.mark.parametrize("name", [name for name, (kind, _) in VARIANTS.items() if kind.model_kind != "set"])
def test_a_transductive_model_is_asked_for_and_differs(name):
    support_x, support_y, x, y = images()
    learner = build(name)
    alone, together = learner.adapt(support_x, support_y), learner.adapt(support_x, support_y, transductive=True)
    assert relative(together.logits(x), alone.logits(x)) > 1e-3
    assert relative(together.logits(x[:5]), together.logits(x)[:5]) > 1e-3
    episode = Episode(support_x, support_y, x, y, ways=WAYS)
    evaluator = learner.with_config(vectorise="loop").for_evaluation()
    with torch.no_grad():
        torch.testing.assert_close(together.logits(x), evaluator.query_logits(learner.meta_params, episode))


def test_a_model_of_the_user_predicts_one_image_at_a_time_too():
    class MyModel(MetaModule, nn.Sequential):
        pass

    model = MyModel(*conv4(8)(SPEC).children())
    MAML(model, inner_lr=0.1)
    support_x, support_y, x, y = images()
    model.adapt(support_x, support_y)
    one_by_one = torch.cat([model.predict_proba(x[i : i + 1]) for i in range(len(x))])
    assert float((one_by_one - model.predict_proba(x)).abs().max()) < 1e-6
    assert torch.equal(torch.cat([model.predict(x[i : i + 1]) for i in range(len(x))]), model.predict(x))
    losses = [model.evaluate(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert sum(losses) / len(losses) == pytest.approx(model.evaluate(x, y), rel=1e-5)
    together = model.adapt(support_x, support_y, transductive=True)
    assert relative(together.logits(x[:5]), together.logits(x)[:5]) > 1e-3


class Centred(nn.Module):
    """Batch statistics without a norm layer that could be found."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.layer(x)
        return hidden - hidden.mean(0)


@pytest.mark.parametrize("learner", [MAML, ProtoNet], ids=["MAML", "ProtoNet"])
def test_batch_statistics_are_found_where_no_norm_layer_shows_them(learner):
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    fast = learner(Centred()).adapt(x, y)
    one_by_one = torch.cat([fast.logits(row[None]) for row in 2 * x])
    assert relative(one_by_one, fast.logits(2 * x)) < 1e-6


class Reshaped(nn.Module):
    """A linear layer after a function of the whole batch."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x):
        return self.layer(self.function(x))


def min_max(x):
    low, high = x.amin(0), x.amax(0)
    return (x - low) / (high - low + 1e-3)


BATCH_FUNCTIONS = {
    "largest": lambda x: x / x.abs().max(),
    "min-max": min_max,
    "mean": lambda x: x - x.mean(0),
    "a little mean": lambda x: x + 6e-6 * x.mean(0),
    "neighbour": lambda x: x + x.roll(1, 0),
}


@pytest.mark.parametrize("function", BATCH_FUNCTIONS.values(), ids=BATCH_FUNCTIONS)
@pytest.mark.parametrize("examples", [1, 6])
@pytest.mark.parametrize("learner", [MAML, ProtoNet], ids=["MAML", "ProtoNet"])
def test_any_statistic_of_the_batch_is_found(learner, function, examples):
    """The largest value of the support set is the same with one of its members twice, and so was not noticed."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 4)[:examples], torch.tensor([0, 0, 1, 1, 2, 2])[:examples]
    fast = learner(Reshaped(function)).adapt(x, y)
    new = torch.cat([2 * torch.randn(6, 4), torch.full((1, 4), 40.0)])
    one_by_one = torch.cat([fast.logits(row[None]) for row in new])
    assert relative(one_by_one[:-1], fast.logits(new[:-1])) < 1e-6
    assert relative(one_by_one, fast.logits(new)) < 1e-6
    if learner is MAML:  # distances between features do not change where all are shifted by the same mean
        assert not fast.inputs_are_independent


def test_a_model_without_statistics_predicts_its_inputs_together():
    torch.manual_seed(0)
    for model, x in ((nn.Linear(4, 3), torch.randn(6, 4)), (nn.Linear(4, 3).double(), torch.randn(6, 4).double())):
        assert MAML(model).adapt(x, torch.tensor([0, 0, 1, 1, 2, 2])).inputs_are_independent


class Words(nn.Module):
    """Sums the vectors of four words, less a fraction of the batch's mean."""

    def __init__(self, share):
        super().__init__()
        self.table, self.share = nn.Embedding(9, 3), share

    def forward(self, x):
        hidden = self.table(x.long()).sum(1)
        return hidden - self.share * hidden.mean(0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_indices_stay_within_their_table_while_the_batch_is_probed(share, dtype):
    torch.manual_seed(0)
    x, y = torch.randint(9, (6, 4)).to(dtype), torch.tensor([0, 0, 1, 1, 2, 2])
    fast = MAML(Words(share)).adapt(x, y)
    assert fast.inputs_are_independent is (share == 0)
    new = torch.randint(9, (5, 4)).to(dtype)
    assert relative(torch.cat([fast.logits(row[None]) for row in new]), fast.logits(new)) < 1e-6
    assert not MAML(Words(0.0)).adapt(x[:1], y[:1]).inputs_are_independent


class Counted(nn.Module):
    """Counts its forward passes."""

    def __init__(self, norm):
        super().__init__()
        self.layers, self.passes = mlp((8,), norm=norm)(TaskSpec((4,), 3, "classification", 6, 6)), 0

    def forward(self, x):
        self.passes += 1
        return self.layers(x)


@pytest.mark.parametrize(("norm", "most"), [("none", 1), ("batch", 20)])
def test_the_inner_loop_runs_once_and_not_at_every_predict(norm, most):
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    model = Counted(norm)
    fast = MAML(model, inner_lr=0.1, inner_steps=50).adapt(x, y)
    assert 50 <= model.passes <= 52
    fast.predict(x)  # measures once how the inputs can be predicted
    before = model.passes
    fast.predict(x)
    assert model.passes - before <= most
    before = model.passes
    fast.predict(x[:1])
    assert model.passes - before == 1


class NoVmap(nn.Module):
    """A model that vmap cannot take, with batch statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x) * (1.0 if float(x.sum()) > -1e9 else 2.0)


def test_a_model_that_vmap_cannot_take_is_computed_in_a_loop():
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    fast = MAML(NoVmap()).adapt(x, y)
    assert torch.equal(torch.cat([fast.logits(row[None]) for row in x]), fast.logits(x))


# -- where and when the model is called --------------------------------------------------------------------------------


class Stepping(MetaLearner):
    """Takes its gradient step whenever it predicts, not once."""

    def query_logits(self, params, episode):
        def loss(point):
            return F.cross_entropy(self.forward(point, episode.support_x), episode.support_y)

        gradient, _ = task_gradient(loss, params)
        return self.forward({name: p - gradient[name] for name, p in params.items()}, episode.query_x)


@pytest.mark.parametrize(
    "learner",
    [lambda m: MAML(m, inner_lr=1.0, inner_steps=5), Stepping, ProtoNet],
    ids=["MAML", "Stepping", "ProtoNet"],
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_inference_mode_changes_nothing(learner, norm):
    """MAML took no step at all there, in silence."""
    torch.manual_seed(0)
    model = mlp((8,), norm=norm)(TaskSpec((4,), 3, "classification", 6, 6))
    x, y, new = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]), torch.randn(5, 4)
    fast = learner(model).adapt(x, y)
    with torch.inference_mode():
        inside = learner(model).adapt(x.clone(), y.clone())
        assert torch.equal(inside.logits(new.clone()), fast.logits(new))
        assert inside.accuracy(x, y) == fast.accuracy(x, y)
        made_inside = new.clone()
    assert torch.equal(inside.logits(made_inside), fast.logits(new))
    assert torch.equal(inside.predict(new), fast.predict(new))


@every_learner
def test_a_fast_model_owns_its_support_set_and_parameters(name):
    support_x, support_y, x, _ = images()
    learner = build(name)
    params = learner.meta_params
    fast = learner.adapt(support_x, support_y, params=params)
    before = fast.logits(x)
    for tensor in (support_x, support_y, *params.values()):
        tensor.zero_()
    assert torch.equal(fast.logits(x), before)


@every_learner
@pytest.mark.parametrize("training", [True, False])
def test_every_module_has_its_former_mode_afterwards(name, training):
    support_x, support_y, x, _ = images()
    learner = build(name)
    learner.model.train(training)
    frozen = next(learner.model.children())
    frozen.eval()
    before = [module.training for module in learner.model.modules()]
    fast = learner.adapt(support_x, support_y)
    assert [module.training for module in learner.model.modules()] == before
    fast.predict(x)
    with pytest.raises(LearnerContractError):
        fast.predict(x[0])
    assert [module.training for module in learner.model.modules()] == before


def test_no_inputs_give_no_outputs_of_the_outputs_own_type():
    x, y = torch.randint(9, (6, 4)), torch.tensor([0, 0, 1, 1, 2, 2])
    fast = MAML(Words(0.0)).adapt(x, y)
    assert fast.logits(x[:0]).dtype == fast.logits(x).dtype == torch.float32
    assert fast.predict_proba(x[:0]).shape == (0, 3)


def test_the_mean_of_no_examples_is_refused():
    support_x, support_y, x, y = images()
    fast = build("ProtoNet").adapt(support_x, support_y)
    for call in (fast.evaluate, fast.accuracy):
        with pytest.raises(LearnerContractError, match="There are 0 examples, whose mean is no number; expected at le"):
            call(x[:0], y[:0])


@every_learner
def test_inputs_of_another_type_or_place_are_refused(name):
    support_x, support_y, x, _ = images()
    fast = build(name).adapt(support_x, support_y)
    with pytest.raises(
        LearnerContractError,
        match=r"are float64 on cpu; expected float32 on cpu, .* Use x.to\(\"cpu\", torch.float32\)",
    ):
        fast.predict(x.double())
    with pytest.raises(LearnerContractError, match=r"are float32 on meta; expected float32 on cpu"):
        fast.predict(x.to("meta"))


@pytest.mark.filterwarnings("error")
def test_labels_may_be_a_column_of_a_table():
    support_x, support_y, x, y = images()
    fast = build("ProtoNet").adapt(support_x, torch.stack([support_y, support_y], 1)[:, 0])
    assert fast.accuracy(x, torch.stack([y, y], 1)[:, 1]) == fast.accuracy(x, y)


def test_labels_may_be_a_series_of_pandas():
    """Of a filtered frame: its index is not 0 to n - 1."""
    pd = pytest.importorskip("pandas")
    support_x, support_y, x, _y = images()
    frame = pd.DataFrame({"name": [f"class {label}" for label in support_y.tolist()]})
    frame.index = range(100, 100 + len(frame))
    learner = build("ProtoNet")
    found = learner.adapt(support_x, frame["name"]).predict(x)
    assert found.tolist() == learner.adapt(support_x, list(frame["name"])).predict(x).tolist()
    with pytest.raises(LearnerContractError, match=r"Labels are float64 of shape"):
        learner.adapt(support_x, pd.Series(support_y.double().numpy()))


def test_two_rows_show_the_number_of_outputs():
    seen = []

    class Sized(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    MAML(Sized(4, 3)).adapt(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert seen == [2, 6, 6]  # the inner step, and the statistics to be kept


# -- any labels --------------------------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(-(2**40), 2**40), min_size=WAYS, max_size=WAYS, unique=True)


@every_learner
@settings(max_examples=5, deadline=None)
@given(labels=LABELS, shuffled=st.randoms(use_true_random=False))
def test_labels_are_any_integers(name, labels, shuffled):
    support_x, support_y, x, y = images()
    learner = build(name, "group")
    named, known = torch.tensor(labels), torch.tensor(sorted(labels))
    rows = list(range(len(support_y)))
    shuffled.shuffle(rows)
    fast = learner.adapt(support_x[rows], named[support_y[rows]])
    assert torch.equal(fast.classes_, known)
    probabilities, logits = fast.predict_proba(x), fast.logits(x)
    assert probabilities.shape == logits.shape == (len(x), WAYS)
    assert bool(torch.isfinite(probabilities).all() and torch.isfinite(logits).all())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(x)))
    assert torch.equal(fast.predict(x), known[probabilities.argmax(1)])
    assert fast.accuracy(x, named[y]) == pytest.approx(float((fast.predict(x) == named[y]).double().mean()))
    expected = F.cross_entropy(logits, torch.searchsorted(known, named[y]))
    assert fast.evaluate(x, named[y]) == pytest.approx(float(expected))


@every_learner
def test_labels_with_gaps_give_what_positions_give(name):
    """7, 9 and 3 in place of 1, 2 and 0: before, ProtoNet gave NaN columns and an absent class won."""
    support_x, support_y, x, y = images()
    learner, gaps = build(name), torch.tensor([3, 7, 9])
    plain, named = learner.adapt(support_x, support_y), learner.adapt(support_x, gaps[support_y])
    assert torch.equal(named.logits(x), plain.logits(x))
    assert torch.equal(named.predict(x), gaps[plain.predict(x)])
    assert (named.evaluate(x, gaps[y]), named.accuracy(x, gaps[y])) == (plain.evaluate(x, y), plain.accuracy(x, y))


@every_learner
def test_fewer_classes_than_outputs_share_the_probability_among_them(name):
    support_x, support_y, x, _ = images()
    two = support_y != 1
    fast = build(name).adapt(support_x[two], 10 * support_y[two])
    assert fast.classes_.tolist() == [0, 20]
    assert fast.predict_proba(x).shape == (len(x), 2)
    torch.testing.assert_close(fast.predict_proba(x).sum(1), torch.ones(len(x)))
    assert set(fast.predict(x).tolist()) <= {0, 20}


@every_learner
@pytest.mark.parametrize(
    "values",
    [
        ["ant", "bee", "cat"],
        [2**70, -1, 3],
        [("a", 1), ("b", 2), ("b", 3)],
        [None, "x", 7],
        [True, False, "maybe"],
        list(np.array(["q", "r", "s"])),
        [frozenset("a"), frozenset("b"), frozenset("c")],
    ],
)
def test_labels_are_any_hashable_values_and_come_back_as_they_are(name, values):
    support_x, support_y, x, y = images()
    learner = build(name, "group")
    given = [values[place] for place in support_y]
    fast = learner.adapt(support_x, given)
    assert set(fast.classes_.tolist()) == set(values)
    found = fast.predict(x)
    assert isinstance(found, np.ndarray)
    assert found.shape == (len(x),)
    assert all(type(label) is type(values[0]) or label in values for label in found.tolist())
    order = [list(values).index(label) for label in fast.classes_.tolist()]
    plain = learner.adapt(support_x, torch.tensor([order.index(int(place)) for place in support_y]))
    assert torch.equal(fast.logits(x), plain.logits(x))
    assert [order[place] for place in plain.predict(x)] == [values.index(label) for label in found.tolist()]
    truth = [values[place] for place in y]
    assert fast.accuracy(x, truth) == pytest.approx(
        np.mean([a == b for a, b in zip(found.tolist(), truth, strict=True)])
    )


def test_strings_are_sorted_and_values_without_an_order_keep_theirs():
    x = torch.eye(4)
    fast = MAML(nn.Linear(4, 4)).adapt(x, np.array(["dog", "cat", "ant", "dog"]))
    assert fast.classes_.tolist() == ["ant", "cat", "dog"]
    assert fast.predict(x).dtype.kind == "U"
    mixed = MAML(nn.Linear(4, 4)).adapt(x, ["dog", 3, None, "ant"])
    assert mixed.classes_.tolist() == ["dog", 3, None, "ant"]
    with pytest.raises(LearnerContractError, match="The labels emu are not in the support set, which has ant, cat,"):
        fast.accuracy(x[:1], ["emu"])


def test_values_of_an_array_are_a_regression():
    x = np.linspace(-1, 1, 6)[:, None]
    fast = MAML(nn.Linear(1, 1), inner_lr=0.1).adapt(torch.as_tensor(x).float(), x)
    assert fast.classes_ is None
    assert fast.predict(torch.zeros(2, 1)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_keep_their_type(dtype):
    support_x, support_y, x, y = images()
    fast = build("ProtoNet").adapt(support_x, (support_y * 30 + 5).to(dtype))
    assert (fast.classes_.dtype, fast.predict(x).dtype) == (dtype, dtype)
    assert fast.accuracy(x, (y * 30 + 5).to(dtype)) == fast.accuracy(x, y * 30 + 5)


@pytest.mark.parametrize("name", ["MAML", "Reptile", "MetaSGD", "MAMLPlusPlus"])
def test_more_classes_than_outputs_are_refused_before_the_inner_loop(name):
    model = Counted("none")
    x, y = torch.randn(8, 4), torch.tensor([7, 7, 9, 9, 3, 3, -1, -1])
    with pytest.raises(
        LearnerContractError,
        match=r"has 4 classes, -1, 3, 7, 9, but the model of \w+ has 3 outputs; .* tasks.ways=4, or use a metric",
    ):
        VARIANTS[name][0](model).adapt(x, y)
    assert model.passes == 1


@every_learner
def test_a_label_that_the_support_set_lacks_is_refused(name):
    support_x, support_y, x, _ = images()
    fast = build(name).adapt(support_x, support_y * 2)
    for call in (fast.evaluate, fast.accuracy):
        with pytest.raises(
            LearnerContractError, match=r"The labels 5, 1 are not in the support set, which has 0, 2, 4; expected only"
        ):
            call(x[:3], torch.tensor([0, 5, 1]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"Labels are float32 of shape \[2\]; expected integers \[n\], or floats \[n, D\]"),
        (np.array([0.0, 1.0]), r"Labels are float64 of shape \[2\]; expected integers \[n\], or floats \[n, D\]"),
        (torch.tensor([[0], [1]]), r"Labels are int64 of shape \[2, 1\]"),
        (torch.tensor([True, False]), "Labels are bool"),
        (torch.tensor([0, 1, 2]), "There are 2 inputs and 3 labels"),
        (["a", "b", "c"], "There are 2 inputs and 3 labels"),
        ("ab", "Labels are a str; expected a list of labels"),
        ({"a", "b"}, "Labels are a set; expected a list of labels"),
        ([0.5, 1.5], r"A label is 0.5, a float; expected a hashable value that is no float"),
        ([float("nan"), 1], r"A label is nan, a float"),
        ([["a"], ["b"]], r"A label is \['a'\], a list; expected a hashable value"),
        ([("a", ["b"]), 1], r"A label is \('a', \['b'\]\), a tuple; expected a hashable value"),
        (np.array([["a"], ["b"]]), r"Labels are <U1 of shape \[2, 1\]; expected one label per input"),
    ],
)
def test_what_cannot_be_labels_is_refused(labels, message):
    with pytest.raises(LearnerContractError, match=message):
        MAML(nn.Linear(4, 3)).adapt(torch.zeros(2, 4), labels)


@pytest.mark.parametrize("kind", [MAML, ProtoNet, Reptile])
def test_inputs_of_another_shape_than_the_training_s_are_named(kind, digits_dir, tmp_path):
    """A picture of 32 by 32 was torch's own "mat1 and mat2 shapes cannot be multiplied"."""
    learner = kind(nn.Sequential(nn.Flatten(), nn.Linear(64, 8 if kind is ProtoNet else 3)))
    x, y = torch.rand(3, 1, 9, 9), torch.tensor([0, 1, 2])
    match = rf"{kind.__name__} cannot compute with inputs of shape \[1, 9, 9\]: RuntimeError: mat1 and mat2"
    with pytest.raises(LearnerContractError, match=match + r".* expected inputs that the model takes"):
        learner.adapt(x, y).predict(x)
    learner.train(FewShot(digits_dir, ways=3), iterations=1, run_dir=tmp_path / "run")
    with pytest.raises(LearnerContractError, match=match + r".* expected \[1, 8, 8\], as in the training\. Scale"):
        learner.adapt(x, y).predict(x)


def test_an_empty_support_set_is_refused():
    with pytest.raises(LearnerContractError, match="The support set of MAML is empty"):
        MAML(nn.Linear(4, 3)).adapt(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_the_inputs_are_a_batch_such_as_the_support_set():
    support_x, support_y, x, _ = images()
    fast = build("MAML").adapt(support_x, support_y)
    with pytest.raises(
        LearnerContractError, match=r"have shape \[1, 20, 20\]; expected \[B, 1, 20, 20\].*give x\[None\]"
    ):
        fast.predict(x[0])
    with pytest.raises(LearnerContractError, match=r"have shape \[2, 1, 9, 9\]; expected \[B, 1, 20, 20\]"):
        fast.predict(torch.zeros(2, 1, 9, 9))
    with pytest.raises(LearnerContractError, match=r"The inputs are a ndarray; expected a tensor"):
        fast.predict(x.numpy())
    assert fast.predict(x[:0]).shape == (0,)
    assert fast.predict_proba(x[:0]).shape == (0, WAYS)


# -- regression --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MAML", "Reptile", "MetaSGD", "MAMLPlusPlus"])
def test_in_regression_predictions_are_values(name):
    x, y = torch.linspace(-1, 1, 6)[:, None], torch.linspace(0, 2, 6)[:, None]
    fast = VARIANTS[name][0](nn.Linear(1, 1), inner_lr=0.1).adapt(x, y)
    assert fast.classes_ is None
    assert torch.equal(fast.predict(x), fast.logits(x))
    assert fast.evaluate(x, y) == pytest.approx(float((fast.predict(x) - y).square().mean()))
    for call in (lambda: fast.predict_proba(x), lambda: fast.accuracy(x, y)):
        with pytest.raises(LearnerContractError, match=r"needs classes; the model is adapted to a regression task"):
            call()
    with pytest.raises(
        LearnerContractError, match=r"The targets are int64 of shape \[6\]; .* expected floats \[n, 1\]"
    ):
        fast.evaluate(x, torch.arange(6))
    with pytest.raises(LearnerContractError, match=r"float32 of shape \[6, 2\], but the model of \w+ has 1 outputs"):
        VARIANTS[name][0](nn.Linear(1, 1)).adapt(x, y.expand(6, 2))


def test_values_are_no_labels_of_a_classification_task():
    support_x, support_y, x, _ = images()
    fast = build("ProtoNet").adapt(support_x, support_y)
    with pytest.raises(LearnerContractError, match=r"expected labels \[n\] from 0, 1, 2"):
        fast.evaluate(x, torch.zeros(len(x), 1))
    with pytest.raises(LearnerContractError, match=r"compares with the examples of each class.*Use MAML or Reptile"):
        build("ProtoNet").adapt(support_x, torch.zeros(len(support_x), 1))


# -- as an object ------------------------------------------------------------------------------------------------------


@every_learner
@pytest.mark.parametrize("way", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_a_fast_model_can_be_copied_and_sent(name, way):
    support_x, support_y, x, _ = images()
    fast = build(name, "group").adapt(support_x, support_y)
    again = way(fast)
    assert isinstance(again, FastModel)
    assert torch.equal(again.logits(x), fast.logits(x))


def test_adapt_starts_from_other_meta_parameters_where_they_are_given():
    support_x, support_y, x, _ = images()
    one, other = build("MAML"), build("MAML")
    params = {name: p + 0.1 for name, p in one.meta_params.items()}
    other.load(params)
    before = one.meta_params
    assert torch.equal(
        one.adapt(support_x, support_y, params=params).logits(x), other.adapt(support_x, support_y).logits(x)
    )
    assert all(torch.equal(p, before[name]) for name, p in one.meta_params.items())
