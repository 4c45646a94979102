"""What is found reads well and is JSON."""

from distmeta.auditing import Finding, Line, Proof


def test_a_finding_names_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text("a = 1\nb = time.time()\n")
    place = (str(tmp_path / "job.py"), 2)
    line = Line.at(place, [("time.time()", place), ("os.getpid()", (place[0], 1)), ("time.time()", place)])
    assert str(line) == "job.py:2: b = time.time()   (reads time.time())"
    finding = Finding("time", "depends on the time", "Take nothing from the clock.", line, Line(place[0], 1))
    assert str(finding).splitlines() == [
        "depends on the time",
        "job.py:2: b = time.time()   (reads time.time())",
        "job.py:1: a = 1   (uses it)",
        "Take nothing from the clock.",
    ]
    assert finding.to_dict()["reads"] == ["time.time()"]
    assert Finding("time", "what", "fix").to_dict()["line"] is None


def test_a_proof_holds_unless_something_contradicts_it():
    assert Proof("time", "3 tasks").holds
    assert not Proof("time", "3 tasks", follows=Line("job.py", 1)).holds
    assert not Proof("time", "3 tasks", (Finding("time", "what", "fix"),)).holds
