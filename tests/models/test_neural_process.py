"""Neural processes: sizes of the published networks, and what each is made of."""

import pytest
import torch

from distmeta import TaskSpec, attentive_cnp, cnp, tnp

SPEC = TaskSpec((1,), 2, "regression", 10, 20, target_size=1)


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        (cnp, 232_194),
        (attentive_cnp, 347_266),
        (tnp, 221_122),
    ],
)
def test_sizes(factory, parameters):
    """Of layers counted by hand: widths 128, 128 and 64, see the docstrings."""
    assert sum(parameter.numel() for parameter in factory()(SPEC).parameters()) == parameters


def test_a_cnp_is_a_decoder_of_two_means_over_embedded_pairs():
    torch.manual_seed(0)
    model = cnp(width=8)(SPEC).double()
    x, y, query = (torch.randn(rows, 1, dtype=torch.float64) for rows in (4, 4, 3))
    means = [sum(one.before(torch.cat(pair)) for pair in zip(x, y, strict=True)) / 4 for one in model.encoders]
    both = torch.cat([one.after(mean) for one, mean in zip(model.encoders, means, strict=True)])
    hidden = model.decoder.query(query) + model.decoder.representation(both)
    torch.testing.assert_close(model(x[None], y[None], query[None])[0], model.decoder.rest(hidden))


def test_an_attentive_cnp_looks_where_the_query_is():
    """With keys that tell inputs well apart, the query at a support input has the value of that pair alone."""
    torch.manual_seed(0)
    model = attentive_cnp(width=8, heads=1)(SPEC).double()
    x, y = (torch.randn(1, 4, 1, dtype=torch.float64) for _ in range(2))
    encoded = model.encode_support(x, y)
    encoded["keys"] = 1e4 * torch.eye(4, 8, dtype=torch.float64)[None]
    model.cross_attention.query.weight.data = torch.eye(8, dtype=torch.float64)
    model.keys = torch.nn.Linear(1, 8).double()
    model.keys.weight.data, model.keys.bias.data = torch.zeros(8, 1), torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 0])
    model.keys = model.keys.double()
    expected = model.cross_attention.out(encoded["values"][:, 2])
    found = model.cross_attention(model.keys(x[:, :1]), encoded["keys"], encoded["values"], None)[:, 0]
    torch.testing.assert_close(found, expected)


def test_a_tnp_tells_a_support_row_of_value_0_from_a_query():
    """A query's target is 0 too: a mark of what is known is part of the token."""
    torch.manual_seed(0)
    model = tnp(width=8, layers=1)(SPEC)
    x, y = torch.randn(1, 1, 1), torch.zeros(1, 1, 1)
    support = model.embedding(torch.cat([model.pairs(x, y), torch.ones(1, 1, 1)], 2))
    query = model.embedding(torch.nn.functional.pad(x, (0, 2)))
    assert (support - query).abs().max() > 1e-3
