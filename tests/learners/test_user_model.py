"""Models as people have them: wrapped, scripted, lazy, with outputs that are no tensor."""

import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import distmeta
from distmeta import (
    MAML,
    NTM,
    CopyTask,
    Evaluation,
    Experiment,
    FunctionTasks,
    LocalBackend,
    MatchingNet,
    MetaSGD,
    Outer,
    ProtoNet,
    Reptile,
    Siamese,
)
from distmeta.errors import ModelContractError
from distmeta.learners.probe import probe
from distmeta.learners.user_model import plain, require_tensor
from distmeta.run.place import Place
from distmeta.runtime.checkpoint import CheckpointStore
from distmeta.runtime.driver import Driver
from distmeta.runtime.events import NullLog
from distmeta.types import TaskRef, TaskSpec

pytestmark = pytest.mark.usefixtures("one_thread")

INPUTS, WAYS = 8, 3


def clusters(random, split):
    centres = 2 * random.normal(size=(WAYS, INPUTS))

    def half(n):
        y = np.repeat(np.arange(WAYS), n)
        return (centres[y] + random.normal(size=(len(y), INPUTS))).astype("float32"), y

    return (*half(2), *half(3))


TASKS = FunctionTasks(clusters)
LEARNERS = {
    "MAML": lambda model: MAML(model, inner_lr=0.1),
    "MetaSGD": MetaSGD,
    "Reptile": Reptile,
    "ProtoNet": ProtoNet,
    "Koch": lambda model: Siamese(model, form="koch"),
}
every_learner = pytest.mark.parametrize("name", LEARNERS)


def outputs(name):
    return 5 if name in ("ProtoNet", "Koch") else WAYS


def body(out=WAYS):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, out))


def start(learner, folder):
    """All that is checked before a worker starts, and what was told."""
    said = []
    experiment = Experiment(
        learner=learner,
        tasks=TASKS,
        outer=Outer(iterations=2, meta_batch_size=2),
        evaluation=Evaluation(every=0, test_tasks=2),
    )
    return Driver(experiment, CheckpointStore(folder, keep=2), lambda event: said.append(event.text)), said


def train(learner, folder):
    driver, said = start(learner, folder)
    driver.start(LocalBackend())
    return driver.train(NullLog()).best.params_sha256, said


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_part(model):
    model[0] = compiled(model[0])
    return model


WRAPPERS = {
    "compile": (compiled, "The model is used as it is without torch.compile"),
    "compile in place": (compiled_in_place, "The model is used as it is without torch.compile"),
    "compiled forward": (compiled_forward, "The model is used as it is without torch.compile"),
    "compiled part": (compiled_part, "The model's part 0 is used as it is without torch.compile"),
    "DataParallel": (nn.DataParallel, "The model is used without its DataParallel"),
    "both": (lambda model: nn.DataParallel(compiled(model)), "without its DataParallel"),
}


@every_learner
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_the_plain_one(name, wrapper, tmp_path):
    """The value that was wrong: a raw RuntimeError from a worker, and names such as _orig_mod.0.weight."""
    wrap, message = WRAPPERS[wrapper]
    expected, _ = train(LEARNERS[name](body(outputs(name))), tmp_path / "plain")
    learner = LEARNERS[name](wrap(body(outputs(name))))
    assert list(learner.model.state_dict()) == list(body().state_dict())
    found, said = train(learner, tmp_path / "wrapped")
    assert found == expected
    assert sum(message in text for text in said) == 1
    support = TASKS.take(1)[0].episode
    fast = learner.adapt(support.support_x, support.support_y)
    assert fast.predict(support.query_x).shape == (9,)


def test_the_wrapped_model_that_was_given_stays_and_holds_what_is_learned():
    given = compiled_part(body())
    learner = MAML(given)
    assert isinstance(given[0], torch._dynamo.OptimizedModule)
    assert type(learner.model[0]) is nn.Linear
    learner.load({key: torch.ones_like(p) for key, p in learner.meta_params.items()})
    assert all(bool((p == 1).all()) for p in given.parameters())


def test_a_model_without_wrappers_is_kept_itself():
    model = body()
    assert plain(model) == (model, "")
    assert MAML(model).model is model


def test_a_factory_may_return_a_wrapped_model():
    learner = MAML(lambda spec: compiled(body())).bind(TASKS.spec)
    assert type(learner.model) is nn.Sequential
    assert "torch.compile" in probe(learner, TASKS.spec, episodes()).message


def test_a_compiled_model_that_adapts_itself():
    class Mine(distmeta.MetaModule, nn.Linear):
        pass

    for wrap in (compiled, compiled_in_place):
        model = wrap(Mine(INPUTS, WAYS))
        MAML(model, inner_lr=0.1)
        x, y, query, target = TASKS.take(1)[0].episode
        model.adapt(x, y)
        assert model.evaluate(query, target) > 0


def episodes(tasks=TASKS):
    return tasks.episodes([TaskRef("meta_train", 0, i) for i in range(2)], 0)


class Returns(nn.Module):
    def __init__(self, wrap, out=WAYS):
        super().__init__()
        self.body, self.wrap = body(out), wrap

    def forward(self, x):
        return self.wrap(self.body(x))


