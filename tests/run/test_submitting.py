"""``distmeta submit`` against a real Ray head that asks for a token, in its own process group and private folders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

import distmeta
from distmeta.errors import RuntimeFailure
from distmeta.run.submitting import submit
from helpers import free_ports, run_command

ray = pytest.importorskip("ray")

TOKEN = "5e" * 32
STARTUP_S = 120

JOB = """
import distmeta
from neighbour import SHOTS

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01),
    tasks=distmeta.Sinusoids(shots=SHOTS, queries=4),
    outer=distmeta.Outer(iterations=2, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=2, workers=1),
    evaluation=distmeta.Evaluation(every=0, test_tasks=2),
)
"""

# Right as far as the submitting machine can tell.
FAILS = """
import distmeta

def nothing(random, split):
    return None

experiment = distmeta.Experiment(
    learner=distmeta.MAML(distmeta.mlp((8,)), inner_lr=0.01), tasks=distmeta.FunctionTasks(nothing)
)
"""


@dataclass(frozen=True)
class Head:
    """A running head node.

    Args:
        address: of its dashboard.
        environment: of a user who has its token at home, and no other setting of Ray.
        folder: everything that it writes is below.
    """

    address: str
    environment: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's sockets live below this folder, and a Unix socket's path may have about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="dm-", dir="/tmp" if os.path.isdir("/tmp") else None))
    home = folder / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(TOKEN)
    (home / ".ray" / "auth_token").chmod(0o600)
    package = str(Path(distmeta.__file__).parents[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DISTMETA_GIT_"))}
    environment |= {
        "HOME": str(home),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),  # where the job finds python
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    names = (
        *("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"),
        *("dashboard-agent-grpc-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port"),
    )
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    words = [
        *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"),
        *("--node-ip-address", "127.0.0.1", "--temp-dir", str(folder / "ray"), "--disable-usage-stats"),
        *("--num-cpus", "2", "--object-store-memory", str(100 * 2**20)),
        *("--min-worker-port", "0", "--max-worker-port", "0"),  # any free ones
        *(word for name, port in ports.items() for word in (f"--{name}", port)),
    ]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # No time to drain: nothing is to be saved here.
            env={**environment, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + STARTUP_S
        while not answers(address):
            assert process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield Head(address, environment, folder)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def repository(tmp_path) -> Path:
    """A git checkout with jobs, whose commit is in ``commit``."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "job.py").write_text(JOB)
    (folder / "neighbour.py").write_text("SHOTS = 3\n")
    (folder / "fails.py").write_text(FAILS)
    git(folder, "init", "-b", "trunk")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def run_submit(head: Head, cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: Ray reads a token once for a process."""
    return subprocess.run(
        [sys.executable, "-m", "distmeta", "submit", *words, "--address", head.address],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**head.environment, **environment},
    )


def test_a_submitted_job_is_followed_and_recorded(head, repository, tmp_path):
    """Given from outside of the checkout that the job is in."""
    done = run_submit(head, tmp_path, "repository/job.py", "--set", "seed=7", "--set", "outer.lr=0.01")
    assert done.returncode == 0, done.stdout + done.stderr
    first, *log, last = done.stdout.splitlines()
    name = re.match(r"Submitted (job-\d{8}-\d{6}-\d+): python -m distmeta train job\.py", first)[1]
    assert any(re.match(r"1 worker on ray: ", line) for line in log)
    assert any(re.match(r"step 2/2 ", line) for line in log)
    assert any(line.startswith("meta-test: Sinusoids, 2 tasks") for line in log)
    assert last == f"{name}: SUCCEEDED. Run directory on the head node: {tmp_path / 'runs' / name}"
    assert not re.search("INFO|WARNING|Traceback", done.stderr)

    facts = distmeta.inspect_run(tmp_path / "runs" / name)
    assert (facts["status"], facts["step"]) == ("finished", 2)
    experiment = facts["experiment"]
    assert (experiment["seed"], experiment["outer"]["lr"], experiment["tasks"]["shots"]) == (7, 0.01, 3)

    import mlflow

    client = mlflow.MlflowClient()  # the store that the environment names, here and there
    run = client.get_run(facts["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.git.commit"] == git(repository, "rev-parse", "HEAD")
    assert run.data.tags["mlflow.source.git.branch"] == "trunk"
    assert run.data.tags["distmeta.git_dirty"] == "false"
    assert str(head.folder) not in run.info.artifact_uri  # which ends with the cluster
    assert "curves.png" in {file.path for file in client.list_artifacts(facts["mlflow_run_id"])}


def test_a_job_that_fails_there_fails_here(head, repository):
    done = run_submit(head, repository, "fails.py", "--json", "--run-dir", "failed")
    assert done.returncode == 1, done.stderr
    facts = json.loads(done.stdout)
    assert facts["status"] == "FAILED"
    assert facts["run_dir"] == str(repository / "failed")
    assert re.search(r"(?m)^error: .*returned NoneType", done.stderr)  # the log, beside the JSON
    assert "Traceback" not in done.stderr


def test_not_waiting_with_a_token_from_the_environment(head, repository, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    access = {"HOME": str(tmp_path / "elsewhere"), "RAY_AUTH_TOKEN": TOKEN}
    done = run_submit(head, repository, "fails.py", "--no-wait", "--json", **access)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["status"] == "PENDING"
    assert facts["run_dir"] == str(repository / "runs" / facts["submission_id"])
    assert done.stderr.startswith(f"Submitted {facts['submission_id']}: ")


def test_without_a_token_the_message_names_it(head, repository, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = run_submit(head, repository, "job.py", HOME=str(tmp_path / "elsewhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: The cluster at {head.address} did not take the job: ")
    assert "RAY_AUTH_TOKEN=" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (repository / "runs").exists()


# -- without a cluster ------------------------------------------------------------------------------------------------


class Client:
    """In place of Ray's: takes every job; what happens while its log is followed is up to the test."""

    def __init__(self, happens):
        self.happens, self.submitted = happens, []

    def __call__(self, address):
        return self

    def submit_job(self, **job):
        self.submitted.append(job)

    async def tail_job_logs(self, name):
        yield "one line\n"
        if isinstance(self.happens, BaseException):
            raise self.happens

    def get_job_status(self, name):
        return SimpleNamespace(value=self.happens, is_terminal=lambda: True)


@pytest.fixture
def client(monkeypatch):
    import ray.job_submission

    def use(happens):
        fake = Client(happens)
        monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", fake)
        return fake

    return use


@pytest.fixture(autouse=True)
def _undo(monkeypatch):
    """What loading a job and ``main`` change in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for name in ("neighbour", "distmeta_job_job"):
        sys.modules.pop(name, None)


def test_a_cluster_that_has_just_started_is_waited_for(client, repository, monkeypatch):
    fake = client("SUCCEEDED")
    take, refusals = fake.submit_job, iter(["status code 500: No available agent to submit job"] * 2)

    def not_yet(**job):
        for refusal in refusals:
            raise RuntimeError(refusal)
        take(**job)

    monkeypatch.setattr(fake, "submit_job", not_yet)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    lines: list[str] = []
    assert submit(repository / "job.py", address="http://a:1", echo=lines.append).status == "SUCCEEDED"
    assert lines[0] == "The cluster has only just started; waiting until it takes jobs."
    assert lines[1].startswith("Submitted job-")
    assert len(fake.submitted) == 1


def test_another_refusal_is_final(client, repository, monkeypatch):
    fake = client("SUCCEEDED")
    tries = []

    def never(**job):
        tries.append(1)
        raise RuntimeError("status code 500: Disk quota exceeded")

    monkeypatch.setattr(fake, "submit_job", never)
    with pytest.raises(RuntimeFailure, match=r"did not take the job: status code 500: Disk quota exceeded"):
        submit(repository / "job.py", address="http://a:1", echo=lambda line: None)
    assert tries == [1]


def test_a_lost_connection_is_no_verdict_on_the_job(client, repository):
    client(RuntimeError("WebSocket connection closed unexpectedly with close code 1006"))
    lines: list[str] = []
    with pytest.raises(RuntimeFailure, match=r"connection to http://a:1 was lost .*1006.*may go on.*ray job logs job-"):
        submit(repository / "job.py", address="http://a:1", echo=lines.append)
    assert lines[-1] == "one line"


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_end_it(client, repository):
    client(KeyboardInterrupt())
    done = run_command("submit", repository / "job.py", "--address", "http://a:1")
    assert done.code == 130
    assert re.fullmatch(
        r"The job goes on\. Follow it with: ray job logs (\S+) --address http://a:1 --follow; "
        r"end it with: ray job stop \1 --address http://a:1\n",
        done.err,
    )


def test_a_home_is_that_of_the_head_also_at_the_near_end_of_a_tunnel(client, repository):
    fake = client("SUCCEEDED")
    done = submit(repository / "job.py", address="http://127.0.0.1:8265", run_dir="~/runs/x")
    assert done.run_dir == "~/runs/x"
    assert fake.submitted[0]["entrypoint"].endswith(" --run-dir ~/runs/x")
    submit(repository / "job.py", address="http://127.0.0.1:8265", run_dir="~/my runs/x")
    assert fake.submitted[1]["entrypoint"].endswith(" --run-dir ~/'my runs/x'")


def test_what_is_sent_to_a_cluster_elsewhere(client, repository, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    fake = client("SUCCEEDED")
    overrides = {"name": "it's", "tasks.shots": 5, "learner.first_order": True}
    done = submit(repository / "job.py", address="https://head.example:8265", overrides=overrides)
    (job,) = fake.submitted
    assert done.run_dir == f"~/distmeta/runs/{done.id}"  # for the shell there to expand
    assert job["entrypoint"].endswith(f" --run-dir {done.run_dir}")
    assert job["runtime_env"]["working_dir"] == str(repository)
    variables = job["runtime_env"]["env_vars"]
    assert variables["DISTMETA_GIT_SHA"] == git(repository, "rev-parse", "HEAD")
    assert "MLFLOW_TRACKING_URI" not in variables  # a path of this machine means nothing there
    # The shell there reads the words as they were given here.
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {job['entrypoint'].split(' --run-dir ')[0]}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert words[words.index("--set") :] == [
        *("--set", 'name="it\'s"', "--set", "tasks.shots=5", "--set", "learner.first_order=true"),
    ]
