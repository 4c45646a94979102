"""What ``jobs/plain_loops`` times side by side is the same computation."""

import runpy

import torch

import distmeta
from distmeta.experiment.job import jobs_folder


def test_both_steps_of_tables_lead_to_the_same_parameters(monkeypatch, capsys):
    script = runpy.run_path(str(jobs_folder() / "plain_loops" / "tables.py"))
    tasks = distmeta.Tables()
    ours, plain = script["Ours"](tasks), script["Plain"](tasks)
    with torch.no_grad():
        start = torch.from_numpy(ours._vector.copy())
        torch.nn.utils.vector_to_parameters(start.clone(), plain._model.parameters())
    assert list(ours._worker._setup.layout.names) == [name for name, _ in plain._model.named_parameters()]
    for number in range(3):
        ours.step(number)
        plain.step(number)
    reached = torch.nn.utils.parameters_to_vector(plain._model.parameters()).detach()
    gone = (reached - start).norm()
    assert (torch.from_numpy(ours._vector) - reached).norm() < 1e-2 * gone
    script["main"](steps=1)
    assert "ratio" in capsys.readouterr().out
