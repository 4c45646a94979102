"""Ridge: the closed form, its gradients, and what is learned beside the encoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distmeta import Evaluation, Experiment, FunctionTasks, Outer, Ridge, Sinusoids, meta_train
from distmeta.errors import ConfigError, LearnerContractError
from distmeta.learners.probe import probe
from distmeta.learners.ridge import ridge
from distmeta.seeding import rng
from distmeta.testing import check_gradient
from distmeta.types import Episode, TaskRef, TaskSpec

WAYS, SHOTS, DIM = 3, 2, 4


def episodes(tasks=3, dtype=torch.float64, dim=DIM):
    random = torch.Generator().manual_seed(0)
    y = torch.arange(WAYS).repeat_interleave(SHOTS).expand(tasks, -1)
    centres = 2 * torch.randn(tasks, WAYS, dim, generator=random)

    def inputs():
        return (centres.repeat_interleave(SHOTS, 1) + torch.randn(tasks, WAYS * SHOTS, dim, generator=random)).to(dtype)

    return Episode(inputs(), y, inputs(), y, ways=WAYS)


def learner(features=8, **settings):
    torch.manual_seed(0)
    return Ridge(nn.Linear(DIM, features).double(), **settings)


def theta(of):
    return of.init_meta_params(rng(0, "init"))


def only(task):
    return task.map(lambda part: part[0])


@pytest.mark.parametrize("features", [3, 6, 50])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_the_closed_form_is_the_least_squares_solution(features, strength):
    """Ridge is least squares with sqrt(lambda) I below X and zeros below Y; six examples, so both systems are used."""
    random = torch.Generator().manual_seed(features)
    x = torch.randn(6, features, dtype=torch.float64, generator=random)
    y = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2])).double()
    below = strength**0.5 * torch.eye(features, dtype=torch.float64)
    zeros = torch.zeros(features, 3, dtype=torch.float64)
    expected = torch.linalg.lstsq(torch.cat([x, below]), torch.cat([y, zeros])).solution
    torch.testing.assert_close(ridge(x, y, torch.tensor(strength, dtype=torch.float64)), expected, rtol=1e-9, atol=1e-9)


def test_the_closed_form_is_scikit_learns():
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = np.random.default_rng(0).normal(size=(6, 20)), np.eye(3)[[0, 0, 1, 1, 2, 2]]
    expected = linear.Ridge(alpha=0.7, fit_intercept=False).fit(x, y).coef_.T
    found = ridge(torch.from_numpy(x), torch.from_numpy(y), torch.tensor(0.7, dtype=torch.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_logits_by_hand():
    """alpha X' W + beta, of the embedded examples."""
    of, one = learner(regularisation=0.5, scale=3.0), only(episodes())
    params = theta(of) | {"ridge/beta": torch.tensor(0.25, dtype=torch.float64)}
    support, query = of.model(one.support_x), of.model(one.query_x)
    gram = support.T @ support + 0.5 * torch.eye(8, dtype=torch.float64)
    weights = gram.inverse() @ support.T @ F.one_hot(one.support_y).double()
    torch.testing.assert_close(of.query_logits(params, one), 3 * query @ weights + 0.25)


@pytest.mark.parametrize("features", [4, 8], ids=["features", "examples"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_finite_differences(features, engine):
    tasks = FunctionTasks(lambda random, split: tuple(only(episodes(dtype=torch.float32))))
    found = check_gradient(Experiment(learner=Ridge(nn.Linear(DIM, features), vectorise=engine), tasks=tasks))
    assert (found.engine, found.wrong) == (engine, {})


def test_the_settings_of_the_paper_are_learned_and_beta_has_no_gradient():
    of = learner()
    gradient = of.meta_gradient(theta(of), episodes()).gradient
    assert gradient["ridge/log_lambda"].abs() > 1e-4
    assert gradient["ridge/log_alpha"].abs() > 1e-4
    assert gradient["ridge/beta"].abs() < 1e-12, "a softmax does not depend on it"


def test_vectorised_tasks_are_those_of_a_loop():
    found = [learner(vectorise=engine).meta_gradient(theta(learner()), episodes()) for engine in ("vmap", "loop")]
    for name, value in found[0].gradient.items():
        torch.testing.assert_close(value, found[1].gradient[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0].metrics["loss"], found[1].metrics["loss"])


def test_the_probe_takes_vmap():
    spec = TaskSpec((DIM,), WAYS, "classification", WAYS * SHOTS, WAYS * SHOTS)
    found = probe(learner(), spec, episodes())
    assert (found.learner.config.vectorise, found.message) == ("vmap", None)


def test_any_number_of_ways_and_of_shots():
    of, one = learner(), only(episodes())
    more = replace(one, support_x=one.support_x.repeat(3, 1), support_y=torch.arange(18), ways=18)
    assert of.query_logits(theta(of), more).shape == (6, 18)


def test_equal_examples_can_be_solved():
    """X X^T is singular without lambda."""
    of, one = learner(), only(episodes())
    same = replace(one, support_x=one.support_x[:1].expand(6, -1))
    assert of.query_logits(theta(of), same).isfinite().all()


def test_a_model_without_parameters_learns_the_three_settings_alone():
    of = Ridge(nn.Identity())
    assert list(theta(of)) == ["ridge/log_lambda", "ridge/log_alpha", "ridge/beta"]
    assert float(theta(of)["ridge/log_alpha"].exp()) == pytest.approx(10)
    gradient = of.meta_gradient(theta(of), episodes(dtype=torch.float32)).gradient
    assert gradient["ridge/log_alpha"] != 0


def test_training_improves_it(tmp_path):
    def groups(random, split):
        """Two of 12 numbers tell the classes apart."""
        centres = np.zeros((WAYS, 12))
        centres[:, :2] = 2 * random.normal(size=(WAYS, 2))
        y = np.repeat(np.arange(WAYS), SHOTS)
        return tuple(
            part for _ in range(2) for part in (centres[y] + random.normal(size=(6, 12)) * ([0.3] * 2 + [2.0] * 10), y)
        )

    result = meta_train(
        Experiment(
            learner=Ridge(nn.Linear(12, 8)),
            tasks=FunctionTasks(groups),
            outer=Outer(iterations=150, meta_batch_size=8, lr=0.02),
            evaluation=Evaluation(every=0, test_tasks=200),
        ),
        run_dir=tmp_path / "run",
    )
    gain = result.test.gain("accuracy", "baseline_probe_accuracy")
    assert gain.significant
    assert gain.mean > 0.1


def test_targets_that_are_numbers_are_refused():
    task = Sinusoids().episode(TaskRef("meta_train", 0, 0), 0)
    of = Ridge(nn.Linear(1, 4))
    with pytest.raises(LearnerContractError, match="compares with the examples of each class"):
        of.query_logits(theta(of), task)


def test_a_regularisation_of_zero_is_refused():
    with pytest.raises(ConfigError, match="regularisation"):
        Ridge(nn.Identity(), regularisation=0)
