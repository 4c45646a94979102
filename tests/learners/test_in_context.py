"""Learning in context: what is scored and scaled, what may see what, and what is kept of a support set."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distmeta import MAML, Experiment, FunctionTasks, InContext, Outer, Sinusoids, mlp, table_transformer
from distmeta.errors import LearnerContractError, ModelContractError
from distmeta.learners.probe import probe, require_equal_ways
from distmeta.learners.support_scale import SupportScale
from distmeta.testing import check_model
from distmeta.types import Episode, TaskSpec
from set_models import Reader, Whole, reader

SPEC = TaskSpec((4,), 3, "classification", 9, 5)
NUMBERS = TaskSpec((4,), 2, "regression", 9, 5)


def episodes(tasks=3, seed=0, *, spec=SPEC, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    x, q = (torch.randn(tasks, n, 4, generator=random, dtype=dtype) for n in (spec.support, spec.queries))
    if spec.kind == "regression":
        return Episode(x, torch.sin(x[..., :2]) + 3, q, torch.sin(q[..., :2]) + 3)
    labels = torch.arange(3).repeat(3).expand(tasks, 9)
    return Episode(x, labels, q, torch.randint(3, (tasks, 5), generator=random), ways=3, outputs=3)


def learner(spec=SPEC, kind=Reader, **settings):
    torch.manual_seed(0)
    found = InContext(reader(kind), **settings).bind(spec, 0)
    found.model.double()
    return found


def params(of):
    return of.init_meta_params(None)


def gradient(of, e):
    return torch.cat([part.flatten() for part in of.meta_gradient(params(of), e).gradient.values()])


def test_the_loss_is_the_cross_entropy_of_the_queries_and_its_gradient_autograds():
    of, e = learner(), episodes()
    theta = {name: p.detach().requires_grad_() for name, p in params(of).items()}
    logits = torch.func.functional_call(of.model, theta, (e.support_x, e.support_y, e.query_x))
    expected = F.cross_entropy(logits.flatten(0, 1), e.query_y.flatten(), reduction="none").view(3, 5).mean(1)
    found = of.meta_gradient(params(of), e)
    torch.testing.assert_close(found.metrics["loss"], expected)
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(expected.sum(), list(theta.values()))])
    torch.testing.assert_close(gradient(of, e), theirs)


def test_every_query_of_a_step_has_the_same_weight():
    """Twice as many of a task's queries scored: twice its weight, whatever chunk the task is in."""
    of, e = learner(), episodes(2)
    one = Episode(*(part[:1] for part in e), ways=3, outputs=3)
    query_y = one.query_y.clone()
    total = gradient(of, one) * 5
    parts = []
    for kept in ([0], [1, 2, 3, 4]):
        y = torch.full_like(query_y, -1)
        y[:, kept] = query_y[:, kept]
        parts.append(gradient(of, Episode(one.support_x, one.support_y, one.query_x, y, ways=3, outputs=3)) * 5)
    torch.testing.assert_close(parts[0] + parts[1], total)


def test_a_class_that_the_support_set_lacks_has_no_probability_and_its_queries_no_score():
    of, e = learner(), episodes(1)
    support_y = e.support_y % 2
    query_y = torch.tensor([[0, 1, 2, 2, 0]])
    lacks = Episode(e.support_x, support_y, e.query_x, query_y, ways=3, outputs=3)
    scored = Episode(e.support_x, support_y, e.query_x, torch.tensor([[0, 1, -1, -1, 0]]), ways=3, outputs=3)
    torch.testing.assert_close(gradient(of, lacks), gradient(of, scored))
    logits = of.query_logits(params(of), lacks.map(lambda part: part[0]))
    assert float(logits.softmax(-1)[:, 2].max()) == 0
    metrics = of.evaluate(params(of), lacks)
    nll = F.cross_entropy(logits[[0, 1, 4]], query_y[0, [0, 1, 4]], reduction="sum")
    torch.testing.assert_close(metrics["loss"][0], nll / 3)  # it was / 5, as if unscored queries cost nothing
    torch.testing.assert_close(metrics["nll"][0], nll / 3)
    torch.testing.assert_close(of.meta_gradient(params(of), lacks).metrics["loss"][0], nll / 3)
    expected = (logits.argmax(-1) == query_y[0])[[0, 1, 4]].double().mean()
    assert float(metrics["accuracy"]) == pytest.approx(float(expected))
    assert torch.equal(metrics["accuracy"], metrics["accuracy_non_transductive"])


