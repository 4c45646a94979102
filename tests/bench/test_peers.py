"""The same step in other libraries: stand-ins for them, one honest, one that computes something else, one absent."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distmeta.bench import peer_loops, peers
from distmeta.bench.peer_process import Peer
from distmeta.bench.peers import Peers, case_named
from distmeta.bench.picture import plot
from distmeta.bench.statistics import paired_ratio
from distmeta.errors import ConfigError, RuntimeFailure

STAND_IN = """
import torch

class MAML:
    def __init__(self, model, lr, first_order, params=None):
        self.model, self.lr = model, lr
        self.params = params or dict(model.named_parameters())

    def clone(self):
        return MAML(self.model, self.lr, False)

    def __call__(self, x):
        return torch.func.functional_call(self.model, self.params, (x,))

    def adapt(self, loss):
        moves = torch.autograd.grad(loss, list(self.params.values()), create_graph=True)
        self.params = {name: p - self.lr * g for (name, p), g in zip(self.params.items(), moves)}
"""

# As higher's, but it leaves out the second derivatives.
HIGHER = """
import contextlib
print("a greeting on standard output")
from stand_in import MAML
import torch

class FirstOrder(MAML):
    def step(self, loss):
        moves = torch.autograd.grad(loss, list(self.params.values()))
        self.params = {name: p - self.lr * g for (name, p), g in zip(self.params.items(), moves)}

@contextlib.contextmanager
def innerloop_ctx(model, optimizer, copy_initial_weights):
    assert not copy_initial_weights
    fast = FirstOrder(model, optimizer.param_groups[0]["lr"], False)
    yield fast, fast
"""

# As torchopt's: the model's own parameters are replaced, and put back.
TORCHOPT = """
import torch

class MetaSGD:
    def __init__(self, model, lr):
        self.model, self.lr = model, lr

    def step(self, loss):
        places = [(m, name, p) for m in self.model.modules() for name, p in m._parameters.items() if p is not None]
        moves = torch.autograd.grad(loss, [p for _, _, p in places], create_graph=True)
        for (m, name, p), g in zip(places, moves):
            m._parameters[name] = p - self.lr * g

def extract_state_dict(target, by, detach_buffers=False):
    if isinstance(target, MetaSGD):
        return None
    return [(m, dict(m._parameters)) for m in target.modules()]

def recover_state_dict(target, state):
    for m, parameters in state or ():
        m._parameters.update(parameters)
