"""The plain LSTM against torch's."""

import pytest
import torch
from torch import nn

from distmeta.learners.recurrent import LSTMWeights, init_lstm, lstm, lstm_step
from distmeta.seeding import rng

INPUTS, WIDTH, LENGTH = 3, 4, 6


def reference(bidirectional=False):
    torch.manual_seed(0)
    return nn.LSTM(INPUTS, WIDTH, bidirectional=bidirectional).double()


def weights_of(net, suffix=""):
    bias = net.get_parameter(f"bias_ih_l0{suffix}") + net.get_parameter(f"bias_hh_l0{suffix}")  # torch has it twice
    of_torch = net.get_parameter(f"weight_ih_l0{suffix}"), net.get_parameter(f"weight_hh_l0{suffix}"), bias
    return LSTMWeights(*map(in_our_order, of_torch))


def in_our_order(gates):
    """Rows of i, f, g, o, as torch has them, as those of i, f, o, g."""
    i, f, g, o = gates.chunk(4)
    return torch.cat([i, f, o, g])


def sequence():
    return torch.randn(LENGTH, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_sequence_is_read_as_torch_reads_it():
    net = reference()
    expected, _ = net(sequence())
    torch.testing.assert_close(lstm(sequence(), weights_of(net)), expected, rtol=1e-12, atol=1e-14)


def test_both_directions_are_torchs():
    net = reference(bidirectional=True)
    expected, _ = net(sequence())
    forwards = lstm(sequence(), weights_of(net))
    backwards = lstm(sequence().flip(0), weights_of(net, "_reverse")).flip(0)
    torch.testing.assert_close(torch.cat([forwards, backwards], -1), expected, rtol=1e-12, atol=1e-14)


def test_one_step_of_a_batch_is_torchs_cell():
    torch.manual_seed(0)
    cell = nn.LSTMCell(INPUTS, WIDTH).double()
    h, c = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    of_torch = cell.weight_ih, cell.weight_hh, (cell.bias_ih + cell.bias_hh).detach()
    found = lstm_step(sequence()[:5], h, c, LSTMWeights(*map(in_our_order, of_torch)))
    for part, expected in zip(found, cell(sequence()[:5], (h, c)), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_its_gradient_is_torchs():
    net = reference()
    lstm(sequence(), weights_of(net)).square().sum().backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    net(sequence())[0].square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden", [None, 9])
def test_first_weights_depend_on_the_generator_alone_and_lie_within_torchs_bounds(hidden):
    one, same, other = (init_lstm(rng(seed, "init"), INPUTS, WIDTH, hidden) for seed in (0, 0, 1))
    assert [tuple(w.shape) for w in one] == [(16, INPUTS), (16, hidden or WIDTH), (16,)]
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.x, other.x)
    assert 0.3 < max(float(w.abs().max()) for w in one) <= WIDTH**-0.5