def test_fewer_classes_than_outputs_leave_the_others_out():
    of, e = learner(), episodes(2)
    two = Episode(e.support_x, e.support_y % 2, e.query_x, e.query_y % 2, ways=2, outputs=2)
    logits = of.query_logits(params(of), Episode(*(part[0] for part in two), ways=2, outputs=2))
    assert logits.shape == (5, 2)
    all_three = torch.func.functional_call(of.model, params(of), tuple(two)[:3])
    torch.testing.assert_close(logits, all_three[0, :, :2])


@pytest.mark.parametrize("kind", [Reader, Whole])
@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (SPEC, {}),
        (SPEC, {"standardise": "inputs"}),
        (NUMBERS, {}),
        (NUMBERS, {"standardise": "both"}),
        (NUMBERS, {"standardise": "both", "bins": 11}),
    ],
)
def test_an_adapted_model_gives_what_evaluation_computes(kind, spec, settings):
    of, e = learner(spec, kind, **settings), episodes(2, spec=spec)
    one = Episode(*(part[1] for part in e), ways=e.ways, outputs=e.outputs)
    fast = of.adapt(one.support_x, one.support_y, params=params(of))
    torch.testing.assert_close(fast.logits(one.query_x), of.query_logits(params(of), one))
    alone = torch.cat([fast.logits(x[None]) for x in one.query_x.flip(0)]).flip(0)
    torch.testing.assert_close(alone, fast.logits(one.query_x))
    assert bool(fast.learned) == (kind is Reader)
    if spec.kind == "regression":
        found = fast.predict_distribution(one.query_x)
        torch.testing.assert_close(found.mean, fast.predict(one.query_x))
        loss = of.evaluate(params(of), e)["loss"][1]
        torch.testing.assert_close(-found.log_prob(one.query_y).sum(-1).mean(), loss)
    batched = of.chunk_answers(params(of), e)
    torch.testing.assert_close(batched[1], of.query_logits(params(of), one))


def test_the_support_set_is_read_once():
    of, e = learner(), episodes(1)
    calls = []
    encode = of.model.encode_support
    of.model.encode_support = lambda *inputs: calls.append(0) or encode(*inputs)
    fast = of.adapt(e.support_x[0], e.support_y[0], params=params(of))
    before = len(calls)
    for _ in range(3):
        fast.predict(e.query_x[0])
    assert (before, len(calls)) == (1, 1)


def test_the_likelihood_of_standardised_targets_is_in_their_own_units():
    """Targets in other units: the same predictions in those units, and a density divided by the unit."""
    of, e = learner(NUMBERS, standardise="both"), episodes(2, spec=NUMBERS)
    scaled = Episode(7 * e.support_x - 2, 1000 * e.support_y + 5, 7 * e.query_x - 2, 1000 * e.query_y + 5)
    a, b = (of.evaluate(params(of), one) for one in (e, scaled))
    torch.testing.assert_close(b["log_likelihood"], a["log_likelihood"] - 2 * torch.tensor(1000.0).double().log())
    torch.testing.assert_close(b["mse"], a["mse"] * 1e6)
    torch.testing.assert_close(a["loss"], -a["log_likelihood"])


def test_only_the_support_set_has_a_part_in_the_scale():
    of, e = learner(standardise="inputs"), episodes(2)
    wild = torch.cat([e.query_x[:, :1], 1e6 * e.query_x[:, 1:]], 1)
    one, other = (
        of.chunk_answers(params(of), Episode(e.support_x, e.support_y, x, e.query_y, ways=3, outputs=3))[:, 0]
        for x in (e.query_x, wild)
    )
    torch.testing.assert_close(one, other)


