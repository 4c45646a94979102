"""What every set model keeps to: what a prediction depends on, padding, its two halves, gradients, refusals."""

import pytest
import torch

from distmeta import TaskSpec, attentive_cnp, cnp, conv4, image_context, table_transformer, tnp
from distmeta.errors import ModelContractError
from distmeta.models.set_attention import SetModel

ROWS = TaskSpec((3,), 3, "classification", 10, 6)
PIXELS = TaskSpec((2,), 6, "regression", 10, 6, target_size=3)
IMAGES = TaskSpec((1, 16, 16), 3, "classification", 10, 6)
SMALL_ENCODER = conv4(8, pool="max", norm="group", head=False)
ON_ROWS = {
    "table_transformer": table_transformer(width=16, heads=2),
    "cnp": cnp(width=16),
    "attentive_cnp": attentive_cnp(width=16, heads=2),
    "tnp": tnp(width=16, heads=2, layers=2),
}
CASES = {
    **{f"{name}-classes": (factory, ROWS) for name, factory in ON_ROWS.items()},
    **{f"{name}-values": (factory, PIXELS) for name, factory in ON_ROWS.items()},
    "image_context": (image_context(SMALL_ENCODER, width=16, heads=2), IMAGES),
}
every = pytest.mark.parametrize("case", CASES)
of_classes = pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("-values")])


def model_and_tasks(case, tasks=2, support=10, queries=6):
    """The model of a case, with the support inputs, targets and query inputs of ``tasks`` tasks."""
    factory, spec = CASES[case]
    torch.manual_seed(0)
    model = factory(spec)
    support_x, query_x = (torch.randn(tasks, rows, *spec.input_shape) for rows in (support, queries))
    if spec.kind == "regression":
        return model, support_x, torch.randn(tasks, support, spec.target_size), query_x
    return model, support_x, torch.randint(spec.outputs, (tasks, support)), query_x


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize(("tasks", "support", "queries"), [(1, 1, 1), (3, 12, 5)])
def test_any_number_of_tasks_rows_and_queries(case, tasks, support, queries):
    model, *inputs = model_and_tasks(case, tasks, support, queries)
    found = model(*inputs)
    assert found.shape == (tasks, queries, CASES[case][1].outputs)
    assert found.isfinite().all()


@every
def test_predictions_depend_on_the_support_set_and_on_the_query(case):
    """Else every test of what they do not depend on would pass by itself."""
    model, support_x, support_y, query_x = model_and_tasks(case)
    found = model(support_x, support_y, query_x)
    assert (found - model(support_x, support_y.roll(1, 1), query_x)).abs().max() > 1e-3
    assert (found - model(support_x.roll(1, 1), support_y, query_x)).abs().max() > 1e-3
    assert (found[:, 1:] - found[:, :1]).abs().max() > 1e-3


@every
def test_the_order_of_support_rows_does_not_matter(case):
    model, support_x, support_y, query_x = model_and_tasks(case)
    order = torch.randperm(support_x.shape[1])
    close(model(support_x[:, order], support_y[:, order], query_x), model(support_x, support_y, query_x))


@every
def test_queries_alone_or_together(case):
    model, support_x, support_y, query_x = model_and_tasks(case)
    alone = [model(support_x, support_y, query_x[:, [index]]) for index in range(query_x.shape[1])]
    close(torch.cat(alone, 1), model(support_x, support_y, query_x))


@every
def test_no_gradient_runs_from_a_prediction_to_another_query_or_task(case):
    """Exactly none: closeness would not show a small influence."""
    model, support_x, support_y, query_x = model_and_tasks(case)
    support_x.requires_grad_()
    query_x.requires_grad_()
    gradient = torch.autograd.grad(model(support_x, support_y, query_x)[0, 2].sum(), [support_x, query_x])
    of_support, of_queries = (part.flatten(2).abs().amax(2) for part in gradient)
    assert (of_support[0] > 0).all()
    assert of_queries[0, 2] > 0
    of_queries[0, 2] = 0
    assert not of_support[1:].any()
    assert not of_queries.any()


