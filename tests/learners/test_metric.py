"""Metric-based learners: their papers' equations, and what they take."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distmeta import (
    MAML,
    Evaluation,
    Experiment,
    FewShot,
    FunctionTasks,
    MAMLPlusPlus,
    MatchingNet,
    MetaSGD,
    Outer,
    ProtoNet,
    Reptile,
    Siamese,
    Sinusoids,
    conv4,
    meta_train,
    mlp,
)
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.functional import trainable
from distmeta.learners.metric import cosine, squared_distance
from distmeta.learners.probe import probe, require_equal_ways
from distmeta.seeding import rng
from distmeta.testing import check_model
from distmeta.types import Episode, TaskSpec

WAYS, SHOTS, DIM = 4, 3, 6


def episode(shots=SHOTS, ways=WAYS, seed=0):
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=random)
    x = torch.randn(ways * shots, DIM, dtype=torch.float64, generator=random)
    y = torch.arange(ways).repeat_interleave(shots)[order]
    query = torch.randn(7, DIM, dtype=torch.float64, generator=random)
    return Episode(x, y, query, torch.zeros(7, dtype=torch.long)).counted()


def encoder():
    torch.manual_seed(0)
    return nn.Linear(DIM, 5).double()


def test_protonet_is_a_linear_classifier():
    """Snell et al. 2017, equation 8: weights 2 c_k and biases -|c_k|^2, up to a constant per query."""
    learner, one = ProtoNet(encoder()), episode()
    logits = learner.query_logits(trainable(learner.model), one)
    features = learner.model(one.support_x)
    centres = torch.stack([features[one.support_y == k].mean(0) for k in range(WAYS)])
    linear = learner.model(one.query_x) @ (2 * centres).T - centres.square().sum(-1)
    torch.testing.assert_close(logits.log_softmax(-1), linear.log_softmax(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_matching_is_attention_over_the_labels(distance):
    """Vinyals et al. 2016, equation 1, by a loop."""
    learner, one = MatchingNet(encoder(), distance=distance, temperature=0.5), episode()
    found = learner.query_logits(trainable(learner.model), one).exp()
    g, f = learner.model(one.support_x), learner.model(one.query_x)
    for i in range(len(f)):
        kernel = [
            F.cosine_similarity(f[i], g[j], dim=0) if distance == "cosine" else -(f[i] - g[j]).square().sum()
            for j in range(len(g))
        ]
        attention = (torch.stack(kernel) / 0.5).softmax(0)
        expected = torch.stack([attention[one.support_y == k].sum() for k in range(WAYS)])
        torch.testing.assert_close(found[i], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_matching_without_temperature_is_the_nearest_neighbour(distance):
    learner, one = MatchingNet(encoder(), distance=distance, temperature=1e-4), episode(shots=1)
    g, f = learner.model(one.support_x), learner.model(one.query_x)
    nearest = cosine(f, g).argmax(-1) if distance == "cosine" else squared_distance(f, g).argmin(-1)
    found = learner.query_logits(trainable(learner.model), one)
    assert torch.equal(found.argmax(-1), one.support_y[nearest])
    torch.testing.assert_close(found.exp().max(-1).values, torch.ones(7, dtype=torch.float64), rtol=1e-6, atol=0)


def in_context(**settings):
    """A learner with full-context embeddings, and its meta-parameters."""
    learner = MatchingNet(encoder(), full_context=True, features=5, vectorise="loop", **settings)
    return learner, learner.init_meta_params(rng(0, "init"))


def test_full_context_sees_the_support_set_as_the_paper_says():
    """Vinyals et al. 2016, appendix A.1 and A.2: torch's own bidirectional LSTM, and the reader query by query."""
    learner, params = in_context(steps=3, temperature=0.5)
    one = episode()
    g, f = learner.model(one.support_x).detach(), learner.model(one.query_x).detach()
    both = nn.LSTM(5, 5, bidirectional=True).double()
    with torch.no_grad():
        for suffix, name in (("", "g-forwards"), ("_reverse", "g-backwards")):
            for of_torch, ours in (("weight_ih", "x"), ("weight_hh", "h"), ("bias_ih", "b")):
                into, forget, out, new = params[f"lstm/{name}/{ours}"].chunk(4)
                both.get_parameter(f"{of_torch}_l0{suffix}").copy_(torch.cat([into, forget, new, out]))  # torch's order
            both.get_parameter(f"bias_hh_l0{suffix}").zero_()
        steps, _ = both(g)
        g = steps[:, :5] + steps[:, 5:] + g
        x, h, b = (params[f"lstm/f/{part}"] for part in "xhb")
        for i, start in enumerate(f):
            state, cell = torch.zeros(2, 5, dtype=torch.float64)
            for _ in range(3):
                attention = torch.stack([state @ member for member in g]).softmax(0)
                read = sum(a * member for a, member in zip(attention, g, strict=True))
                gates = x @ start + h @ torch.cat([state, read]) + b
                into, forget, out, new = gates[:5].sigmoid(), gates[5:10].sigmoid(), gates[10:15].sigmoid(), gates[15:]
                cell = forget * cell + into * new.tanh()
                state = out * cell.tanh() + start
            f[i] = state
    attention = (F.normalize(f, dim=-1) @ F.normalize(g, dim=-1).T / 0.5).softmax(-1)
    expected = attention @ F.one_hot(one.support_y, WAYS).double()
    torch.testing.assert_close(learner.query_logits(params, one).exp(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [ProtoNet, MatchingNet, Siamese])
def test_a_query_alone_shares_its_batch_with_the_support_set_and_nothing_else(kind):
    batches = []

    class Recording(nn.Sequential):
        def forward(self, x):
            batches.append(x)
            return super().forward(x)

    model = Recording(nn.Linear(DIM, 5), nn.BatchNorm1d(5, track_running_stats=False)).double()
    learner, one = kind(model, vectorise="loop"), episode()
    alone = learner.query_logits_alone(trainable(model), one)
    assert torch.equal(batches[0], one.support_x)  # whose statistics are kept
    assert len(batches) == 1 + len(one.query_x)
    for batch, query in zip(batches[1:], one.query_x, strict=True):
        assert torch.equal(batch, torch.cat([one.support_x, query[None]]))
    together = learner.query_logits(trainable(model), one)
    assert alone.shape == together.shape
    assert not torch.allclose(alone, together)  # batch statistics: the company matters


@pytest.mark.parametrize("kind", [ProtoNet, MatchingNet, Siamese])
def test_a_query_alone_is_normalised_by_the_support_set(kind):
    model = nn.Sequential(nn.Linear(DIM, 5), nn.BatchNorm1d(5, track_running_stats=False)).double()
    one = episode()
    hidden = model[0](one.support_x)
    fixed = nn.Sequential(nn.Linear(DIM, 5), nn.BatchNorm1d(5)).double().eval()
    fixed.load_state_dict(model.state_dict(), strict=False)
    fixed[1].running_mean, fixed[1].running_var = hidden.mean(0).detach(), hidden.var(0, correction=0).detach()
    found = kind(model).query_logits_alone(trainable(model), one)
    with torch.no_grad():
        expected = kind(fixed).query_logits(trainable(fixed), one)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_full_context_depends_on_the_other_examples_and_on_their_order():
    learner, params = in_context()
    one = episode()
    far = one.support_x.clone()
    far[-1] += 3
    features = learner.model(one.support_x), learner.model(far)
    seen, other = (learner.support_in_context(params, part) for part in features)
    assert not torch.allclose(seen[0], other[0])
    turned = learner.support_in_context(params, features[0].flip(0)).flip(0)
    assert not torch.allclose(seen, turned)
    assert torch.equal(MatchingNet(encoder()).meta_params["weight"], params["weight"])


def test_a_query_in_full_context_does_not_see_the_other_queries():
    """Without batch statistics, alone and together are the same prediction."""
    learner, params = in_context()
    one = episode()
    together = learner.query_logits(params, one)
    torch.testing.assert_close(learner.query_logits_alone(params, one), together, rtol=1e-10, atol=1e-12)
    fewer = learner.query_logits(params, replace(one, query_x=one.query_x[:2]))
    torch.testing.assert_close(fewer, together[:2], rtol=1e-10, atol=1e-12)


def test_full_context_needs_to_know_the_size_of_the_features():
    spec = TaskSpec((DIM,), WAYS, "classification", WAYS * SHOTS, 7)
    learner = MatchingNet(mlp((9,), head=False), full_context=True).bind(spec)
    stacked = Episode.stack([episode(seed=0), episode(seed=1)])
    with pytest.raises(ModelContractError, match=r"LSTMs for 64 features.*returns 9 per input. Set learner.features=9"):
        probe(learner, spec, stacked)
    assert probe(learner.with_config(features=9), spec, stacked).learner.config.vectorise == "vmap"


def test_full_context_takes_any_ways_and_trains_its_lstms(digits_dir, tmp_path):
    tasks = FewShot(digits_dir, ways=3, shots=1, queries=2, train_ways=5, train_shots=2, train_queries=3)
    learner = MatchingNet(mlp((16,), head=False), full_context=True, features=16, steps=2)
    settings = {"iterations": 3, "meta_batch_size": 2, "evaluation.test_tasks": 4, "evaluation.validation_tasks": 4}
    learner.train(tasks, run_dir=tmp_path / "run", **settings)
    before = learner.init_meta_params(rng(0, "init"))
    trained = {name: p for name, p in learner.meta_params.items() if name.startswith("lstm/")}
    assert len(trained) == 9
    assert all(not torch.equal(p, before[name]) for name, p in trained.items())


@pytest.mark.parametrize("kind", [ProtoNet, MatchingNet])
def test_a_classifier_is_refused_with_the_fix(kind):
    spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    learner = kind(conv4(4)).bind(spec)
    with pytest.raises(ModelContractError, match=rf"{kind.__name__} needs an encoder.*conv4\(head=False\)"):
        probe(learner, spec, Episode(x, y, x, y))


def test_a_classifier_of_the_test_tasks_is_refused_too(digits_dir):
    """It has as many outputs as the tasks that it will be judged on have classes; training has more."""
    tasks = FewShot(digits_dir, ways=3, shots=1, queries=2, train_ways=6)
    experiment = Experiment(
        learner=ProtoNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))), tasks=tasks
    )
    with pytest.raises(ModelContractError, match=r"ProtoNet needs an encoder: the model returned \[6, 3\]"):
        check_model(experiment.learner, experiment)


