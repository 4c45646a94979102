"""The LSTM's step, cell and plain weights against torch's; the size of the network that Graves et al. compare with."""

import pytest
import torch
from torch import nn

from distmeta import TaskSpec, lstm
from distmeta.models.lstm import LSTMCell, LSTMWeights
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
    torch.testing.assert_close(weights_of(net).unroll(sequence()), expected, rtol=1e-12, atol=1e-14)


def test_both_directions_are_torchs():
    net = reference(bidirectional=True)
    expected, _ = net(sequence())
    forwards = weights_of(net).unroll(sequence())
    backwards = weights_of(net, "_reverse").unroll(sequence().flip(0)).flip(0)
    torch.testing.assert_close(torch.cat([forwards, backwards], -1), expected, rtol=1e-12, atol=1e-14)


def test_one_step_of_a_batch_is_torchs_cell():
    torch.manual_seed(0)
    cell = nn.LSTMCell(INPUTS, WIDTH).double()
    h, c = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    of_torch = cell.weight_ih, cell.weight_hh, (cell.bias_ih + cell.bias_hh).detach()
    found = LSTMWeights(*map(in_our_order, of_torch)).step(sequence()[:5], h, c)
    for part, expected in zip(found, cell(sequence()[:5], (h, c)), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_its_gradient_is_torchs():
    net = reference()
    weights_of(net).unroll(sequence()).square().sum().backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    net(sequence())[0].square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden", [None, 9])
def test_first_weights_depend_on_the_generator_alone_and_lie_within_torchs_bounds(hidden):
    one, same, other = (LSTMWeights.draw(rng(seed, "init"), INPUTS, WIDTH, hidden) for seed in (0, 0, 1))
    assert [tuple(w.shape) for w in one] == [(16, INPUTS), (16, hidden or WIDTH), (16,)]
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.x, other.x)
    assert 0.3 < max(float(w.abs().max()) for w in one) <= WIDTH**-0.5


def test_lstm_cell_is_torchs():
    torch.manual_seed(0)
    ours, theirs = LSTMCell(3, 5).double(), nn.LSTMCell(3, 5).double()
    with torch.no_grad():  # torch's order of gates is input, forget, candidate, output
        i, f, g, o = torch.cat([theirs.weight_ih, theirs.weight_hh], 1).chunk(4)
        ours.gates.weight.copy_(torch.cat([i, f, o, g]))
        i, f, g, o = (theirs.bias_ih + theirs.bias_hh).chunk(4)
        ours.gates.bias.copy_(torch.cat([i, f, o, g]))
    state = other = (torch.rand(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64))
    for x in torch.rand(4, 2, 3, dtype=torch.float64):
        state, other = ours(x, state), theirs(x, other)
        torch.testing.assert_close(state, other)


@pytest.mark.parametrize(
    ("task", "size", "inputs", "outputs", "paper"),
    [
        ("copy", 256, 10, 9, 1_352_969),
        ("repeat copy", 512, 8, 7, 5_312_007),
        ("associative recall", 256, 8, 6, 1_344_518),
        ("n-grams", 128, 1, 1, 331_905),
    ],
)
def test_parameters_of_the_papers_lstm(task, size, inputs, outputs, paper):
    """What table 3 counts, exactly: three layers with one bias each and learned first states, the input to every layer,
    every layer to the output. Ours is torch's: two biases, first states of zero, no connections past a layer."""
    recurrent = 3 * 4 * size * (size + 1) + 2 * 4 * size * size + 4 * size * inputs
    skips = 2 * 4 * size * inputs
    first_states = 3 * 2 * size
    assert recurrent + skips + first_states + (3 * size + 1) * outputs == paper
    net = lstm(size=size, layers=3)(TaskSpec((inputs,), outputs, "sequence", support=0, queries=41))
    assert sum(p.numel() for p in net.parameters()) == recurrent + 3 * 4 * size + (size + 1) * outputs


def test_nothing_is_seen_of_later_steps_or_of_other_sequences():
    torch.manual_seed(0)
    net = lstm(size=6, layers=2)(TaskSpec((4,), 2, "sequence", support=0, queries=7))
    x = torch.rand(2, 7, 4)
    changed = x.clone()
    changed[0, 4:] += 1
    before, after = net(x), net(changed)
    assert torch.equal(before[0, :4], after[0, :4])
    assert not torch.equal(before[0, 4], after[0, 4])
    torch.testing.assert_close(before[1], after[1])


def test_inputs_may_have_any_shape():
    shaped = TaskSpec((2, 3), 5, "sequence", support=0, queries=7)
    assert lstm(size=4, layers=1)(shaped)(torch.zeros(2, 7, 2, 3)).shape == (2, 7, 5)