@dataclass
class ModelOutput:
    loss: torch.Tensor | None
    logits: torch.Tensor


Pair = namedtuple("Pair", ["hidden", "state"])


@every_learner
@pytest.mark.parametrize(
    ("wrap", "seen", "line"),
    [
        (lambda y: (y, y.sum()), "tuple with [0]", "self.model(x)[0]"),
        (lambda y: [y], "list with [0]", "self.model(x)[0]"),
        (lambda y: Pair(y, None), "Pair with .hidden", "self.model(x).hidden"),
        (lambda y: ModelOutput(None, y), "ModelOutput with .logits", "self.model(x).logits"),
        (
            lambda y: OrderedDict(loss=y.sum(), logits=y),
            "OrderedDict with ['loss'] []",
            "self.model(x)['logits']",
        ),
        (
            lambda y: {"last_hidden_state": y[:, None]},
            "dict with ['last_hidden_state']",
            "self.model(x)['last_hidden_state'][:, 0]",
        ),
    ],
)
def test_an_output_of_several_parts_is_refused_with_the_wrapper_to_write(name, wrap, seen, line, tmp_path):
    model = Returns(wrap, outputs(name))
    with pytest.raises(ModelContractError) as caught:
        start(LEARNERS[name](model), tmp_path)
    message = str(caught.value)
    assert f"it returned {seen}" in message
    assert f"    def forward(self, x): return {line}\n" in message
    assert len(message.splitlines()) == 5
    # The wrapper in the message works as it is.
    scope = {"nn": nn}
    exec("\n".join(message.splitlines()[1:4]), scope)
    driver, _ = start(LEARNERS[name](scope["One"](model)), tmp_path)
    assert driver.learner.config.vectorise == "vmap"


def test_adapting_is_refused_in_the_same_words():
    x, y, *_ = TASKS.take(1)[0].episode
    with pytest.raises(ModelContractError, match=r"it returned tuple with \[0\]"):
        MAML(Returns(lambda y: (y, y))).adapt(x, y)


def test_a_recurrent_layer_returns_its_state_too():
    tasks = CopyTask(bits=4, length=2, min_length=2, max_length=2)
    learner = NTM(nn.LSTM(5, 4, batch_first=True)).bind(tasks.spec)
    with pytest.raises(ModelContractError, match=r"NTM needs .* returned tuple with \[0\] \[1, 5, 4\]. Wrap it:"):
        probe(learner, tasks.spec, episodes(tasks))


def test_an_output_without_any_tensor():
    for output in (None, 3.0, [], {"loss": None}):
        with pytest.raises(ModelContractError, match=f"it returned {type(output).__name__}. Return the logits"):
            require_tensor(output, "MAML")


class Decorated(nn.Linear):
    @torch.compile(backend="eager")
    def forward(self, x):
        return super().forward(x)


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(WAYS))


def on_meta():
    with torch.device("meta"):
        return body()


def half_on_meta():
    model = body()
    model[0].to("meta")
    return model


class SparseParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mix = body(), nn.Parameter(torch.eye(WAYS).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.mix, self.body(x).T).T


class SparseGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 2, sparse=True), nn.Linear(2 * INPUTS, WAYS)

    def forward(self, x):
        return self.head(self.table((x.clamp(-2, 2) + 3).long()).flatten(1))


class Counts(nn.Module):
    """State in an attribute, which no buffer shows."""

    def __init__(self):
        super().__init__()
        self.body, self.calls = body(), 0

    def forward(self, x):
        self.calls += 1
        return self.body(x) * self.calls


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return self.body(x * self.scale)


class NoEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()

    def forward(self, x):
        if not self.training:
            raise ValueError("trains only")
        return self.body(x)


