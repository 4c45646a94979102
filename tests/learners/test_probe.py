"""What is refused before a worker starts, in words that name the fix, and which engine a model gets."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from distmeta import MAML, TaskSpec, conv4, use_batch_statistics
from distmeta.errors import ModelContractError, NonFiniteGradientError
from distmeta.learners.functional import trainable
from distmeta.learners.over_tasks import unstack
from distmeta.learners.param_layout import ParamLayout
from distmeta.learners.probe import probe, unused_parameters
from distmeta.types import Episode

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = 5


def problem(shape=(8,), ways=WAYS, shots=5, queries=3, seed=0):
    """A spec and two stacked tasks of it."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(2, ways, *shape))

    def half(n):
        y = np.repeat(np.arange(ways), n)
        x = centres[:, y] + 0.4 * random.normal(size=(2, len(y), *shape))
        return torch.from_numpy(x).float(), torch.from_numpy(np.stack([y, y]))

    spec = TaskSpec(shape, ways, "classification", ways * shots, ways * queries)
    return spec, Episode(*half(shots), *half(queries))


def examine(model, shape=(8,), **settings):
    return probe(MAML(model, inner_lr=0.1, **settings), *problem(shape))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(8, WAYS), nn.Linear(8, 3)

    def forward(self, x):
        return self.used(x)


class Counts(nn.Module):
    """Writes to its buffer in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, WAYS)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(8, WAYS), wrap

    def forward(self, x):
        return self.wrap(self.linear(x))


class Branches(nn.Module):
    """Control flow that depends on the data: nothing that ``vmap`` can trace."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, WAYS)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


class Asks(Branches):
    def forward(self, x):
        return self.linear(x) * max(1.0, x.abs().max().item())


class Recurs(nn.Module):
    """A classifier that reads the eight numbers one after the other."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.cell, self.head = kind(1, 4, batch_first=True), nn.Linear(4, WAYS)

    def forward(self, x):
        return self.head(self.cell(x[:, :, None])[0][:, -1])


class Attends(nn.Module):
    """Eight tokens of one number, attention, and a mean."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, WAYS)

    def forward(self, x):
        tokens = self.embed(x[:, :, None])
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class Encodes(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(1, 4), nn.TransformerEncoder(layer, 2), nn.Linear(4, WAYS)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x[:, :, None])).mean(1))


def frozen(model):
    return model.requires_grad_(False)


def half_precision_head():
    return nn.Sequential(nn.Linear(8, 4), nn.Linear(4, WAYS).double())


def infinite():
    model = nn.Linear(8, WAYS)
    nn.init.constant_(model.weight, torch.inf)
    return model


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        pytest.param(
            nn.Linear(8, 64),
            ModelContractError,
            "MAML needs a classifier: the model returned [25, 64] for a 5-way episode, expected [25, 5]. Give the last "
            "layer 5 outputs",
            id="encoder",
        ),
        pytest.param(Returns(lambda y: y[:, None]), ModelContractError, "returned [25, 1, 5]", id="extra axis"),
        pytest.param(Returns(lambda y: (y, y)), ModelContractError, "one tensor; it returned tuple", id="tuple"),
        pytest.param(Returns(lambda y: {"logits": y}), ModelContractError, "it returned dict", id="dict"),
        pytest.param(
            nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, WAYS)),
            ModelContractError,
            "1 (BatchNorm1d): the norm layer keeps running statistics, which leak from one task to the next; expected "
            "statistics of the batch. Build it with track_running_stats=False, or call distmeta.use_batch_statistics(",
            id="running statistics",
        ),
        pytest.param(
            Counts(),
            ModelContractError,
            "changes its own buffer calls in forward; expected a pure function",
            id="counter",
        ),
        pytest.param(
            spectral_norm(nn.Linear(8, WAYS)),
            ModelContractError,
            "buffer parametrizations.weight.0._u",
            id="spectral norm",
        ),
        pytest.param(
            Unused(),
            ModelContractError,
            "does not depend on the parameter spare.weight, spare.bias: it would never be trained",
            id="unused",
        ),
        pytest.param(
            Returns(torch.Tensor.detach), ModelContractError, "the parameter linear.weight, linear.bias", id="detached"
        ),
        pytest.param(
            half_precision_head(), ModelContractError, "have the types float32, float64; expected one", id="mixed types"
        ),
        pytest.param(nn.Linear(8, WAYS).half(), ModelContractError, "Call model.float() first", id="half"),
        pytest.param(nn.Flatten(), ModelContractError, "no parameter with requires_grad", id="no parameters"),
        pytest.param(frozen(nn.Linear(8, WAYS)), ModelContractError, "nothing to meta-train", id="all frozen"),
        pytest.param(
            infinite(), NonFiniteGradientError, "predictions for the first task are NaN or infinite", id="infinite"
        ),
        pytest.param(
            nn.Linear(9, WAYS),
            ModelContractError,
            "could not run the model on inputs of shape [25, 8]: RuntimeError: mat1 and mat2 shapes cannot be",
            id="raises",
        ),
    ],
)
def test_refused_in_words_that_name_the_fix(model, error, message):
    with pytest.raises(error) as caught:
        examine(model)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_models_own_exception_is_kept_as_the_cause():
    with pytest.raises(ModelContractError) as caught:
        examine(nn.Linear(9, WAYS))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_regressor_is_called_a_regressor():
    x = torch.rand(2, 10, 1)
    spec = TaskSpec((1,), 1, "regression", 10, 10)
    with pytest.raises(ModelContractError, match=r"a regressor: the model returned \[10, 2\].*expected \[10, 1\]"):
        probe(MAML(nn.Linear(1, 2)), spec, Episode(x, x, x, x))


