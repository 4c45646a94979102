"""Frozen parts of a model, such as a pretrained encoder: they learn nothing, and are as the user froze them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from distmeta import (
    MAML,
    NTM,
    CopyTask,
    Experiment,
    FunctionTasks,
    LocalBackend,
    MAMLPlusPlus,
    MatchingNet,
    MetaSGD,
    ProtoNet,
    Reptile,
    Siamese,
)
from distmeta.errors import ModelContractError
from distmeta.learners.functional import evaluating, frozen_digest, frozen_parts, in_training
from distmeta.learners.probe import probe, refuse_running_statistics
from distmeta.run.place import Place
from distmeta.testing import check_gradient
from distmeta.types import TaskRef

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = 3


def pictures(random, split):
    """Classes of 1x6x6 pictures."""
    centres = random.normal(size=(WAYS, 1, 6, 6))

    def half(n):
        y = np.repeat(np.arange(WAYS), n)
        return (centres[y] + 0.5 * random.normal(size=(len(y), 1, 6, 6))).astype("float32"), y

    return (*half(2), *half(3))


TASKS = FunctionTasks(pictures)


def encoder():
    """A pretrained encoder: its averages are not the initial ones, and its dropout would be noise if it were on."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    for _ in range(5):
        model(3 + 2 * torch.rand(8, 1, 6, 6))
    return model.requires_grad_(False).eval()


def network(outputs=WAYS):
    torch.manual_seed(2)
    return nn.Sequential(encoder(), nn.Linear(64, outputs))


LEARNERS = {
    "MAML": lambda model: MAML(model, inner_lr=0.1, inner_steps=2),
    "FOMAML": lambda model: MAML(model, inner_lr=0.1, first_order=True),
    "ANIL": lambda model: MAML(model, inner_lr=0.1, adapt="head"),
    "MAMLPlusPlus": lambda model: MAMLPlusPlus(model, inner_steps=2),
    "MetaSGD": MetaSGD,
    "Reptile": Reptile,
    "ProtoNet": ProtoNet,
    "MatchingNet": MatchingNet,
    "FullContext": lambda model: MatchingNet(model, full_context=True, features=5),
    "Siamese": Siamese,
    "Koch": lambda model: Siamese(model, form="koch"),
}
METRIC = ("ProtoNet", "MatchingNet", "FullContext", "Siamese", "Koch")


def build(name):
    return LEARNERS[name](network(5 if name in METRIC else WAYS))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("chunk_size", [4, 2])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_frozen_encoder_is_bit_equal_after_training(name, chunk_size, tmp_path):
    learner = build(name)
    before, head = state(learner.model[0]), state(learner.model[1])
    modes = [module.training for module in learner.model.modules()]
    digest = frozen_digest(learner.model)
    few = {"runtime.chunk_size": chunk_size, "evaluation.test_tasks": 4, "evaluation.validation_tasks": 4}
    place = Place(LocalBackend(), tracking=False)
    learner.train(TASKS, run_dir=tmp_path / "run", place=place, iterations=3, meta_batch_size=4, **few)
    assert all(torch.equal(value, before[key]) for key, value in learner.model[0].state_dict().items())
    assert frozen_digest(learner.model) == digest
    assert [module.training for module in learner.model.modules()] == modes
    assert not torch.equal(learner.model[1].weight, head["weight"])


@pytest.mark.parametrize("name", ["MAML", "ProtoNet", "Reptile"])
@pytest.mark.parametrize("vectorise", ["vmap", "loop"])
def test_its_features_are_those_of_eval_mode_in_training_too(name, vectorise):
    """Batch statistics or dropout inside the encoder would give another loss: the true one is that of its features."""
    learner = build(name).with_config(vectorise=vectorise)
    head = learner.with_model(learner.model[1])
    episodes = TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    encoded = episodes.map(
        lambda part: learner.model[0](part.flatten(0, 1)).unflatten(0, part.shape[:2]) if part.dim() > 2 else part
    )
    params = learner.meta_params
    whole, alone = (
        learner.meta_gradient(params, episodes),
        head.meta_gradient({name.removeprefix("1."): p for name, p in params.items()}, encoded),
    )
    torch.testing.assert_close(whole.metrics["loss"], alone.metrics["loss"], rtol=1e-5, atol=1e-6)
    for key, part in whole.gradient.items():
        torch.testing.assert_close(part, alone.gradient[key.removeprefix("1.")], rtol=1e-4, atol=1e-6)