def test_a_constant_column_is_nothing_and_padding_rows_have_no_part():
    e = episodes(2)
    x = e.support_x.clone()
    x[..., 1] = 0.1
    padded = Episode(
        torch.cat([x, torch.full((2, 2, 4), 1e5, dtype=torch.float64)], 1),
        torch.cat([e.support_y, torch.full((2, 2), -1)], 1),
        e.query_x,
        e.query_y,
    )
    plain = Episode(x, e.support_y, e.query_x, e.query_y)
    scales = [SupportScale.of(one, "inputs") for one in (plain, padded)]
    for scale in scales:
        assert bool((scale.inputs(e.query_x)[..., 1] == 0).all())
    torch.testing.assert_close(scales[0].inputs(e.query_x), scales[1].inputs(e.query_x))


def test_a_single_support_row_is_answered():
    fast = learner(standardise="inputs").adapt(torch.randn(1, 4).double(), ["only"])
    assert fast.predict(torch.randn(3, 4).double()).tolist() == ["only"] * 3
    assert torch.equal(fast.predict_proba(torch.randn(3, 4).double()), torch.ones(3, 1).double())


class Mixing(Reader):
    """Queries see each other."""

    def decode_queries(self, encoded, query_x):
        return super().decode_queries(encoded, query_x - query_x.mean(1, keepdim=True))