@pytest.mark.parametrize("kind", [MAML, MAMLPlusPlus, MetaSGD, Reptile])
def test_an_encoder_is_refused_by_what_trains_a_classifier_with_the_fix(kind):
    spec = TaskSpec((1, 28, 28), 5, "classification", 5, 5)
    x, y = torch.rand(2, 5, 1, 28, 28), torch.arange(5).expand(2, 5)
    with pytest.raises(ModelContractError, match=rf"^{kind.__name__} needs a classifier.*expected \[5, 5\].*ProtoNet"):
        probe(kind(conv4(4, head=False)).bind(spec), spec, Episode(x, y, x, y))


@pytest.mark.parametrize("kind", [ProtoNet, MatchingNet])
def test_regression_is_refused_by_metric_learners_with_the_fix(kind):
    experiment = Experiment(learner=kind(mlp((8,), head=False)), tasks=Sinusoids())
    with pytest.raises(LearnerContractError, match=r"float32 numbers, expected int64 class positions. Use MAML"):
        check_model(experiment.learner, experiment)


@pytest.mark.parametrize("kind", [MAML, MAMLPlusPlus, MetaSGD, Reptile])
def test_other_ways_at_test_are_refused_where_the_number_of_outputs_is_fixed(kind, digits_dir, tmp_path):
    """Before any worker starts, and though the model itself would run."""
    tasks = FewShot(digits_dir, ways=3, shots=1, queries=2, train_ways=5)
    with pytest.raises(LearnerContractError, match=r"trained on 5-way.*tested on 3-way.*tasks.train_ways.*ProtoNet"):
        meta_train(Experiment(learner=kind(mlp()), tasks=tasks), run_dir=tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_metric_learners_take_any_ways_at_test():
    train, test = (TaskSpec((DIM,), ways, "classification", ways, ways) for ways in (6, 4))
    for kind in (ProtoNet, MatchingNet):
        require_equal_ways(kind(mlp(head=False)), train, test)


def test_more_ways_in_training_than_at_test(digits_dir, tmp_path):
    tasks = FewShot(digits_dir, ways=3, shots=1, queries=2, train_ways=5, train_queries=3)
    assert (tasks.spec_of("meta_train").outputs, tasks.spec.outputs) == (5, 3)
    experiment = Experiment(
        learner=ProtoNet(mlp((16,), head=False)),
        tasks=tasks,
        outer=Outer(iterations=30, meta_batch_size=4, lr=0.01),
        evaluation=Evaluation(test_tasks=40, validation_tasks=10),
    )
    result = meta_train(experiment, run_dir=tmp_path / "run")
    assert result.test.mean("accuracy") > 0.6
    assert result.test.metrics["accuracy"].shape == (40,)


def test_any_function_can_be_a_few_shot_distribution():
    def blobs(random, split):
        centres = random.normal(size=(3, DIM))
        y = [0, 1, 2, 0, 1, 2]
        return centres[y], y, centres[y] + 0.01, y

    assert FunctionTasks(blobs).spec.outputs == 3
