"""The networks of the papers: shapes, parameter counts, and what they cannot take."""

import pytest
import torch
from torch import nn

from distmeta import TaskSpec, adapter, conv4, koch_cnn, mlp
from distmeta.errors import ModelContractError
from distmeta.learners.probe import refuse_running_statistics


def spec(shape=(1, 28, 28), outputs=5):
    return TaskSpec(shape, outputs, "classification", outputs, outputs)


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("pool", ["stride", "max"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 84, 84), (3, 32, 48), (2, 16, 16), (1, 105, 105)])
def test_conv4_takes_any_image_size(shape, pool, norm):
    net = conv4(8, pool=pool, norm=norm)(spec(shape, outputs=7))
    assert net(torch.zeros(3, *shape)).shape == (3, 7)
    refuse_running_statistics(net)


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("shape", [(1,), (1, 28, 28), (4, 5)])
def test_mlp_takes_any_input(shape, norm):
    net = mlp((6, 4), norm=norm)(spec(shape, outputs=7))
    assert net(torch.zeros(3, *shape)).shape == (3, 7)
    refuse_running_statistics(net)


def count(net):
    return sum(p.numel() for p in net.parameters())


def conv4_count(channels, width, features, outputs):
    """Four 3x3 convolutions without biases (batch statistics cancel them), four pairs of norm weights, a head."""
    return 9 * width * (channels + 3 * width) + 4 * 2 * width + (features + 1) * outputs


@pytest.mark.parametrize(
    ("net", "shape", "outputs", "parameters"),
    [
        # Omniglot, 28x28, strides: 28, 14, 7, 4, 2, so the head sees 64 x 2 x 2.
        pytest.param(conv4(64), (1, 28, 28), 5, conv4_count(1, 64, 64, 5), id="omniglot 5-way"),
        pytest.param(conv4(64), (1, 28, 28), 20, conv4_count(1, 64, 64, 20), id="omniglot 20-way"),
        # Pooling: 28, 14, 7, 3, 1: the 64 numbers that MAML's text gives for the last hidden layer.
        pytest.param(conv4(64, pool="max"), (1, 28, 28), 5, conv4_count(1, 64, 64, 5), id="omniglot pooled"),
        # MiniImagenet with 32 filters: the 32,901 that peers print, less the 4 x 32 biases that have no effect.
        pytest.param(conv4(32, pool="max"), (3, 84, 84), 5, 32_901 - 128, id="miniimagenet 32"),
        # The 113,088 of Conv-4-64 without its head, less 4 x 64 biases, plus a head of 5 x (1600 + 1).
        pytest.param(conv4(64, pool="max"), (3, 84, 84), 5, 113_088 - 256 + 8005, id="miniimagenet 64"),
        # Group norm keeps the convolutions' biases: they matter there.
        pytest.param(conv4(64, norm="group"), (1, 28, 28), 5, conv4_count(1, 64, 64, 5) + 256, id="group norm"),
        # 784-256-128-64-64-5 with biases.
        pytest.param(mlp(), (1, 28, 28), 5, 246_597, id="mlp omniglot"),
        # With batch norm a hidden layer has two norm weights in place of its bias.
        pytest.param(mlp(norm="batch"), (1, 28, 28), 5, 246_597 + 512, id="mlp omniglot batch norm"),
        # 1-40-40-1 with biases.
        pytest.param(mlp((40, 40)), (1,), 1, 1_761, id="sinusoid"),
        pytest.param(mlp(()), (6,), 3, 21, id="linear"),
    ],
)
def test_parameter_counts(net, shape, outputs, parameters):
    assert count(net(spec(shape, outputs))) == parameters


@pytest.mark.parametrize("build", [conv4(8), conv4(8, norm="group"), mlp((8, 8)), mlp((8,), norm="layer")])
def test_the_head_is_the_last_module(build):
    """ANIL's ``adapt="head"`` goes by this."""
    names = [name for name, _ in build(spec()).named_parameters()]
    assert names[-2:] == ["head.weight", "head.bias"]
    assert all(name.startswith(("features.", "head.")) for name in names)


def test_norms_are_the_ones_asked_for():
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "layer": nn.GroupNorm}
    for norm, kind in kinds.items():
        assert sum(isinstance(m, kind) for m in conv4(12, norm=norm)(spec()).modules()) == 4
    assert {m.num_groups for m in conv4(12, norm="group")(spec()).modules() if isinstance(m, nn.GroupNorm)} == {4}
    assert {m.num_groups for m in conv4(12, norm="layer")(spec()).modules() if isinstance(m, nn.GroupNorm)} == {1}


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (conv4(), (1,), r"conv4 takes images \[C, H, W\]; the tasks have inputs of shape \[1\]. Use mlp\(\)"),
        (conv4(), (28, 28), r"inputs of shape \[28, 28\]"),
        (conv4(pool="max"), (1, 15, 28), r"\[1, 15, 28\] is too small. Use images of at least 16x16"),
    ],
)
def test_what_cannot_be_built(build, shape, message):
    with pytest.raises(ModelContractError, match=message):
        build(spec(shape))


def test_the_smallest_image_that_pools():
    assert conv4(4, pool="max")(spec((1, 16, 16)))(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    assert conv4(4)(spec((1, 2, 2)))(torch.zeros(2, 1, 2, 2)).shape == (2, 5)


def test_koch_cnn_has_the_size_of_the_paper():
    """Koch et al. 2015, figure 4; with the 4,096 + 1 weights of the distance, the 38,951,745 that peers print."""
    convolutions = [64 * (100 + 1), 128 * (64 * 49 + 1), 128 * (128 * 16 + 1), 256 * (128 * 16 + 1)]
    net = koch_cnn()(spec((1, 105, 105), outputs=20))
    assert count(net) == sum(convolutions) + 4096 * (9216 + 1) == 38_951_745 - 4097
    features = net(torch.rand(2, 1, 105, 105))
    assert features.shape == (2, 4096)
    assert ((features > 0) & (features < 1)).all(), "sigmoid units"
    refuse_running_statistics(net)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 28, 28), (784,), (1, 105, 60)])
def test_koch_cnn_needs_large_images(shape):
    with pytest.raises(ModelContractError, match=r"at least 65x65.*--size 105.*conv4"):
        koch_cnn()(spec(shape))


def test_an_adapter_changes_no_direction_before_training_and_any_afterwards():
    x = torch.randn(4, 12)
    net = adapter(rank=2, scale=3.0)(spec((12,)))
    torch.testing.assert_close(net(x), 3 * x / x.norm(dim=1, keepdim=True))
    assert count(net) == 2 * 2 * 12 + 1
    nn.init.normal_(net.up.weight)
    change = net(x) / 3 - x / x.norm(dim=1, keepdim=True)
    assert torch.linalg.matrix_rank(change) == 2
    assert adapter(rank=2)(spec((3, 2, 2)))(torch.randn(4, 3, 2, 2)).shape == (4, 12)


def test_an_adapter_of_zeros_has_zeros():
    assert not adapter(rank=2)(spec((12,)))(torch.zeros(1, 12)).any()