class Normed(Reader):
    """Batch norm over the queries, which torch refuses for one query alone."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    def decode_queries(self, encoded, query_x):
        return self.norm(super().decode_queries(encoded, query_x).mT).mT


class AcrossTasks(Reader):
    """A task sees the others of its chunk."""

    def encode_support(self, support_x, support_y):
        return super().encode_support(support_x - support_x.mean(0, keepdim=True), support_y)


class Flat(nn.Linear):
    """Forgets the support set, and the axis of tasks."""

    def forward(self, support_x, support_y, query_x):
        return super().forward(query_x)[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (reader(Mixing), "needs a set model whose queries do not see each other"),
        (reader(Normed), r"ask the model for one query alone: ValueError: .*no batch normalisation.*GroupNorm"),
        (reader(AcrossTasks), "no task has an influence on another"),
        (Flat(4, 3), r"returned \[5, 3\] for one task; expected \[1, queries, 3\]"),
        (nn.Linear(4, 3), r"Make forward take \(support_x \[T, S, 4\], support_y \[T, S\], query_x \[T, Q, 4\]\)"),
        (reader(lambda i, o, t: Reader(i, o + 1, t)), r"returned \[1, 5, 4\] for one task; expected \[1, queries, 3\]"),
    ],
)
def test_what_is_no_set_model_is_refused_before_a_worker_starts(model, message):
    of = InContext(model).bind(SPEC, 0)
    with pytest.raises(ModelContractError, match=message):
        probe(of, SPEC, episodes(dtype=torch.float32))


def test_dropout_is_no_query_that_sees_another():
    class Dropped(Reader):
        def decode_queries(self, encoded, query_x):
            return super().decode_queries(encoded, F.dropout(query_x, 0.5, self.training))

    found = probe(InContext(reader(Dropped), vectorise="loop").bind(SPEC, 0), SPEC, episodes(dtype=torch.float32))
    assert found.learner.loops


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (SPEC, {"bins": 5}, "bins=5 is for targets of a regression"),
        (SPEC, {"standardise": "both"}, "standardise='both' is for targets of a regression"),
        (TaskSpec((1, 4, 4), 3, "classification", 9, 5), {"standardise": "inputs"}, "is for columns of a table"),
        (TaskSpec((4,), 3, "sequence", 0, 5), {}, "learns from a support set"),
    ],
)
def test_settings_without_effect_and_other_tasks_are_refused(spec, settings, message):
    with pytest.raises(LearnerContractError, match=message):
        InContext(reader(), **settings).bind(spec, 0)


def test_padded_tasks_are_for_in_context_learners_alone():
    padded = TaskSpec((4,), 3, "classification", 9, 5, padded=True)
    InContext(reader()).bind(padded, 0)
    with pytest.raises(LearnerContractError, match="filled up with padding to equal shapes"):
        MAML(mlp()).bind(padded, 0)


def test_more_classes_than_outputs_are_refused_and_fewer_are_not():
    of, e = learner(), episodes(1)
    with pytest.raises(LearnerContractError, match="has 3 outputs"):
        of.adapt(e.support_x[0], torch.arange(9), params=params(of)).predict(e.query_x[0])
    two, five = (TaskSpec((4,), n, "classification", 9, 5) for n in (2, 5))
    require_equal_ways(of, SPEC, two)
    with pytest.raises(LearnerContractError, match="5-way"):
        require_equal_ways(of, SPEC, five)


def test_a_learner_of_values_has_no_distributions_and_a_classification_has_probabilities():
    values = MAML(mlp((4,))).bind(Sinusoids().spec).adapt(torch.rand(3, 1), torch.rand(3, 1))
    with pytest.raises(LearnerContractError, match="MAML predicts values alone"):
        values.predict_distribution(torch.rand(2, 1))
    e = episodes(1)
    with pytest.raises(LearnerContractError, match="Use predict_proba"):
        learner().adapt(e.support_x[0], e.support_y[0]).predict_distribution(e.query_x[0])


def test_attention_explains_an_answer():
    of, e = learner(), episodes(1)
    found = of.adapt(e.support_x[0], e.support_y[0]).explain(torch.cat([e.query_x[0], e.query_x[0, :4]]))
    weights = found["support_weights"]
    assert weights.shape == (9, 9)  # as many queries as support rows, which are told apart
    torch.testing.assert_close(weights.sum(1), torch.ones(9).double())
    key, query = (of.model.key(part) for part in (e.support_x, e.query_x))
    expected = (query @ key.mT / 8**0.5).softmax(-1)[0]
    torch.testing.assert_close(weights[:5], expected.detach())


def test_attention_of_one_query_is_not_that_of_one_cell_to_its_row():
    """A table of as many support rows as cells in a row: the last layer attends from one cell to all, one to four."""
    torch.manual_seed(0)
    spec = TaskSpec((3,), 2, "classification", 4, 5)
    of = InContext(table_transformer(width=8, heads=2, layers=1)).bind(spec, 0)
    fast = of.adapt(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    x = torch.randn(3, 3)
    one, among = fast.explain(x[:1])["support_weights"], fast.explain(x)["support_weights"][:1]
    torch.testing.assert_close(one, among)


def test_a_regression_is_compared_with_the_error_of_the_mean_not_its_likelihood(tmp_path):
    experiment = Experiment(
        learner=InContext(reader()),
        tasks=Sinusoids(),
        outer=Outer(iterations=2, meta_batch_size=2),
        evaluation={"every": 0, "test_tasks": 4},
    )
    assert check_model(experiment.learner, experiment) is None
    from distmeta import meta_train

    result = meta_train(experiment, run_dir=tmp_path / "run")
    assert {"log_likelihood", "mse", "baseline_mse"} <= set(result.test.metrics)
    assert "baseline_loss" not in result.test.metrics
    assert (tmp_path / "run" / "fit.png").stat().st_size > 1000


def test_a_table_task_has_a_picture_of_its_attention(tmp_path):
    def blobs(random, split):
        centres = 3 * random.normal(size=(3, 4))
        y = torch.arange(3).repeat(4)
        x = centres[y] + random.normal(size=(12, 4))
        return x[:6], y[:6], x[6:], y[6:]

    from distmeta import meta_train

    experiment = Experiment(
        learner=InContext(reader(), standardise="inputs"),
        tasks=FunctionTasks(blobs),
        outer=Outer(iterations=2, meta_batch_size=2),
        evaluation={"every": 0, "test_tasks": 4},
    )
    meta_train(experiment, run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "attention.png").stat().st_size > 1000