"""

TINY = {"tasks.size": 16, "tasks.ways": 2, "tasks.queries": 2, "outer.meta_batch_size": 3, "runtime.chunk_size": 2}


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """A folder of stand-ins that other processes find; the package of learn2learn itself must not be run."""
    folder = tmp_path / "installed"
    (folder / "learn2learn").mkdir(parents=True)
    (folder / "learn2learn" / "__init__.py").write_text("import a_library_of_datasets")
    (folder / "learn2learn" / "algorithms.py").write_text("from stand_in import MAML")
    (folder / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder
    for module in ("learn2learn", "learn2learn.algorithms", "stand_in", "torchopt"):
        sys.modules.pop(module, None)


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr(peers, "_ray_is_installed", lambda: False)


@pytest.mark.parametrize("name", ["omniglot-2", "omniglot15-1", "miniimagenet-1"])
def test_the_loops_compute_what_distmeta_does(libraries, monkeypatch, tmp_path, name):
    (libraries / "torchopt.py").write_text(TORCHOPT)
    monkeypatch.syspath_prepend(libraries)
    case = peers._Case(name, case_named(name).with_overrides(TINY))
    file, losses, gradient = case.prepare(tmp_path)
    for loop in ("learn2learn", "torchopt", "vmap"):
        answers = peer_loops.Answers(loop)
        assert answers.load("a", file) == {}
        theirs = answers.check("a", tasks=case.checked, file=str(tmp_path / "gradient.pt"))["losses"]
        np.testing.assert_allclose(theirs, losses, rtol=1e-10)
        other = torch.load(tmp_path / "gradient.pt", weights_only=True).numpy()
        assert np.linalg.norm(other - gradient) < 1e-10 * np.linalg.norm(gradient)
        before = torch.get_num_threads()
        assert answers.measure("a", threads=1, calls=2)["seconds"] > 0
        torch.set_num_threads(before)
        # Two steps of Adam were taken, so what was compared is no longer so.
        assert answers.check("a", tasks=2, file=str(tmp_path / "gradient.pt"))["losses"] != pytest.approx(theirs)


def test_only_what_computes_the_same_is_timed(libraries, no_ray, tmp_path):
    (libraries / "higher.py").write_text(HIGHER)
    three = ("learn2learn", "higher", "torchopt")
    record = Peers(["omniglot-1"], overrides=TINY, peers=three, threads=1).run(0.3)
    assert [row.at["system"] for row in record.rows] == ["learn2learn", "distmeta, 1 thread"]
    library, ours = record.rows
    assert library.figures == {"times_best_peer": 1}
    assert ours.figures == {"times_best_peer": paired_ratio(ours.repetitions, library.repetitions)[0]}
    told = "\n".join(record.notes)
    assert "higher is not timed on omniglot-1, for it computes something else: losses differ by " in told
    assert "torchopt is absent (ModuleNotFoundError: No module named 'torchopt') and not measured." in told
    assert f"{sys.executable} -m pip install torchopt==" in told
    assert "learn2learn of unknown version (torch" in told
    assert "ray is not installed" in told
    assert "times best peer is relative to the fastest of learn2learn, higher, torchopt; plain vmap" in told
    assert "is not counted among the peers" in told
    assert (record.case["omniglot-1.tasks.size"], record.case["threads"]) == (16, 1)
    assert plot(record, tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_peer_that_is_ended_leaves_the_others(libraries, no_ray):
    """As by the kernel, where a step needs more memory than there is; the comparison takes fewer tasks."""
    end = "next(model.parameters()).dtype == torch.float64 or os.kill(os.getpid(), 9)"
    (libraries / "torchopt.py").write_text("import os" + TORCHOPT.replace("= model, lr", f"= model, lr; {end}"))
    record = Peers(["omniglot-1"], overrides=TINY, peers=("torchopt", "learn2learn"), threads=1).run(0.3)
    assert [row.at["system"] for row in record.rows] == ["learn2learn", "distmeta, 1 thread"]
    assert "torchopt is not timed on omniglot-1: The Python process of torchopt ended with code -9" in "".join(
        record.notes
    )


def test_a_case_is_a_size_and_inner_steps():
    one, fifteen, images = (case_named(f"{name}-5") for name in ("omniglot", "omniglot15", "miniimagenet"))
    assert [e.tasks.spec.queries for e in (one, fifteen, images)] == [5, 75, 75]
    assert images.tasks.spec.input_shape == (3, 84, 84)
    assert [e.outer.meta_batch_size for e in (one, fifteen, images)] == [32, 32, 4]
    with pytest.raises(ConfigError, match=r"there is no case 'omniglott-1'.* Did you mean 'omniglot-1'"):
        case_named("omniglott-1")


def test_what_a_library_raises_is_told():
    with Peer("vmap", Path(sys.executable)) as peer:
        assert (peer.absent, peer.version) == ("", torch.__version__)
        with pytest.raises(RuntimeFailure, match=r"vmap raised FileNotFoundError: .*absent.pt'. Expected an answer"):
            peer.ask("load", case="a", file="absent.pt")


def test_an_interpreter_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"--python .*absent is no program; expected"):
        Peer("higher", tmp_path / "absent")
    false = tmp_path / "false"
    false.write_text("#!/bin/sh\necho it cannot >&2\nexit 3\n")
    false.chmod(0o755)
    with pytest.raises(RuntimeFailure, match="process of higher ended with code 3: it cannot"):
        Peer("higher", false)


def test_the_network_is_the_one_of_the_weights():
    with pytest.raises(ValueError, match=r"a parameter has shape \[3\], expected \[8, 1, 3, 3\]"):
        peer_loops.network(8, "max", (1, 16, 16), 2, [torch.zeros(3)] * 14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(no_ray):
    record = Peers(["omniglot-1"], overrides=TINY, peers=["vmap"], device="cuda").run(1)
    assert [row.at["system"] for row in record.rows] == ["vmap", "distmeta, one GPU"]