@every
def test_tasks_alone_or_together(case):
    model, *inputs = model_and_tasks(case, tasks=3)
    alone = [model(*(part[[task]] for part in inputs)) for task in range(3)]
    close(torch.cat(alone), model(*inputs))


@of_classes
def test_padding_rows_change_nothing(case):
    """In one task of two, with values of their own, so that a model that reads them is found."""
    model, support_x, support_y, query_x = model_and_tasks(case)
    expected = model(support_x[:1, :7], support_y[:1, :7], query_x[:1]), model(support_x, support_y, query_x)[1:]
    support_x[0, 7:], support_y[0, 7:] = 50.0, -1
    found = model(support_x, support_y, query_x)
    close(found[:1], expected[0])
    close(found[1:], expected[1])


@of_classes
def test_a_task_of_padding_alone_is_finite(case):
    """Another task of the chunk must not become NaN in the sum."""
    model, support_x, support_y, query_x = model_and_tasks(case)
    support_y[0] = -1
    found = model(support_x, support_y, query_x)
    found.sum().backward()
    assert found.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@every
def test_the_two_halves_are_the_whole(case):
    model, support_x, support_y, query_x = model_and_tasks(case)
    encoded = model.encode_support(support_x, support_y)
    assert {part.shape[0] for part in encoded.values()} == {2}
    found = torch.cat([model.decode_queries(encoded, part) for part in query_x.split(4, 1)], 1)
    close(found, model(support_x, support_y, query_x))


@every
def test_every_parameter_has_a_gradient(case):
    model, *inputs = model_and_tasks(case)
    model(*inputs).square().sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().max() > 0]
    assert without == []


@every
def test_the_gradient_is_that_of_finite_differences(case):
    model, support_x, support_y, query_x = model_and_tasks(case)
    model, support_x, query_x = model.double(), support_x.double(), query_x.double()
    support_y = support_y.double() if support_y.is_floating_point() else support_y
    weights = torch.randn(2, 6, CASES[case][1].outputs, dtype=torch.float64)

    def loss():
        return (model(support_x, support_y, query_x) * weights).sum()

    loss().backward()
    for parameter in list(model.parameters())[::5]:
        along, step, start = torch.randn_like(parameter), 1e-6, parameter.data.clone()
        parameter.data = start + step * along
        above = loss()
        parameter.data = start - step * along
        below = loss()
        parameter.data = start
        expected = (parameter.grad * along).sum()
        torch.testing.assert_close((above - below) / (2 * step), expected, rtol=1e-4, atol=1e-6)


@every
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, q: (x[0], y[0], q[0]), r"x\[None\]"),
        (lambda x, y, q: (x, y, q[:1]), "support sets and queries of T tasks"),
        (lambda x, y, q: (x, y[:, 1:], q), "targets of shape"),
        (lambda x, y, q: (x[:, :0], y[:, :0], q), "at least one support row"),
        (lambda x, y, q: (x, y, q[..., 1:]), "inputs of that shape"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(case, change, message):
    model, *inputs = model_and_tasks(case)
    with pytest.raises(ModelContractError, match=message):
        model(*change(*inputs))


@pytest.mark.parametrize("name", ON_ROWS)
def test_rows_alone_are_taken(name):
    with pytest.raises(ModelContractError, match=rf"{name} takes rows.*\[1, 16, 16\].*image_context\(\)"):
        ON_ROWS[name](IMAGES)


@pytest.mark.parametrize("factory", [table_transformer, attentive_cnp, tnp, image_context])
def test_heads_that_do_not_divide_the_width_are_refused(factory):
    with pytest.raises(ModelContractError, match=r"width=10, heads=4.*multiple of 4"):
        factory(width=10, heads=4)


def test_someone_elses_set_model_of_two_halves():
    class Nearest(SetModel):
        def encode_support(self, support_x, support_y):
            return {"x": support_x, "y": support_y}

        def decode_queries(self, encoded, query_x):
            nearest = torch.cdist(query_x, encoded["x"]).argmin(2)
            return torch.nn.functional.one_hot(encoded["y"].gather(1, nearest), 3).float()

    support_x, support_y = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    assert Nearest(ROWS)(support_x, support_y, support_x).argmax(2).equal(support_y)
