"""Siamese networks: the losses of the papers by hand, the pairs, and what happens at distance 0."""

import math

import pytest
import torch
from torch import nn

from distmeta import Experiment, FewShot, Outer, Siamese, conv4, mlp
from distmeta.errors import ConfigError, LearnerContractError, ModelContractError
from distmeta.learners.engine_errors import in_float64
from distmeta.learners.probe import probe
from distmeta.seeding import rng
from distmeta.types import Episode, TaskSpec

WAYS, SHOTS, QUERIES, DIM = 4, 3, 2, 5
SPEC = TaskSpec((DIM,), WAYS, "classification", WAYS * SHOTS, WAYS * QUERIES)


def episode(ways=WAYS, shots=SHOTS, queries=QUERIES, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, q = (torch.randn(ways * n, DIM, dtype=torch.float64, generator=random) for n in (shots, queries))
    y = torch.arange(ways)
    return Episode(x, y.repeat_interleave(shots), q, y.repeat_interleave(queries), ways=ways)


def identity():
    """f(x) = x, with a parameter to train."""
    layer = nn.Linear(DIM, DIM, bias=False).double()
    nn.init.eye_(layer.weight)
    return layer


def build(**settings):
    return Siamese(identity(), **settings).bind(SPEC)


def start(learner):
    return learner.init_meta_params(rng(0, "init"))


def every_pair(one):
    for i, (x, y) in enumerate(zip(one.query_x, one.query_y, strict=True)):
        for j, (z, w) in enumerate(zip(one.support_x, one.support_y, strict=True)):
            yield i, j, x - z, bool(y == w)


# -- the equations -----------------------------------------------------------------------------------------------------


def test_contrastive_loss_by_hand():
    margin, one, losses, right = 3.0, episode(), {True: [], False: []}, {True: [], False: []}
    for _, _, difference, same in every_pair(one):
        d = math.sqrt(sum(float(v) ** 2 for v in difference))
        losses[same].append(d**2 if same else max(0.0, margin - d) ** 2)
        right[same].append((d < margin / 2) == same)
    learner = build(margin=margin)
    loss, metrics = learner.meta_loss(start(learner), one)
    assert 0 < sum(value == 0 for value in losses[False]) < len(losses[False]), "on both sides of the hinge"
    assert float(loss) == pytest.approx(sum(sum(v) / len(v) for v in losses.values()) / 2, rel=1e-12)
    expected = sum(sum(v) / len(v) for v in right.values()) / 2
    assert float(metrics["accuracy_verification"]) == pytest.approx(expected, rel=1e-12)


def test_kochs_probability_by_hand():
    one, learner = episode(), build(form="koch")
    params = {
        **start(learner),
        "pair/alpha": torch.linspace(-1, 0.3, DIM).double(),
        "pair/b": torch.tensor(0.4, dtype=torch.float64),
    }
    losses, right, odds = {True: [], False: []}, {True: [], False: []}, {}
    for i, j, difference, same in every_pair(one):
        z = sum(float(a) * abs(float(v)) for a, v in zip(params["pair/alpha"], difference, strict=True)) + 0.4
        p = 1 / (1 + math.exp(-z))
        losses[same].append(-math.log(p if same else 1 - p))
        right[same].append((p > 0.5) == same)
        odds[i, j] = math.log(p / (1 - p))
    loss, metrics = learner.meta_loss(params, one)
    assert float(loss) == pytest.approx(sum(sum(v) / len(v) for v in losses.values()) / 2, rel=1e-12)
    expected = sum(sum(v) / len(v) for v in right.values()) / 2
    assert float(metrics["accuracy_verification"]) == pytest.approx(expected, rel=1e-12)
    logits = learner.query_logits(params, one)
    for i in range(len(one.query_y)):
        for k in range(WAYS):
            members = [odds[i, j] for j in range(WAYS * SHOTS) if one.support_y[j] == k]
            assert float(logits[i, k]) == pytest.approx(sum(members) / SHOTS, rel=1e-10)


def test_the_class_score_is_the_mean_distance():
    one, learner = episode(), build()
    d = torch.cdist(one.query_x, one.support_x)
    expected = -torch.stack([d[:, one.support_y == k].mean(1) for k in range(WAYS)], 1)
    torch.testing.assert_close(learner.query_logits(start(learner), one), expected, rtol=1e-10, atol=1e-12)


# -- distance 0 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["all", "one"])
@pytest.mark.parametrize("form", ["contrastive", "koch"])
def test_equal_inputs_have_distance_zero_and_a_finite_gradient(form, pairs):
    one = episode(shots=1, queries=1)
    twins = Episode(one.support_x, one.support_y, one.support_x.clone(), one.support_y, ways=WAYS)
    learner = build(form=form, pairs=pairs, vectorise="loop")
    params = start(learner)
    logits = learner.query_logits(params, twins)
    nothing = params["pair/b"] if form == "koch" else 0  # the log-odds of no difference, or minus distance 0
    assert (logits.diagonal() == nothing).all()
    assert (logits[~torch.eye(WAYS, dtype=torch.bool)] < nothing).all()
    assert torch.equal(logits.argmax(1), one.support_y)
    gradient = learner.meta_gradient(params, Episode(*(part[None] for part in twins), ways=WAYS)).gradient
    assert all(bool(torch.isfinite(part).all()) for part in gradient.values())
    same = Episode(*(part.clone() for part in twins), ways=WAYS)
    same.support_x[:] = same.query_x[:] = one.support_x[0]  # two classes of one and the same picture
    gradient = learner.meta_gradient(params, Episode(*(part[None] for part in same), ways=WAYS)).gradient
    assert all(bool(torch.isfinite(part).all()) for part in gradient.values())


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("ways", "shots", "queries"), [(2, 1, 1), (5, 1, 5), (4, 3, 2), (3, 2, 7)])
def test_one_pair_of_each_kind_per_query(ways, shots, queries, seed):
    one = episode(ways, shots, queries, seed)
    order = torch.randperm(ways * shots, generator=torch.Generator().manual_seed(seed))
    one = Episode(one.support_x[order], one.support_y[order], one.query_x, one.query_y, ways=ways)
    pairs = build(pairs="one").pairs_of(one, one.support_x)
    is_same = one.query_y[:, None] == one.support_y
    for weights, kind in ((pairs.same, is_same), (pairs.different, ~is_same)):
        assert ((weights > 0).sum(1) == 1).all(), "one example for every query"
        assert not (weights[~kind] != 0).any()
        assert float(weights.sum()) == pytest.approx(1)
    if queries >= ways - 1:  # then no class is compared with one neighbour only
        for k in range(ways):
            others = {int(one.support_y[j]) for j in (pairs.different[one.query_y == k] > 0).nonzero()[:, 1]}
            assert others == set(range(ways)) - {k}
    assert torch.equal(pairs.same, build(pairs="one").pairs_of(one, one.support_x).same)


