"""Adam of all tasks in place: the points of the plain descent, and theta left as it was."""

import pytest
import torch
from torch.func import vmap

from distmeta.learners.fast_adam import adam_descent
from distmeta.learners.functional import using_engine, vectorised
from distmeta.learners.inner_loop import first_order_descent
from distmeta.learners.one_level import one_level

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("optimizer", "settings"), [("adam", {}), ("adamw", {"beta1": 0.9, "weight_decay": 0.3})], ids=["Adam", "AdamW"]
)
def test_it_is_the_descent_of_the_plain_loop(optimizer, settings):
    torch.manual_seed(0)
    theta = {"kernel": torch.randn(2, 3, 2, 2), "weight": torch.randn(3, 4), "b": torch.ones(())}
    theta = {name: p.double() for name, p in theta.items()}
    before = {name: p.clone() for name, p in theta.items()}
    x = torch.randn(5, 3, 4).double()

    def descend(function, x, **more):
        def loss(p, step):
            image = x[None, :, :, None]
            y = torch.nn.functional.conv2d(image, p["kernel"][:, :, :, :1])
            return (y.sum() * p["b"] - step).square() + (x * p["weight"]).sum().cos() * p["kernel"].square().sum()

        return function(loss, theta, lr=0.05, steps=4, **settings, **more)

    def fused(x):
        level = one_level()
        assert level is not None
        return descend(adam_descent, x, level=level)

    with torch.no_grad(), vectorised(True), using_engine(2):
        found = vmap(fused)(x)
    with torch.no_grad(), vectorised(False):
        expected = [descend(first_order_descent, one, optimizer=optimizer) for one in x]
    for name, p in theta.items():
        torch.testing.assert_close(found[name], torch.stack([e[name] for e in expected]), rtol=1e-9, atol=1e-11)
        assert torch.equal(p, before[name])