class OnlyOnce(torch.autograd.Function):
    """An operation with a first derivative only."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        if gradient.requires_grad:
            raise RuntimeError("no second derivative")
        return 2 * gradient


class DoublesOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()

    def forward(self, x):
        return OnlyOnce.apply(self.body(x))


REFUSED = {
    "script": (lambda: torch.jit.script(body()), "The model is a TorchScript module (torch.jit.script, trace or load)"),
    "trace": (lambda: torch.jit.trace(body(), torch.rand(2, INPUTS)), "expected a plain nn.Module. Give the module"),
    "script part": (lambda: nn.Sequential(torch.jit.script(body())), "The model's part 0 is a TorchScript module"),
    "decorated": (lambda: Decorated(INPUTS, WAYS), "Remove the decorator from Decorated.forward"),
    "lazy": (lazy, "0.weight, 0.bias, 1.weight and 5 more: the layer is lazy"),
    "meta": (on_meta, "0.weight, 0.bias, 1.weight and 3 more: on torch's device 'meta'"),
    "half on meta": (half_on_meta, "0.weight, 0.bias: on torch's device 'meta'"),
    "sparse": (SparseParameter, "mix: the parameter is sparse (sparse_coo); expected dense ones"),
    "sparse gradients": (SparseGradients, "table: the embedding has sparse gradients"),
    "complex": (
        lambda: nn.Linear(INPUTS, WAYS, dtype=torch.complex64),
        "have the types complex64; expected one",
    ),
    "bfloat16": (lambda: body().bfloat16(), "have the types bfloat16; expected one of float32 or float64"),
    "state": (Counts, "returned other numbers for the same inputs the second time"),
    "float64 buffer": (Double, "scale is float64, the trained parameters float32: model.float() makes all of one type"),
    "no evaluation": (NoEvaluation, "can train the model but not evaluate it, in eval mode: ValueError: trains only"),
    "one derivative": (DoublesOnce, "could not compute the meta-gradient of one task: RuntimeError: no second deriv"),
    "no parameters": (nn.Flatten, "no parameter with requires_grad"),
    "a class": (lambda: nn.Linear, "to use a module class, give an instance: Linear(...)"),
    "a function": (lambda: F.relu, "The model factory relu fails on the tasks' spec"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_worker_starts(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(ModelContractError) as caught:
        start(MAML(make(), inner_lr=0.1), tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["Koch", "FullContext"])
def test_heads_of_their_own_are_trained_over_a_wholly_frozen_encoder(name, tmp_path):
    """The value that was wrong: StopIteration, since the model has no parameter to train."""
    model = body(5).requires_grad_(False).eval()
    learner = Siamese(model, form="koch") if name == "Koch" else MatchingNet(model, full_context=True, features=5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(learner, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self, out):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, out)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(x).tanh()).tanh())


def with_hook(out):
    model = body(out)
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def with_backward_hook(out):
    model = body(out)
    model[3].register_full_backward_hook(lambda module, given, output: None)
    return model


def weight_normed(out):
    model = body(out)
    model[0] = nn.utils.parametrizations.weight_norm(model[0])
    return model


def double(out):
    return body(out).double()


@every_learner
@pytest.mark.parametrize("make", [Tied, with_hook, with_backward_hook, weight_normed, double])
def test_unusual_but_sound_models_train(name, make, tmp_path):
    learner = LEARNERS[name](make(outputs(name)))
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}
    train(learner, tmp_path)
    assert list(learner.model.state_dict()) == list(before)


def test_tied_weights_are_one_meta_parameter():
    learner = MAML(Tied(WAYS), vectorise="loop", inner_lr=0.1)
    assert "b.weight" not in learner.meta_params
    params = {key: p + 1 for key, p in learner.meta_params.items()}
    moved = copy.deepcopy(learner.model)
    with torch.no_grad():
        for key, p in moved.named_parameters():
            p.copy_(params[key])
    x = torch.rand(4, INPUTS)
    assert torch.equal(learner.forward(params, x), moved(x))
    again = pickle.loads(pickle.dumps(learner)).model
    assert again.b.weight is again.a.weight


def test_parametrised_weights_survive_the_way_to_a_worker():
    """The value that was wrong: "Serialization of parametrized modules is only supported through state_dict()"."""
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="what Ray sends with, local functions too")
    learner = MAML(weight_normed(WAYS), inner_lr=0.1, vectorise="loop")
    sent = cloudpickle.loads(cloudpickle.dumps(cloudpickle.loads(cloudpickle.dumps(learner))))
    assert type(sent.model[0]).__name__ == type(learner.model[0]).__name__ == "ParametrizedLinear"
    x = torch.rand(4, INPUTS)
    assert torch.equal(sent.model(x), learner.model(x))
    for a, b in ((learner, sent), (copy.deepcopy(learner), sent)):
        one, other = (who.meta_gradient(who.meta_params, episodes()).gradient for who in (a, b))
        assert list(one) == list(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_sequence_model_is_unwrapped_too():
    tasks = CopyTask(bits=3, length=2, min_length=2, max_length=2)
    network = distmeta.ntm(size=8, slots=6, width=4)(tasks.spec)
    learner = NTM(compiled(network)).bind(tasks.spec)
    assert learner.model is network
    assert "without torch.compile" in probe(learner, tasks.spec, episodes(tasks)).message


def test_a_factory_is_told_nothing_new():
    assert repr(TaskSpec((8,), 3, "classification", 6, 9)) == (
        "TaskSpec(input_shape=(8,), outputs=3, kind='classification', support=6, queries=9)"
    )


def test_a_model_in_main_memory_is_not_copied():
    learner = MAML(body())
    assert learner.in_main_memory() is learner


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_stays_there_and_is_trained_as_a_copy(tmp_path):
    encoder = nn.Sequential(nn.Linear(INPUTS, 6), nn.BatchNorm1d(6)).requires_grad_(False).eval()
    model = nn.Sequential(encoder, nn.Linear(6, WAYS)).cuda()
    learner, before = MAML(model, inner_lr=0.1), model[1].weight.clone()
    few = {"iterations": 2, "meta_batch_size": 2, "evaluation.test_tasks": 2, "evaluation.every": 0}
    learner.train(TASKS, run_dir=tmp_path / "run", place=Place(LocalBackend(), tracking=False), **few)
    assert learner.model is model
    assert model[1].weight.is_cuda
    assert not torch.equal(model[1].weight, before)
