"""The checks that users run on their own models, tasks and learners find what they are for."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import distmeta
from distmeta import MAML, Experiment, FunctionTasks, Sinusoids, mlp
from distmeta.errors import LearnerContractError, ModelContractError, TaskContractError
from distmeta.testing import GradientCheck, check_gradient, check_model, check_task
from distmeta.types import TaskRef

pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(random, split):
    centres = random.normal(size=(3, 6))

    def half(n):
        y = np.repeat(np.arange(3), n)
        return centres[y] + 0.3 * random.normal(size=(len(y), 6)), y

    return (*half(2), *half(3))


CLUSTERS = FunctionTasks(clusters)


def experiment(model, tasks=CLUSTERS, **settings):
    return Experiment(learner=MAML(model, **{"inner_lr": 0.1, **settings}), tasks=tasks)


class Detaches(nn.Module):
    """Half of what the first layer says reaches the loss without its gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.head(torch.cat([hidden[:, :4], hidden[:, 4:].detach()], 1))


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (output,) = ctx.saved_tensors
        return gradient * (1 - output)  # the square is forgotten


class BadActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(WrongBackward.apply(self.first(x)))


@pytest.mark.parametrize(
    ("model", "tasks", "parameters"),
    [
        pytest.param(mlp((8,)), Sinusoids(), 4, id="regression with ReLU"),
        pytest.param(mlp((8,), norm="batch"), CLUSTERS, 5, id="batch norm"),
        pytest.param(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), CLUSTERS, 4, id="dropout"),
    ],
)
def test_a_right_gradient_passes(model, tasks, parameters):
    check = check_gradient(experiment(model, tasks, inner_steps=2))
    check.require()
    assert check.engine == "vmap"
    assert check.loop_error <= 1e-12
    assert len(check.difference_errors) == parameters
    assert max(check.difference_errors.values()) <= 1e-6
    assert check.wrong == {}


def test_checking_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    check_gradient(experiment(model))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model[1].p == 0.5


def test_a_partial_detach_is_named():
    check = check_gradient(experiment(Detaches()))
    assert {"first.weight", "first.bias"} <= set(check.wrong)
    assert "head.bias" not in check.wrong
    with pytest.raises(LearnerContractError, match=r"first.weight \(relative error .* Look for .detach\(\)"):
        check.require()


def test_a_wrong_backward_of_ones_own_is_named():
    check = check_gradient(experiment(BadActivation(), vectorise="loop"))
    assert "first.weight" in check.wrong
    with pytest.raises(LearnerContractError, match="a custom backward"):
        check.require()


def test_first_order_has_no_differences_to_compare_with():
    check = check_gradient(experiment(mlp((8,)), first_order=True))
    check.require()
    assert check.difference_errors == {}
    assert check.loop_error <= 1e-12


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (GradientCheck("vmap", 1e-3, {}), "differs from a plain loop's by 1.0e-03"),
        (GradientCheck("vmap", float("nan"), {}), "differs from a plain loop's by nan"),
        (GradientCheck("loop", 0.0, {"w": 2e-5, "b": 1e-9}), "The meta-gradient of w (relative error 2.0e-05)"),
        (GradientCheck("loop", 0.0, {"w": float("nan")}), "The meta-gradient of w (relative error nan)"),
    ],
)
def test_a_check_that_failed_says_so(check, message):
    with pytest.raises(LearnerContractError) as caught:
        check.require()
    assert message in str(caught.value)


def test_check_model_tells_of_a_slower_engine_and_refuses_what_cannot_run():
    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * max(1.0, x.abs().max().item())

    assert check_model(experiment(mlp((8,))).learner, experiment(mlp((8,)))) is None
    slow = experiment(Asks(6, 3))
    assert "looping over tasks" in check_model(slow.learner, slow)
    wrong = experiment(nn.Linear(6, 4))
    with pytest.raises(ModelContractError, match=r"returned \[6, 4\] for a 3-way episode, expected \[6, 3\]"):
        check_model(wrong.learner, wrong)


def test_check_task_passes_what_is_pure():
    check_task(experiment(mlp((8,)), Sinusoids()))
    check_task(experiment(mlp((8,))))


def test_check_task_finds_other_randomness():
    counter = itertools.count()

    def impure(random, split):
        x = random.normal(size=(4, 1)) + next(counter)
        return x, x, x, x

    with pytest.raises(LearnerContractError, match="came out differently the second time"):
        check_task(experiment(mlp((8,)), FunctionTasks(impure)))


def test_check_task_finds_tasks_that_are_all_the_same():
    def constant(random, split):
        x = np.ones((4, 1))
        return x, x, x, x

    with pytest.raises(LearnerContractError, match="Two tasks came out equal"):
        check_task(experiment(mlp((8,)), FunctionTasks(constant)))


def test_check_task_runs_the_tasks_own_check():
    with pytest.raises(TaskContractError, match="returned str"):
        check_task(experiment(mlp((8,)), FunctionTasks(lambda random, split: "nothing")))


def test_tasks_of_one_class_are_refused():
    """They gave a division by zero: their loss is 0, and so is its gradient."""

    def one_class(random, split):
        x = random.normal(size=(8, 6))
        return x[:4], np.zeros(4, int), x[4:], np.zeros(4, int)

    with pytest.raises(TaskContractError, match=r"have one class, which leaves nothing to tell apart; expected two"):
        check_task(experiment(mlp((8,)), FunctionTasks(one_class)))


def test_a_gradient_of_zero_is_no_division_by_zero():
    class Deaf(nn.Linear):
        def forward(self, x):
            return 0 * super().forward(x)

    with pytest.raises(LearnerContractError, match="meta-gradient of an untrained model is 0 in every parameter"):
        check_gradient(experiment(Deaf(6, 3)))


def test_somebody_s_own_line_is_named():
    """A fault in an algorithm or in a task function is not blamed on the model, and its line is told."""

    class Mistyped(distmeta.MetaLearner):
        def query_logits(self, params, episode):
            return episode.suport_x

    experiment = distmeta.Experiment(learner=Mistyped(distmeta.mlp((4,))), tasks=distmeta.Sinusoids())
    with pytest.raises(LearnerContractError, match=r"query_logits fails .*suport_x.*test_testing\.py, line \d+"):
        check_model(experiment.learner, experiment)

    @distmeta.task_distribution
    def broken(random, split):
        return random.no_such_number()

    with pytest.raises(TaskContractError, match=r"task function fails: AttributeError: .*test_testing\.py, line \d+"):
        broken.episode(TaskRef("meta_train", 0, 0), 0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(3, 2), torch.arange(3).float(), r"float32 of shape \[3\]; expected integers.*y\.long\(\)"),
        (torch.rand(3, 2), torch.arange(2), "3 inputs and 2 labels"),
        (torch.rand(3, 2).numpy(), torch.arange(3), r"ndarray and a Tensor.*torch\.as_tensor"),
    ],
)
def test_what_are_no_labels_is_refused_before_it_gives_a_number(x, y, message):
    learner = distmeta.MAML(torch.nn.Linear(2, 3))
    with pytest.raises(LearnerContractError, match=message):
        learner.adapt(x, y)
    fast = learner.adapt(torch.rand(3, 2), torch.arange(3))
    with pytest.raises(LearnerContractError, match=message):
        fast.evaluate(x, y)
