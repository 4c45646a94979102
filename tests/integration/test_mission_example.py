"""The program that the mission gives as its example, run as written."""

import math
import re
import textwrap

import torch
from torch import nn

import distmeta

PROGRAM = textwrap.dedent("""
    model = MyModel()
    meta_learner = MAML(model)
    meta_learner.train(tasks)
    for task in tasks:
        x, y = task.sample()
        model.adapt(x, y)
        loss = model.evaluate(x, y)
        print(f"Task {task.id}: Loss {loss}")
""")


class MyModel(distmeta.MetaModule, nn.Module):
    """An ordinary module with the mix-in."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(784, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def test_the_program_runs_as_written(glyphs_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tasks = distmeta.FewShot("glyphs")
    names = {"MyModel": MyModel, "MAML": distmeta.MAML, "tasks": tasks}
    exec(PROGRAM, names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(tasks))
    losses = []
    for i, line in enumerate(lines):
        match = re.fullmatch(rf"Task meta_test/{i}: Loss (\d+\.\d+(?:e-\d+)?)", line)
        assert match, line
        losses.append(float(match[1]))
    assert max(losses) < math.log(5)  # what a guess costs
    # What was learned is how to learn: the queries, too, are told apart better than by chance.
    model, accuracies = names["model"], []
    for task in tasks.take(100):
        episode = task.episode
        fast = model.adapt(episode.support_x, episode.support_y)
        accuracies.append(fast.accuracy(episode.query_x, episode.query_y))
    assert sum(accuracies) / len(accuracies) > 0.45
    assert list((tmp_path / "runs").iterdir())
