"""Load on `distmeta serve`: ``python .github/load_serve.py RUN [RUN ...]`` prints tasks/s and latencies, as Markdown.

Run by hand, on Linux. Every request is a new 5-way 1-shot task of glyphs that training never saw, with labels of its
own, as PNG files. Batching is on and off in turn. ``--soak N`` sends N requests of which 1 % are bad, and compares
every answer with what the learner answers in this process: none may be lost, or be another's.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WAYS = 5
BAD = [
    (b"{", 400),
    (b'{"support_x": []}', 422),
    (b'{"support_x": ["!"], "support_y": ["a"], "query_x": ["!"]}', 422),
    (b'{"support_x": [[[0]]], "support_y": ["a"], "query_x": [[NaN]]}', 400),
    (json.dumps({"support_x": ["aGVsbG8="] * 2, "support_y": ["a", "b"], "query_x": ["aGVsbG8="]}).encode(), 422),
    (b"x" * 3_000_000, 413),
]


@dataclass
class Task:
    """One task as a client sends it, and what is right.

    Args:
        support: five pictures, base64 of PNG files.
        query: one more.
        expected: probabilities ``[5]`` that the learner answers with alone.
    """

    support: list[str]
    query: str
    expected: list[float] = field(default_factory=list)

    def body(self, number: int) -> bytes:
        """The request, with labels that no other request has."""
        labels = [f"{number}-{n}" for n in range(WAYS)]
        return json.dumps({"support_x": self.support, "support_y": labels, "query_x": [self.query]}).encode()


def png(pixels: np.ndarray[Any, Any]) -> str:
    """A picture as base64 of a PNG file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def tasks_of(count: int, seed: int) -> list[Task]:
    """Different tasks of classes that training never saw."""
    from distmeta import FewShot
    from distmeta.types import TaskRef

    drawn = FewShot(data="glyphs", ways=WAYS, shots=1, queries=1)
    found = []
    for index in range(count):
        episode = drawn.episode(TaskRef("meta_test", 0, index), seed)
        pictures = (np.rint(episode.support_x.numpy() * 255), np.rint(episode.query_x.numpy() * 255))
        support, query = (part[:, 0].astype(np.uint8) for part in pictures)
        found.append(Task([png(one) for one in support], png(query[index % WAYS])))
    return found


def expect(tasks: list[Task], run: Path) -> None:
    """Fill in what the learner answers in this process, one task at a time."""
    import distmeta

    predictor = distmeta.load(run)
    for task in tasks:
        support = [base64.b64decode(one) for one in task.support]
        fast = predictor.adapt(support, [f"{n}" for n in range(WAYS)])
        task.expected = fast.predict_proba([base64.b64decode(task.query)])[0].tolist()