def test_all_pairs_are_balanced():
    one = episode()
    pairs = build().pairs_of(one, one.support_x)
    assert ((pairs.same > 0) == (one.query_y[:, None] == one.support_y)).all()
    assert ((pairs.different > 0) != (pairs.same > 0)).all()
    assert float(pairs.same.sum()) == pytest.approx(1)
    assert float(pairs.different.sum()) == pytest.approx(1)


@pytest.mark.parametrize("form", ["contrastive", "koch"])
def test_the_names_of_the_classes_do_not_matter(form):
    one, learner = episode(), build(form=form)
    params, new = start(learner), torch.tensor([2, 0, 3, 1])
    renamed = Episode(one.support_x, new[one.support_y], one.query_x, new[one.query_y], ways=WAYS)
    torch.testing.assert_close(learner.query_logits(params, renamed)[:, new], learner.query_logits(params, one))
    for found, expected in zip(learner.meta_loss(params, renamed), learner.meta_loss(params, one), strict=True):
        torch.testing.assert_close(found, expected)


# -- training and wrong use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["contrastive", "koch"])
def test_more_ways_in_training_than_at_test_and_adapt_afterwards(form, digits_dir, tmp_path):
    import distmeta

    learner = Siamese(mlp((16,), head=False), form=form, margin=2.0)
    tasks = FewShot(digits_dir, ways=3, shots=2, queries=2, train_ways=5, train_queries=3)
    experiment = Experiment(
        learner=learner,
        tasks=tasks,
        outer=Outer(iterations=60, meta_batch_size=4, lr=0.01),
        evaluation=distmeta.Evaluation(every=30, test_tasks=40, validation_tasks=10),
    )
    result = distmeta.meta_train(experiment, run_dir=tmp_path / "run")
    assert result.test.mean("accuracy") > 0.6
    assert result.test.mean("accuracy_verification") > 0.55
    one = tasks.take(1)[0].episode
    learner.train(tasks, iterations=3, meta_batch_size=2, run_dir=tmp_path / "trained")
    fast = learner.adapt(one.support_x, one.support_y)
    assert fast.predict_proba(one.query_x).shape == (6, 3)
    trained = learner.meta_params
    assert ("pair/alpha" in trained) == (form == "koch")
    if form == "koch":
        assert trained["pair/alpha"].std() > 0, "all equal at the start"
        again = in_float64(learner).starting_params(rng(0, "init"))  # training goes on from what was learned
        assert torch.equal(again["pair/alpha"], trained["pair/alpha"].double())


def test_koch_needs_to_know_the_features_first():
    with pytest.raises(LearnerContractError, match=r"one weight per feature.*bind\(tasks.spec\)"):
        Siamese(identity(), form="koch").init_meta_params(rng(0, "init"))
    with pytest.raises(ModelContractError, match=r"could not read the number of features.*conv4\(head=False\)"):
        Siamese(nn.Linear(DIM + 1, 2), form="koch").bind(SPEC)


def test_one_class_has_no_pairs():
    learner = build()
    with pytest.raises(LearnerContractError, match=r"the task has 1 class; expected at least 2. Set tasks.ways=2"):
        learner.meta_loss(start(learner), episode(ways=1))


@pytest.mark.parametrize("form", ["contrastive", "koch"])
def test_a_classifier_is_refused_with_the_fix(form):
    spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    with pytest.raises(ModelContractError, match=r"Siamese needs an encoder.*conv4\(head=False\)"):
        probe(Siamese(conv4(4), form=form).bind(spec), spec, Episode(x, y, x, y))


@pytest.mark.parametrize("settings", [{"form": "triplet"}, {"margin": 0}, {"pairs": "hard"}, {"margn": 1}])
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match="Siamese"):
        Siamese(identity(), **settings)


def test_the_picture_shows_each_query_beside_its_nearest_support_image():
    learner = Siamese(nn.Flatten(), vectorise="loop")
    support = torch.eye(3).reshape(1, 3, 1, 1, 3)
    episodes = Episode(support, torch.arange(3)[None], support.flip(1), torch.tensor([[2, 0, 0]]), ways=3)
    gallery = learner.pictures({"unused": torch.zeros(1)}, episodes)["nearest"]
    assert torch.equal(gallery.images[:, 0], gallery.images[:, 1])  # equal images are nearest
    assert list(gallery.right) == [True, False, True]
    assert gallery.captions[0] == ("", "d = 0.00")
