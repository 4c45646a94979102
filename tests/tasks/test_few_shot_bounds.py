"""Numbers of ways, shots and queries that are drawn per outer step, between bounds."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from distmeta import (
    MAML,
    Evaluation,
    Experiment,
    FewShot,
    LabelSequences,
    LocalBackend,
    MAMLPlusPlus,
    MatchingNet,
    MetaSGD,
    Outer,
    ProtoNet,
    Reptile,
    Runtime,
    Siamese,
    from_arrays,
    mlp,
)
from distmeta.config import parse_overrides
from distmeta.errors import ConfigError, LearnerContractError, TaskContractError
from distmeta.learners.losses import prediction_loss
from distmeta.learners.metric import MetricLearner
from distmeta.learners.over_tasks import unstack
from distmeta.learners.probe import probe, require_equal_ways
from distmeta.run.directory import RunDirectory
from distmeta.run.place import Place
from distmeta.run.training import meta_train
from distmeta.types import Episode, TaskRef
from helpers import run_command

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(30), 12)
    x = (random.normal(size=(30, 1, 4, 4))[y] + 0.3 * random.normal(size=(len(y), 1, 4, 4))).astype("float32")
    out = tmp_path_factory.mktemp("bounds") / "data"
    splits = {"meta_train": range(14), "meta_validation": range(14, 22), "meta_test": range(22, 30)}
    from_arrays(x, y, out, splits=splits)
    return out


def shapes(tasks, split, step, seed=0):
    """N, K and Q of the tasks of one step."""
    episode = tasks.episodes([TaskRef(split, step, i) for i in range(3)], seed)
    ways = int(episode.support_y.max()) + 1
    return ways, episode.support_y.shape[1] // ways, episode.query_y.shape[1] // ways


def test_training_draws_them_per_step_and_test_tasks_have_the_lower_ones(data):
    tasks = FewShot(data, ways=(2, 7), shots=(1, 3), queries=(2, 3))
    tasks.check()
    drawn = [shapes(tasks, "meta_train", step) for step in range(200)]
    assert {ways for ways, _, _ in drawn} == {2, 3, 4, 5, 6, 7}
    assert {shots for _, shots, _ in drawn} == {1, 2, 3}
    assert {queries for _, _, queries in drawn} == {2, 3}
    assert len(set(drawn)) > 25  # each apart from the others
    assert drawn == [shapes(tasks, "meta_train", step) for step in range(200)]
    assert drawn != [shapes(tasks, "meta_train", step, seed=1) for step in range(200)]
    for split in ("meta_validation", "meta_test"):
        assert {shapes(tasks, split, step) for step in range(5)} == {(2, 1, 2)}
    spec, test = tasks.spec_of("meta_train"), tasks.spec
    assert (spec.outputs, spec.fewest, spec.support, spec.queries) == (7, 2, 21, 21)
    assert (test.outputs, test.fewest, test.support, test.queries) == (2, None, 2, 4)


def test_bounds_of_training_beside_one_number_for_the_test(data):
    tasks = FewShot(data, ways=5, train_ways=(2, 7), train_shots=(1, 2))
    assert {shapes(tasks, "meta_train", step)[0] for step in range(60)} == {2, 3, 4, 5, 6, 7}
    assert shapes(tasks, "meta_test", 0) == (5, 1, 1)
    assert tasks.at_step("meta_train", np.random.default_rng(0)).spec == tasks.spec
    assert tasks.at_step("meta_test", np.random.default_rng(0)) is tasks


def test_plain_numbers_are_what_they_were(data):
    """No draw is made, no step has a distribution of its own, and equal bounds are one number."""
    tasks = FewShot(data, ways=5, shots=2, train_queries=3)
    assert tasks.at_step("meta_train", np.random.default_rng(0)) is tasks
    assert tasks.spec_of("meta_train").fewest is None
    assert FewShot(data, ways=(5, 5), shots=(2, 2), train_queries=[3, 3]).config == tasks.config
    assert tasks.config.to_dict()["ways"] == 5
    assert FewShot(data, ways=(2, 5)).config.to_dict()["ways"] == [2, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ways": 0}, "FewShot setting 'ways' is 0: input should be greater than 0. Change it; the default is 5."),
        ({"ways": (7, 2)}, r"expected a number, or a lower and an upper bound such as \[5, 20\]"),
        ({"ways": (2, 3, 4)}, r"expected a number, or a lower and an upper bound such as \[5, 20\]"),
        ({"train_shots": (0, 2)}, "'train_shots' is .* input should be greater than 0"),
        ({"ways": "5,20"}, r"'ways' is '5,20': .*or bounds such as \[5,20\]"),
        ({"ways": (2, 7), "train_ways": 5}, r"ways=\(2, 7\) has no effect beside train_ways=5.*Set ways=2"),
    ],
)
def test_what_are_no_bounds_is_refused(data, settings, message):
    with pytest.raises(ConfigError, match=message):
        FewShot(data, **settings)


def test_the_data_must_hold_the_upper_bounds(data):
    with pytest.raises(TaskContractError, match=r"ways=15 but meta_train of .* has 14 classes.*Set tasks\.ways=14 or"):
        FewShot(data, ways=(2, 15)).check()
    FewShot(data, ways=(2, 14)).check()  # more than the 8 classes of the test, which has the lower number
    with pytest.raises(TaskContractError, match=r"shots \+ queries = 12 \+ 1 but class"):
        FewShot(data, shots=(1, 12)).check()


def test_sequences_of_labels_have_one_number_of_ways(data):
    with pytest.raises(ConfigError, match=r"LabelSequences setting 'ways' is .* be a valid integer"):
        LabelSequences(data, ways=(2, 5))


def test_on_the_command_line(data):
    experiment = Experiment(learner=ProtoNet(mlp((8,), head=False)), tasks=FewShot(data))
    changed = experiment.with_overrides(parse_overrides(["tasks.train_ways=[2,7]", "tasks.shots=[1, 3]"]))
    assert (changed.tasks.config.train_ways, changed.tasks.config.shots) == ((2, 7), (1, 3))
    assert changed.identity()["tasks"]["train_ways"] == [2, 7]
    recorded = json.loads(json.dumps({**changed.identity(), "frozen": None}))  # as a checkpoint keeps it
    assert changed.changed(recorded, None) == []
    assert changed.with_overrides({"tasks.shots": 5}).changed(recorded, None) == ["tasks.shots=[1, 3] and now has 5"]


GRADIENT = {
    "MAML": lambda model: MAML(model, inner_lr=0.1),
    "Reptile": lambda model: Reptile(model, inner_batch=3),
    "MetaSGD": MetaSGD,
    "MAML++": lambda model: MAMLPlusPlus(model, inner_steps=2, multi_step_until=9),
}


@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
@pytest.mark.parametrize("name", GRADIENT)
def test_outputs_beyond_the_classes_of_a_step_are_left_out(data, name, vectorise):
    """In the inner loop, the loss and the accuracy: as if the model had only as many outputs."""
    tasks = FewShot(data, ways=(2, 7), queries=2)
    episodes = tasks.with_config(ways=3).episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    torch.manual_seed(0)
    large = nn.Sequential(nn.Flatten(), nn.Linear(16, 7))
    small = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    small[1].load_state_dict({key: value[:3] for key, value in large[1].state_dict().items()})
    learners = [GRADIENT[name](m).with_config(vectorise=vectorise) for m in (large, small)]
    cut = [who.meta_params for who in learners]
    for key, value in cut[1].items():
        value.copy_(cut[0][key][:3] if cut[0][key].shape != value.shape else cut[0][key])
    found, expected = (
        who.at_step(0).meta_gradient(params, episodes) for who, params in zip(learners, cut, strict=True)
    )
    torch.testing.assert_close(found.metrics["loss"], expected.metrics["loss"])
    for key, part in expected.gradient.items():
        whole = found.gradient[key]
        torch.testing.assert_close(whole[: len(part)] if whole.shape != part.shape else whole, part)
        if whole.shape != part.shape:
            assert not whole[len(part) :].any()
    judged = [who.for_evaluation().evaluate(p, episodes) for who, p in zip(learners, cut, strict=True)]
    for key, values in judged[1].items():
        torch.testing.assert_close(judged[0][key], values)
    # A user's task with these classes is predicted as evaluation predicted it.
    one = unstack(episodes)[0]
    fast = [
        who.for_evaluation().adapt(one.support_x, one.support_y, params=p, transductive=True)
        for who, p in zip(learners, cut, strict=True)
    ]
    logits = fast[0].logits(one.query_x)
    assert logits.shape == (6, 3)
    torch.testing.assert_close(logits, fast[1].logits(one.query_x))
    assert float(prediction_loss(logits, one.query_y)) == pytest.approx(float(judged[0]["loss"][0]), rel=1e-5)


def test_an_episode_without_a_number_of_outputs_uses_all(data):
    """What users feed by hand: labels 0 and 1 on a model of five outputs stay a task of five."""
    x, y = torch.rand(2, 4, 16), torch.tensor([0, 1, 0, 1]).expand(2, 4)
    learner = MAML(nn.Linear(16, 5), inner_lr=0.1)
    gradient = learner.meta_gradient(learner.meta_params, Episode(x, y, x, y)).gradient
    assert bool(gradient["bias"][2:].all())


def test_a_classifier_is_tested_on_any_number_between_the_bounds(data):
    learner = MAML(mlp((8,)))
    train = FewShot(data, ways=(2, 7)).spec_of("meta_train")
    for ways in (2, 5, 7):
        require_equal_ways(learner, train, FewShot(data, ways=ways).spec)
    with pytest.raises(LearnerContractError, match=r"trained on 2- to 7-way tasks and tested on 8-way ones"):
        require_equal_ways(learner, train, FewShot(data, ways=8).spec)
    with pytest.raises(LearnerContractError, match=r"trained on 7-way tasks and tested on 5-way ones"):
        require_equal_ways(learner, FewShot(data, ways=7).spec, FewShot(data, ways=5).spec)


def test_a_model_with_outputs_for_the_lower_bound_only_is_refused(data):
    tasks = FewShot(data, ways=(2, 7))
    episodes = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(Exception, match=r"expected \[\d+, 7\]"):
        probe(MAML(model), tasks.spec_of("meta_train"), episodes, tasks.spec)


JOB = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.1),
    tasks=distmeta.FewShot({data!r}, train_ways=(2, 5), shots=(1, 3), ways=3),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""


def test_a_finished_run_is_evaluated_on_other_numbers(data, tmp_path):
    job, run = tmp_path / "job.py", tmp_path / "run"
    job.write_text(JOB.format(data=str(data)))
    done = run_command("train", job, "--backend", "local", "--no-tracking", "--run-dir", run)
    assert done.code == 0, done.err
    assert "3-way 1-shot" in done.out

    def evaluate(*words):
        return run_command("evaluate", run, "--backend", "local", "--tasks", 4, *words)

    assert evaluate("--json").json["changed"] == {}
    assert evaluate("--set", "tasks.ways=5", "--set", "tasks.shots=2", "--json").json["changed"] == {
        "tasks.ways": 5,
        "tasks.shots": 2,
    }
    assert "trained on 2- to 5-way tasks and tested on 6-way ones" in evaluate("--set", "tasks.ways=6").err
    assert "tasks.shots=[1, 3], tasks.train_ways=[2, 5]" in evaluate("--split", "meta_train").err
    fixed = evaluate("--split", "meta_train", "--set", "tasks.train_ways=4", "--set", "tasks.shots=1")
    assert fixed.code == 0, fixed.err
    too_many = evaluate("--split", "meta_train", "--set", "tasks.train_ways=9", "--set", "tasks.shots=1")
    assert "tested on 9-way ones" in too_many.err


def trained(learner, data, folder, workers, chunk_size=2):
    experiment = Experiment(
        learner=learner,
        tasks=FewShot(data, ways=(2, 7), shots=(1, 3), queries=2),
        outer=Outer(iterations=5, meta_batch_size=6),
        runtime=Runtime(chunk_size=chunk_size, workers=workers),
        evaluation=Evaluation(every=2, validation_tasks=4, test_tasks=4),
    )
    result = meta_train(experiment, run_dir=folder, place=Place(LocalBackend(), tracking=False))
    return result


@pytest.mark.parametrize(
    "make",
    [
        Reptile,
        MetaSGD,
        MAMLPlusPlus,
        lambda model: MAML(model, inner_lr=0.1, adapt="head", first_order=True),
        lambda model: Siamese(model, form="koch"),
        lambda model: Siamese(model, pairs="one"),
        lambda model: MatchingNet(model, full_context=True, features=8),
    ],
)
def test_every_kind_of_learner_trains_on_them(make, data, tmp_path):
    head = not isinstance(make(nn.Linear(1, 1)), MetricLearner)
    result = trained(make(mlp((8,), head=head)), data, tmp_path / "run", 1)
    assert result.step == 5
    assert result.test is not None


@pytest.mark.parametrize("kind", ["MAML", "ProtoNet"])
def test_the_same_bits_with_any_number_of_workers(kind, data, tmp_path):
    digests = set()
    for workers in (1, 2, 3):
        learner = MAML(mlp((8,)), inner_lr=0.1) if kind == "MAML" else ProtoNet(mlp((8,), head=False))
        folder = tmp_path / str(workers)
        result = trained(learner, data, folder, workers)
        assert result.test is not None
        digests.add(RunDirectory.open(folder).checkpoints().load().params_sha256)
    assert len(digests) == 1