def test_use_batch_statistics_mends_a_pretrained_network():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, WAYS))
    model(torch.rand(3, 1, 8, 8))  # running averages that are not the initial ones
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ModelContractError, match=r"1 \(BatchNorm2d\): the norm layer keeps running statistics"):
        examine(model, (1, 8, 8))
    assert use_batch_statistics(model) is model
    assert examine(model, (1, 8, 8)).learner.config.vectorise == "vmap-2"
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not list(model.buffers())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(model.train()(x), model.eval()(x))


def test_a_frozen_layer_is_allowed_and_stays():
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, WAYS))
    model[0].requires_grad_(False)
    found = examine(model)
    assert found.message is None
    assert list(trainable(model)) == ["2.weight", "2.bias"]
    assert set(found.learner.meta_gradient(trainable(model), problem()[1]).gradient) == {"2.weight", "2.bias"}


def test_probing_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, WAYS))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    examine(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_unused_parameters_are_named_even_if_nothing_is_used():
    class Constant(Unused):
        def forward(self, x):
            return torch.zeros(len(x), WAYS)

    for model, unused in ((Unused(), ["spare.weight", "spare.bias"]), (Constant(), list(trainable(Constant())))):
        one = Episode(*(part[0] for part in problem()[1]))
        assert unused_parameters(MAML(model), trainable(model), one) == unused


# -- the engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: nn.Linear(8, WAYS), id="linear"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, WAYS)), id="dropout"),
        pytest.param(Attends, id="attention"),
        pytest.param(Encodes, id="transformer"),
    ],
)
def test_vectorised_where_possible(model):
    torch.manual_seed(0)
    found = examine(model())
    assert (found.learner.config.vectorise, found.message) == ("vmap", None)


@pytest.mark.parametrize("model", [Branches, Asks, Recurs, lambda: Recurs(nn.GRU)])
def test_what_vmap_cannot_take_is_looped_with_a_message_and_the_same_numbers(model):
    torch.manual_seed(0)
    learner = MAML(model(), inner_lr=0.1)
    spec, episodes = problem()
    found = probe(learner, spec, episodes)
    assert found.learner.config.vectorise == "loop"
    assert found.message.startswith("torch.func.vmap cannot take this model (")
    assert "looping over tasks: slower, same numbers." in found.message
    assert ("cuDNN's recurrent kernels have no second derivative" in found.message) == isinstance(learner.model, Recurs)
    theta = trainable(learner.model)
    whole = found.learner.meta_gradient(theta, episodes)
    apart = [learner.with_config(vectorise="loop").meta_gradient(theta, one) for one in _single(episodes)]
    for name, part in whole.gradient.items():
        torch.testing.assert_close(part, sum(one.gradient[name] for one in apart))
    evaluated = found.learner.for_evaluation().evaluate(theta, episodes)
    assert set(evaluated) == {"loss", "accuracy", "accuracy_non_transductive", "nll", "roc_auc"}
    assert all(values.shape == (2,) and bool(torch.isfinite(values).all()) for values in evaluated.values())


def test_no_fused_recurrent_kernel_where_it_is_differentiated_twice():
    seen = []

    class Asks(Recurs):
        def forward(self, x):
            seen.append(torch.backends.cudnn.enabled)
            return super().forward(x)

    for layer, enabled in ((nn.LSTM, False), (nn.GRU, False)):
        learner = MAML(Asks(layer), inner_lr=0.1, vectorise="loop")
        _, episodes = problem()
        learner.meta_gradient(trainable(learner.model), episodes)
        learner.evaluate(trainable(learner.model), episodes)
        assert set(seen) == {enabled}
    assert torch.backends.cudnn.enabled


def _single(episodes):
    return [Episode(*(part[i : i + 1] for part in episodes)) for i in range(len(episodes.query_x))]


@pytest.mark.parametrize("model", [Branches, Recurs])
def test_vmap_by_order_is_refused_where_it_cannot_be(model):
    with pytest.raises(ModelContractError, match=r"vectorise=vmap but torch.func.vmap cannot take this model \("):
        examine(model(), vectorise="vmap")


