"""The comparison of loaders in ``jobs/loaders`` runs, and its figures are those of ``jobs/RESULTS.md``."""

import runpy

import pytest

from distmeta.experiment.job import jobs_folder

# Equal on two ranks, with 3 workers for 2, after a resume, seen before the resume, in a second run, with another seed.
EXPECTED = {
    "every rank seeded alike": (1, 0.02, 0, 1, 1, 0),
    "seeded by worker, rank and epoch": (0, 0.02, 0, 1, 1, 1),
    "seeded again with the step": (0, 0.02, 0, 0, 1, 0),
    "never seeded": (0, 0.02, 0, 0, 0, 0),
    "distmeta": (0, 1, 1, 0, 1, 0),
}


def test_figures(capsys):
    compared = runpy.run_path(str(jobs_folder() / "loaders" / "compare.py"))
    for name, (loader, second) in compared["LOADERS"].items():
        assert tuple(compared["figures"](loader, second).values()) == pytest.approx(EXPECTED[name]), name
    assert compared["LOADERS"].keys() == EXPECTED.keys()
    compared["main"]()
    shown = capsys.readouterr().out
    assert "| distmeta | 0 % | 100 % | 100 % | 0 % | 100 % | 0 % |" in shown
    assert shown.count("100 % of the tables of rank 1 are rank 0's") == 2