@contextmanager
def service(run: Path, *options: str) -> Iterator[int]:
    """`distmeta serve` in a process of its own; the port."""
    command = [sys.executable, "-m", "distmeta", "serve", str(run), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            text = ""
            while not text.rstrip().endswith("}"):
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"The service did not start: {process.stderr.read() if process.stderr else ''}")
                text += line
            yield int(json.loads(text)["url"].rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def clients(port: int, count: int, work: Any) -> None:
    """``work(connection, client)`` in ``count`` threads, each with a connection that stays open."""

    def one(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        work(connection, client)
        connection.close()

    threads = [threading.Thread(target=one, args=(client,)) for client in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def post(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, Any]:
    """The status and the JSON of one answer."""
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
    except (BrokenPipeError, ConnectionResetError):  # refused before the whole body was sent
        connection.close()
        return 413, None
    return answer.status, json.loads(answer.read())


def measure(port: int, count: int, tasks: list[Task], seconds: float) -> list[float]:
    """Latencies of requests that ``count`` clients send one after the other, and the time of all as the last number."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    def work(connection: http.client.HTTPConnection, client: int) -> None:
        number = client
        while time.perf_counter() < end:
            body = tasks[number % len(tasks)].body(number)
            began = time.perf_counter()
            status, found = post(connection, body)
            latencies.append(time.perf_counter() - began)
            if status != 200 or found["classes"][0] != f"{number}-0":
                raise SystemExit(f"status {status}: {found}")
            number += count

    began = time.perf_counter()
    clients(port, count, work)
    return [*latencies, time.perf_counter() - began]


def replicas() -> list[Path]:
    """The processes that answer for the service that this script has started, as Linux lists them."""
    parents: dict[int, int] = {}
    named: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica"):
                named.append(int(process.name))
        except OSError:  # it has ended meanwhile
            continue

    def mine(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and mine(parents[pid]))

    found = [Path("/proc") / str(pid) for pid in named if mine(pid)]
    if not found:
        raise SystemExit("The replica is not among the processes that were started.")
    return found


def replica_mib() -> float:
    """Resident memory of the replicas."""
    return sum(int((p / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for p in replicas()) / 2**20


def replica_seconds() -> float:
    """CPU time that the replicas have used: other work on the machine does not change it much."""
    times = [(p / "stat").read_text().rpartition(")")[2].split()[11:13] for p in replicas()]
    return sum(int(one) for pair in times for one in pair) / os.sysconf("SC_CLK_TCK")


def soak(port: int, total: int, count: int, tasks: list[Task]) -> str:
    """Send ``total`` requests, 1 % of them bad, and check every answer."""
    rng = random.Random(0)
    bad = set(rng.sample(range(total), total // 100))
    numbers = iter(range(total))
    lock, answered, wrong, worst = threading.Lock(), [0], [], [0.0]
    memory: dict[int, float] = {}

    def work(connection: http.client.HTTPConnection, client: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            if number in bad:
                body, expected = BAD[number % len(BAD)]
                status, _ = post(connection, body)
                right = status == expected
            else:
                task = tasks[number % len(tasks)]
                status, found = post(connection, task.body(number))
                right = status == 200 and found["classes"] == [f"{number}-{n}" for n in range(WAYS)]
                if right:
                    off = max(abs(a - b) for a, b in zip(found["probabilities"][0], task.expected, strict=True))
                    worst[0] = max(worst[0], off)
                    right = off < 1e-4
            with lock:
                answered[0] += 1
                if not right:
                    wrong.append((number, status))
                if answered[0] % (total // 5) == 0:
                    memory[answered[0]] = replica_mib()

    began = time.perf_counter()
    clients(port, count, work)
    return (
        f"{answered[0]:,} of {total:,} requests answered in {time.perf_counter() - began:.0f} s, {len(bad)} of them "
        f"bad ones; {len(wrong)} wrong answers {wrong[:5] or ''}; largest difference of a probability from the task "
        f"alone {worst[0]:.1e}; memory of the replica "
        + ", ".join(f"{value:.0f} MiB after {at:,}" for at, value in sorted(memory.items()))
    )


def main() -> None:
    """Measure, then soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tasks = tasks_of(400, given.seed)
    for run in given.runs:
        found: dict[tuple[bool, int], list[list[float]]] = {}
        for _ in range(given.rounds):
            for batch in (True, False):
                with service(run, "--batch" if batch else "--no-batch") as port:
                    measure(port, 4, tasks, 2)
                    for count in given.clients:
                        before = replica_seconds()
                        part = measure(port, count, tasks, given.seconds)
                        found.setdefault((batch, count), []).append([*part, replica_seconds() - before])
        for count in given.clients if found else ():
            rates, cpu = {}, {}
            for batch in (True, False):
                parts = found[batch, count]
                latencies = sorted(1000 * one for part in parts for one in part[:-2])
                rates[batch] = len(latencies) / sum(part[-2] for part in parts)
                cpu[batch] = 1000 * sum(part[-1] for part in parts) / len(latencies)
                p50, p95 = statistics.median(latencies), latencies[int(0.95 * len(latencies))]
                row = f"| {run.name} | {count} | {'on' if batch else 'off'} | {rates[batch]:.1f} |"
                print(f"{row} {p50:.0f} | {p95:.0f} | {cpu[batch]:.1f} |")
            faster, cheaper = rates[True] / rates[False], cpu[False] / cpu[True]
            print(
                f"| {run.name} | {count} | on / off | {faster:.2f} times | | | {cheaper:.2f} times less |", flush=True
            )
        if given.soak:
            expect(tasks, run)
            with service(run, "--max-body", "2") as port:
                print(f"{run.name}: {soak(port, given.soak, 32, tasks)}", flush=True)


if __name__ == "__main__":
    main()
