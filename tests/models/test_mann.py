"""Least-recently-used access against numbers worked out by hand (Santoro et al. 2016, equations 2 to 8)."""

import pytest
import torch

import distmeta
from distmeta import TaskSpec, mann
from distmeta.models.lstm import LSTMCell, lstm_step
from distmeta.models.mann import MANNNetwork, least_used, mann_network, next_usage, write, write_weights
from distmeta.models.ntm import NTMNetwork

SPEC = TaskSpec((7,), 3, "sequence", 0, 6)
TINY = {"size": 6, "slots": 8, "width": 4, "reads": 2}


def tiny(**changes):
    torch.manual_seed(0)
    return mann(**TINY | changes)(SPEC).double()


def test_the_least_used_slot():
    usage = torch.tensor([[0.5, 0.1, 0.9, 0.0], [0.0, 3.0, 2.0, 1.0], [1.0, 0.5, 0.5, 2.0]])
    assert least_used(usage).tolist() == [[[0, 0, 0, 1]], [[1, 0, 0, 0]], [[0, 1, 0, 0]]]


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (0.0, [0.0, 0.0, 1.0, 0.0]),  # the least used slot
        (1.0, [0.7, 0.3, 0.0, 0.0]),  # where it was read last
        (0.25, [0.175, 0.075, 0.75, 0.0]),
    ],
)
def test_a_write_goes_to_the_least_used_slot_or_where_it_was_read_last(gate, expected):
    looked, least = torch.tensor([[[0.7, 0.3, 0.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
    found = write_weights(torch.full((1, 1, 1), gate), looked, least)
    torch.testing.assert_close(found, torch.tensor([[expected]]))


def test_the_least_used_slot_is_erased_and_then_written():
    memory = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    weights = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    add = torch.tensor([[[10.0, 20.0], [-1.0, 1.0]]])
    least = torch.tensor([[[0.0, 0.0, 1.0]]])
    expected = torch.tensor([[[1.0 + 5, 2.0 + 10], [3.0 - 1, 4.0 + 1], [5.0, 10.0]]])
    torch.testing.assert_close(write(memory, weights, add, least), expected)


def test_usage_decays_and_grows_where_something_was_read_or_written():
    reading = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]], requires_grad=True)
    writing = torch.tensor([[[0.0, 0.0, 1.0], [0.25, 0.0, 0.75]]], requires_grad=True)
    found = next_usage(torch.tensor([[1.0, 2.0, 0.0]]), reading, writing, 0.9)
    torch.testing.assert_close(found, torch.tensor([[0.9 + 0.75, 1.8 + 1.5, 1.75]]))
    assert not found.requires_grad


def test_the_controller_is_an_lstm():
    """One product for the inputs of all steps and one for the rest are the LSTM cell's one product."""
    torch.manual_seed(0)
    cell, x, h, c = LSTMCell(3, 4).double(), *(torch.randn(2, n, dtype=torch.float64) for n in (3, 4, 4))
    expected = cell(x, (h, c))
    seen, recurring = cell.gates.weight.split([3, 4], 1)
    found = lstm_step(x @ seen.T + cell.gates.bias + h @ recurring.T, c)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def reference(net, x):
    """The paper's equations for one sequence ``[L, inputs]``, slot by slot and head by head."""
    heads, slots, width, size = net.reads, net.slots, net.width, net.size
    memory = torch.full((slots, width), 1e-6, dtype=x.dtype)
    usage = [1e-3 * i / (slots - 1) for i in range(slots)]
    looked, read = torch.zeros(heads, slots, dtype=x.dtype), torch.zeros(heads * width, dtype=x.dtype)
    h, c = torch.zeros(size, dtype=x.dtype), torch.zeros(size, dtype=x.dtype)
    outputs, reads, writes = [], [], []
    for step in x:
        gates = net.sees(step) + net.recurs.weight @ torch.cat([read, h])
        i, f, o, g = gates[:size], gates[size : 2 * size], gates[2 * size : 3 * size], gates[3 * size :]
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        interface = net.interface(h)
        gate = interface[:heads].sigmoid()
        key = interface[heads : heads + heads * width].reshape(heads, width).tanh()
        add = interface[heads + heads * width :].reshape(-1, width).tanh()
        add = add if len(add) else key  # of a head that writes its key
        least = min(range(slots), key=lambda slot: usage[slot])
        rows = [torch.zeros(width, dtype=x.dtype) if slot == least else memory[slot] for slot in range(slots)]
        written = torch.stack(
            [gate[n] * looked[n] + (1 - gate[n]) * torch.eye(slots, dtype=x.dtype)[least] for n in range(heads)]
        )
        memory = torch.stack([rows[i] + sum(written[n, i] * add[n] for n in range(heads)) for i in range(slots)])
        scores = [[key[n] @ m / (key[n].norm() * m.norm() + 1e-8) for m in memory] for n in range(heads)]
        looked = torch.stack([(net.strength * torch.stack(row)).softmax(0) for row in scores])
        for i in range(slots):
            usage[i] = net.usage_decay * usage[i] + float((looked[:, i].sum() + written[:, i].sum()).detach())
        read = torch.cat([sum(looked[n, i] * memory[i] for i in range(slots)) for n in range(heads)])
        outputs.append(net.output(torch.cat([read, h])))
        reads.append(looked)
        writes.append(written)
    return torch.stack(outputs), torch.stack(reads), torch.stack(writes)


@pytest.mark.parametrize("writes", ["own", "key"])
def test_the_network_is_the_papers_equations(writes):
    net, x = tiny(writes=writes), torch.randn(3, 9, 7, dtype=torch.float64)
    trace = net.trace(x)
    for i in range(3):
        for found, expected in zip((part[i] for part in trace), reference(net, x[i]), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_trace_is_where_the_heads_were():
    net, x = tiny(), torch.randn(2, 6, 7, dtype=torch.float64)
    trace = net.trace(x)
    assert trace.read.shape == trace.written.shape == (2, 6, 2, 8)
    assert torch.equal(trace.output, net(x))
    torch.testing.assert_close(trace.read.sum(-1), torch.ones(2, 6, 2, dtype=torch.float64))
    # The first write finds nothing read: the gate's share of it goes nowhere. Later ones are whole.
    torch.testing.assert_close(trace.written[:, 1:].sum(-1), torch.ones(2, 5, 2, dtype=torch.float64))
    assert bool((trace.written[:, 0].sum(-1) < 1).all())


def test_the_gradient_is_exact():
    """Against finite differences: which slot is least used is piecewise constant, so nothing is lost without it."""
    net = tiny(size=3, slots=5, width=2)
    x = torch.randn(1, 4, 7, dtype=torch.float64)
    names, weights = zip(*net.named_parameters(), strict=True)

    def run(*values):
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, weights, eps=1e-7, atol=1e-6, rtol=1e-4)


def test_a_sequence_alone_is_the_same_as_in_a_batch():
    net, x = tiny(), torch.randn(4, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]), rtol=1e-12, atol=1e-12)


def test_later_inputs_change_nothing_before_them():
    net, x = tiny(), torch.randn(1, 9, 7, dtype=torch.float64)
    other = x.clone()
    other[:, 5:] += 1
    assert torch.equal(net(x)[:, :5], net(other)[:, :5])
    assert not torch.equal(net(x)[:, 5:], net(other)[:, 5:])


def test_the_ablation_has_the_same_sizes():
    net = tiny(access="ntm")
    assert isinstance(net, NTMNetwork)
    assert isinstance(tiny(), MANNNetwork)
    trace = net.trace(torch.randn(2, 6, 7, dtype=torch.float64))
    assert trace.read.shape == trace.written.shape == (2, 6, 2, 8)
    assert net.output.weight.shape == tiny().output.weight.shape


def test_parameter_count_for_omniglot():
    spec = TaskSpec((405,), 5, "sequence", 0, 50)
    lstm, interface, output = 800 * (405 + 160 + 200 + 1), 201 * 4 * 81, 5 * (360 + 1)
    assert sum(p.numel() for p in mann()(spec).parameters()) == lstm + interface + output


def test_the_short_name_is_the_same_factory():
    assert distmeta.mann is mann_network
