"""`distmeta serve` on Ray Serve: two replicas answer about each other's tasks, and a stop answers what is in flight."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import free_ports, run_command
from served import SIDE, Served, encoded, pattern

pytest.importorskip("fastapi", reason="pip install 'distmeta[serve]'")

JOB = """
import torch

import distmeta


def model(spec):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, spec.outputs))


experiment = distmeta.Experiment(
    learner=distmeta.MAML(model, inner_lr=0.1),
    tasks=distmeta.FewShot(data={data!r}, ways=3, shots=1, queries=2),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
    name="small",
)
"""


@pytest.fixture(scope="module")
def run_dir(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "job.py").write_text(JOB.format(data=str(digits_dir)), encoding="utf-8")
    run_command("train", folder / "job.py", "--backend", "local", "--no-tracking", "--run-dir", folder / "run")
    return folder / "run"


def body(*seeds):
    x, y = [encoded(pattern(seed)) for seed in seeds], [f"class {seed}" for seed in seeds]
    return {"support_x": x, "support_y": y}, {"query_x": [encoded(pattern(seeds[0]))]}


@pytest.mark.ray
def test_a_service_of_two_replicas_from_start_to_stop(run_dir):
    command = [sys.executable, "-m", "distmeta", "serve", str(run_dir), "--port", "0", "--replicas", "2", "--json"]
    process = subprocess.Popen(
        [*command, "--max-body", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "DISTMETA_SERVE_TOKEN": "secret"},
    )
    try:
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            text += line
        web = Served(int(json.loads(text)["url"].rpartition(":")[2]))
        token = {"Authorization": "Bearer secret"}
        support, queries = body(0, 1, 2)

        assert web.ask("GET", "/healthz").json == {"status": "ok"}
        assert web.ask("GET", "/").status == 200
        assert web.ask("POST", "/predict", support | queries).status == 401
        assert web.ask("POST", "/predict", b"{", token).status == 400
        assert web.ask("POST", "/predict", b" " * (2**20 + 1), token).status == 413
        assert web.ask("GET", "/nothing", headers=token).status == 404
        once = web.ask("POST", "/predict", support | queries, token)
        assert once.status == 200
        assert once.json["classes"] == ["class 0", "class 1", "class 2"]

        # Whichever replica learned it: both answer, with the same numbers, and forget.
        made = web.ask("POST", "/tasks", support, token).json
        path = f"/tasks/{made['id']}"
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: web.ask("POST", f"{path}/predict", queries, token), range(24)))
        assert {one.status for one in found} == {200}
        for one in found:
            assert one.json["probabilities"][0] == pytest.approx(once.json["probabilities"][0], abs=1e-6)
        assert web.ask("DELETE", path, headers=token).status == 204
        gone = {web.ask("POST", f"{path}/predict", queries, token).status for _ in range(8)}
        assert gone == {404}

        # Ctrl-C in a terminal goes to the whole group; what is in flight is answered, none is cut off.
        sent = [body(n, n + 1, n + 2) for n in range(60)]
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            asked = [pool.submit(web.ask, "POST", "/predict", a | b, token) for a, b in sent]
            concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
            os.killpg(process.pid, signal.SIGINT)
            answers = []
            for one in asked:
                try:
                    answers.append(one.result().status)
                except ConnectionRefusedError:  # it came after the end
                    answers.append(None)
        assert 200 in answers
        assert set(answers) <= {200, 404, 503, None}  # Ray's own answer where the application has left
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        assert "ready after" in err
        assert [line for line in err.splitlines() if "WARNING" in line or "ERROR" in line] == []
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    with pytest.raises(ConnectionRefusedError):
        web.ask("GET", "/healthz")


def test_what_cannot_be_served_fails_before_ray_starts(run_dir, tmp_path):
    began = time.monotonic()
    done = run_command("serve", tmp_path / "nothing")
    assert done.code == 1
    assert "There is no folder" in done.err
    done = run_command("serve", run_dir, "--max-classes", "1")
    assert done.code == 2
    assert time.monotonic() - began < 60


def test_a_taken_port_is_named(run_dir):
    import socket

    (port,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = run_command("serve", run_dir, "--port", port)
    assert done.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.err
    assert "--port 0" in done.err


def test_without_ray_serve_the_way_to_install_it_is_named(run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = run_command("serve", run_dir)
    assert done.code == 1
    assert "pip install 'distmeta[serve]'" in done.err


assert SIDE == 8  # of digits_dir