def test_a_loop_by_order_is_a_loop_without_a_message():
    found = examine(nn.Linear(8, WAYS), vectorise="loop")
    assert (found.learner.config.vectorise, found.message) == ("loop", None)


def test_a_model_that_vmap_runs_wrongly_is_looped():
    class Differs(nn.Linear):
        def forward(self, x):
            mapped = torch._C._functorch.maybe_current_level() is not None
            return super().forward(x) * (1.1 if mapped else 1.0)

    found = examine(Differs(8, WAYS))
    assert found.learner.config.vectorise == "loop"
    assert "its gradient differs from a plain loop's by" in found.message


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_have_an_exact_second_order(kind):
    """In float64 against finite differences; and in float32, where torch picks other kernels, the same gradient."""
    torch.manual_seed(1)
    learner = MAML(Recurs(kind).double(), inner_lr=0.5, inner_steps=2, vectorise="loop")
    episodes = problem()[1].to(torch.device("cpu"), torch.float64)
    theta = trainable(learner.model)
    layout = ParamLayout.of(theta)
    gradient, point = layout.flatten(learner.meta_gradient(theta, episodes).gradient), layout.flatten(theta)

    def loss(vector):
        return float(learner.meta_gradient(layout.unflatten(vector), episodes).metrics["loss"].sum())

    for direction in np.random.default_rng(0).normal(size=(4, layout.size)):
        along = direction / np.linalg.norm(direction)
        difference = (loss(point + 1e-5 * along) - loss(point - 1e-5 * along)) / 2e-5
        assert difference == pytest.approx(gradient @ along, rel=1e-6, abs=1e-7)
    learner.model.float()
    theta, episodes = trainable(learner.model), episodes.to(torch.device("cpu"), torch.float32)
    single = ParamLayout.of(theta).flatten(learner.meta_gradient(theta, episodes).gradient)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", [Attends, Encodes])
def test_attention_evaluates_alike_in_both_engines(model):
    """In evaluation torch would take fused kernels here; they must not change what is reported."""
    torch.manual_seed(0)
    learner, (_, episodes) = MAML(model(), inner_lr=0.1, vectorise="vmap"), problem()
    theta = trainable(learner.model)
    mapped = learner.for_evaluation().evaluate(theta, episodes)
    looped = learner.with_config(vectorise="loop").for_evaluation().evaluate(theta, episodes)
    torch.testing.assert_close(mapped["loss"], looped["loss"], rtol=1e-5, atol=1e-6)


def test_dropout_is_noise_in_training_and_silent_in_evaluation():
    torch.manual_seed(0)
    learner = examine(nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, WAYS))).learner
    theta, (_, episodes) = trainable(learner.model), problem()
    losses = [learner.meta_gradient(theta, episodes).metrics["loss"] for _ in range(2)]
    assert not torch.equal(*losses)
    same = Episode(*(torch.stack([part[0], part[0]]) for part in episodes))
    first, second = learner.meta_gradient(theta, same).metrics["loss"]
    assert first != second  # every task of a chunk has noise of its own
    quiet = [learner.evaluate(theta, episodes)["loss"] for _ in range(2)]
    assert torch.equal(*quiet)


def test_evaluation_statistics_come_from_the_batch():
    """With batch statistics all queries help each other; the non-transductive figure has each query alone."""
    torch.manual_seed(0)
    spec, episodes = problem((1, 16, 16))
    learner = MAML(conv4(4), inner_lr=0.4, vectorise="loop").bind(spec)
    theta = trainable(learner.model)
    found = learner.evaluate(theta, episodes)
    fast = learner.fast_params(theta, unstack(episodes)[0])
    fast = {name: p.detach() for name, p in fast.items()}
    together = learner.forward(fast, episodes.query_x[0]).argmax(1)
    alone = torch.stack(
        [learner.forward(fast, torch.cat([episodes.support_x[0], q[None]]))[-1].argmax() for q in episodes.query_x[0]]
    )
    for name, guess in (("accuracy", together), ("accuracy_non_transductive", alone)):
        assert float(found[name][0]) == pytest.approx(float((guess == episodes.query_y[0]).float().mean()))
    assert float(found["loss"][0]) == pytest.approx(
        float(F.cross_entropy(learner.forward(fast, episodes.query_x[0]), episodes.query_y[0])), rel=1e-5
    )


class NoFactory(nn.Linear):
    """A class where a factory is expected."""


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoFactory, r"The model factory NoFactory fails on the tasks' spec: TypeError: .*to use a module class, give"),
        (lambda: nn.Linear(4, 5), r"A factory takes one argument, the TaskSpec"),
        (lambda spec: "a net", r"returned str; expected a torch.nn.Module"),
        ("a net", r"MAML was given a str as its model; expected an nn.Module, or a function"),
    ],
)
def test_what_is_no_factory_is_refused_in_words(model, message):
    with pytest.raises(ModelContractError, match=message):
        MAML(model).bind(TaskSpec((4,), 5, "classification", 5, 5))