def test_a_norm_that_is_frozen_alone_has_an_exact_second_order():
    """Frozen statistics between trained layers: an affine map, differentiated twice through vmap."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, WAYS))
    model(torch.rand(4, 1, 6, 6))
    model[1].requires_grad_(False).eval()
    check = check_gradient(Experiment(learner=MAML(model, inner_lr=0.1), tasks=TASKS))
    check.require()
    assert check.engine == "vmap"
    assert set(check.difference_errors) == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_no_graph_is_built_through_a_frozen_encoder():
    seen = []
    learner = build("MAML")
    learner.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    episodes = TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    learner.with_config(vectorise="loop").meta_gradient(learner.meta_params, episodes)
    assert seen
    assert not any(seen)


def test_what_is_frozen_is_read_off_the_modes_that_the_user_gave():
    model = nn.Sequential(encoder(), nn.Dropout(), nn.Linear(64, WAYS))
    assert frozen_parts(model) == [model[0]]
    with in_training(model):
        assert [layer.training for layer in model] == [False, True, True]
        assert not any(module.training for module in model[0].modules())
    with evaluating(model):  # between, as a validation is
        pass
    assert frozen_parts(model) == [model[0]]
    # A whole model in eval mode, as it is after loading: its dropout is on in training, its frozen part is not.
    assert frozen_parts(model.eval()) == [model[0]]
    with in_training(model):
        assert [layer.training for layer in model] == [False, True, True]
    # Frozen weights in training mode are what the user left on: dropout stays, as before.
    noisy = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).requires_grad_(False)
    assert frozen_parts(nn.Sequential(noisy, nn.Linear(3, 3))) == []


def test_evaluation_between_steps_does_not_freeze_what_was_in_training_mode():
    """The value that was wrong: one validation would have switched the dropout of a frozen part off for good."""
    torch.manual_seed(0)
    part = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5)).requires_grad_(False)
    learner = MAML(nn.Sequential(part, nn.Linear(16, WAYS)), inner_lr=0.1)
    episodes = TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)

    def loss():
        torch.manual_seed(5)
        return learner.meta_gradient(learner.meta_params, episodes).metrics["loss"]

    before = loss()
    learner.evaluate(learner.meta_params, episodes)
    assert torch.equal(loss(), before)


def test_a_copy_and_a_pickled_learner_freeze_the_same():
    learner = build("MAML")
    episodes = TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    losses = [
        who.meta_gradient(learner.meta_params, episodes).metrics["loss"]
        for who in (learner, copy.deepcopy(learner), pickle.loads(pickle.dumps(learner)))
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_the_idiom_of_overriding_train_is_understood():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = encoder().train(), nn.Linear(64, WAYS)

        def train(self, mode=True):
            super().train(mode)
            self.encoder.eval()
            return self

        def forward(self, x):
            return self.head(self.encoder(x))

    model = Fixed()
    before = state(model)
    spec, episodes = TASKS.spec, TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    found = probe(MAML(model, inner_lr=0.1), spec, episodes)
    found.learner.meta_gradient(found.learner.meta_params, episodes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_frozen_norms_in_training_mode_are_refused_with_their_own_fix():
    model = network()
    model[0].train()
    with pytest.raises(ModelContractError, match=r"0\.1 \(BatchNorm2d\): the norm layer's weights are fro") as found:
        refuse_running_statistics(model)
    assert "Call .eval() on the frozen part" in str(found.value)


def test_a_refused_model_has_not_changed():
    """The value that was wrong: reading the number of features averaged a batch of zeros into the statistics."""
    model = network(5)
    model[0].train()
    before, learner = state(model), Siamese(model, form="koch")
    with pytest.raises(ModelContractError, match="frozen, but it is in training mode"):
        probe(learner.bind(TASKS.spec), TASKS.spec, TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_many_norms_are_three_and_a_number():
    """The value that was wrong: 60 layers in one line."""
    model = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(60)))
    with pytest.raises(ModelContractError) as caught:
        refuse_running_statistics(model)
    assert str(caught.value).startswith(
        "0 (BatchNorm1d), 1 (BatchNorm1d), 2 (BatchNorm1d) and 57 more: the norm layer keeps running statistics"
    )
    assert len(str(caught.value)) < 500
    assert "part.requires_grad_(False).eval()" in str(caught.value)
    with pytest.raises(ModelContractError):  # eval mode alone is no freezing: its weights would be trained
        refuse_running_statistics(model.eval())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(*(nn.LazyLinear(4) for _ in range(9))), "0.weight, 0.bias, 1.weight and 15 more: the layer is"),
        (nn.ModuleList(nn.Linear(2, 2) for _ in range(9)), ""),
    ],
)
def test_other_long_lists_are_cut_too(model, said):
    learner = MAML(model if said else Unused(model))
    episodes = TASKS.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    with pytest.raises(ModelContractError) as caught:
        probe(learner.bind(TASKS.spec), TASKS.spec, episodes)
    assert (said or "the parameter spare.0.weight, spare.0.bias, spare.1.weight and 15 more: it") in str(caught.value)


class Unused(nn.Module):
    def __init__(self, spare):
        super().__init__()
        self.spare, self.linear = spare, nn.Linear(36, WAYS)

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_a_frozen_part_of_a_sequence_model():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout()).requires_grad_(False).eval()
            self.cell, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.cell(self.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2]))[0])

    tasks = CopyTask(bits=4, length=2, min_length=2, max_length=2)
    learner = NTM(Reads())
    before = state(learner.model)
    episodes = tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)
    found = probe(learner.bind(tasks.spec), tasks.spec, episodes).learner
    first, second = (found.meta_gradient(found.meta_params, episodes).metrics["loss"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in learner.model.state_dict().items())
