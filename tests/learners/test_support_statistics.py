"""Batch statistics of the support set, recorded once and used for every other input."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from distmeta.errors import ModelContractError
from distmeta.learners.functional import vectorised
from distmeta.learners.support_statistics import FixedStatistics, keeping_statistics


def network(affine=True):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4, affine=affine, track_running_stats=False), nn.BatchNorm1d(6, track_running_stats=False)]
    for norm in norms:
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norms[0], nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), norms[1]).double()


def by_running_averages(model, support):
    """The same function by torch's own means: layers whose running averages are the support set's statistics."""
    fixed = nn.Sequential(
        *model[:1], nn.BatchNorm2d(4, affine=model[1].affine), *model[2:5], nn.BatchNorm1d(6)
    ).double()
    for place in (1, 5):
        fixed[place].load_state_dict(model[place].state_dict(), strict=False)
    hidden = support
    for place, layer in enumerate(fixed):
        if place in (1, 5):
            dims = [d for d in range(hidden.dim()) if d != 1]
            layer.running_mean, layer.running_var = hidden.mean(dims), hidden.var(dims, correction=0)
            layer.eval()
        hidden = layer(hidden)
    return fixed.eval()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_inputs_are_normalised_by_the_support_set(affine, grad):
    model, support, x = network(affine), torch.rand(5, 1, 6, 6).double(), 3 * torch.rand(7, 1, 6, 6).double()
    with torch.set_grad_enabled(grad):
        fixed = keeping_statistics(model, lambda: model(support))
        found = fixed(x)
    with torch.no_grad():
        torch.testing.assert_close(found, by_running_averages(model, support)(x))
        for one, row in zip(x, found, strict=True):
            torch.testing.assert_close(fixed(one[None])[0], row)
        torch.testing.assert_close(fixed(support), model(support))


def test_the_gradient_goes_through_the_statistics():
    model, support, x = network(), torch.rand(5, 1, 6, 6).double(), torch.rand(3, 1, 6, 6).double()
    weight = model[0].weight

    def loss(w):
        with torch.no_grad():
            weight.copy_(w)
        fixed = keeping_statistics(model, lambda: model(support))
        return fixed(x).square().sum()

    start = weight.detach().clone()
    (slope,) = torch.autograd.grad(loss(start), weight)
    direction, h = torch.randn_like(start), 1e-6
    with torch.no_grad():
        difference = (loss(start + h * direction) - loss(start - h * direction)) / (2 * h)
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-5, atol=1e-7)


def test_tasks_of_a_vmap_have_statistics_of_their_own():
    model = network()
    supports, queries = torch.rand(3, 5, 1, 6, 6).double(), torch.rand(3, 4, 1, 6, 6).double()

    def task(support, query):
        return keeping_statistics(model, lambda: model(support))(query)

    with torch.no_grad(), vectorised(True):
        found = vmap(task)(supports, queries)
    with torch.no_grad():
        for support, query, row in zip(supports, queries, found, strict=True):
            torch.testing.assert_close(task(support, query), row)


def test_layers_that_need_no_statistics_are_left_alone():
    layers = nn.Sequential(nn.GroupNorm(1, 4), nn.LayerNorm(4), nn.BatchNorm1d(4)).eval()
    x = torch.rand(3, 4)
    assert keeping_statistics(layers, lambda: layers(x)) is layers


def test_torch_batch_norm_is_found_too():
    def model(x):
        return torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)

    support, x = torch.rand(5, 3), torch.rand(4, 3)
    fixed = keeping_statistics(model, lambda: model(support))
    torch.testing.assert_close(fixed(x), (x - support.mean(0)) / (support.var(0, correction=0) + 1e-5).sqrt())


def test_a_norm_that_the_support_set_did_not_reach_is_refused():
    def model(x):
        y = F.batch_norm(x, None, None, training=True)
        return F.batch_norm(y, None, None, training=True) if len(x) == 2 else y

    fixed = keeping_statistics(model, lambda: model(torch.rand(5, 3)))
    assert isinstance(fixed, FixedStatistics)
    fixed(torch.rand(3, 3))
    with pytest.raises(ModelContractError, match="called batch norm 1 times on the support set and more often"):
        fixed(torch.rand(2, 3))
