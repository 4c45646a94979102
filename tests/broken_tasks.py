"""Distributions that are no functions of their refs, each in its own way; ``# HERE`` marks the line to be named."""

HEAD = """
import datetime, glob, os, random as python_random, time, uuid
import numpy as np
import torch
from distmeta import MAML, Experiment, FunctionTasks, TaskDistribution, Sinusoids, mlp, task_distribution
from distmeta.types import Episode, TaskSpec

WORDS = ["ash", "birch", "cedar", "elm", "fir", "gum", "holly", "ivy"]
"""

TAIL = """
experiment = Experiment(learner=MAML(mlp((8,))), tasks=tasks)
"""

LINE = """
@task_distribution
def tasks(random, split):
    x = random.uniform(-1, 1, size=(8, 1))
    {draw}
    y = shift + random.normal() * x
    return x[:4], y[:4], x[4:], y[4:]
"""


def line(draw):
    return LINE.format(draw=f"{draw}  # HERE")


IN_TWO_SPLITS = """
IMAGES = np.random.default_rng(0).random((12, 6, 9))

@task_distribution
def tasks(random, split):
    classes = {"meta_train": range(0, 6), "meta_validation": range(6, 9), "meta_test": range(5, 12)}[split]
    chosen = random.choice(classes, size=3, replace=False)
    rows = IMAGES[chosen[:, None], random.permuted(np.tile(np.arange(6), (3, 1)), axis=1)[:, :4]]  # HERE
    y = np.arange(3).repeat(2)
    return rows[:, :2].reshape(6, 9), y, rows[:, 2:].reshape(6, 9), y
"""

IN_BOTH_HALVES = """
IMAGES = np.random.default_rng(0).random((3, 12, 6, 9))

@task_distribution
def tasks(random, split):
    mine = IMAGES[["meta_train", "meta_validation", "meta_test"].index(split)]
    chosen = random.choice(12, size=3, replace=False)
    support = mine[chosen, random.integers(6, size=3)]  # HERE
    query = mine[chosen].reshape(18, 9)
    return support, np.arange(3), query, np.arange(3).repeat(6)
"""

NAMED_CLASSES = """
class Named(TaskDistribution):
    spec = TaskSpec((4,), 2, "classification", 2, 2)
    fingerprint = "0" * 64

    def draw(self, split, random):
        x, y = torch.from_numpy(random.normal(size=(4, 4))).float(), torch.arange(2)
        return Episode(x[:2], y, x[2:], y)

    def class_names(self, ref, seed):
        first = {"meta_train": 0, "meta_validation": 3, "meta_test": 4}[ref.split]
        return tuple(WORDS[first : first + 2])  # HERE

tasks = Named()
"""

CACHED = """
SEEN = []

@task_distribution
def tasks(random, split):
    x = random.uniform(-1, 1, size=(8, 1))
    SEEN.append(x)
    easier = 1 / len(SEEN)  # HERE
    return x[:4], easier * x[:4], x[4:], easier * x[4:]
"""

SET = """
ORDER = list({*WORDS})  # HERE

@task_distribution
def tasks(random, split):
    x = random.uniform(-1, 1, size=(8, 1))
    slope = float(WORDS.index(ORDER[random.integers(8)]))
    return x[:4], slope * x[:4], x[4:], slope * x[4:]
"""

FILES = """
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tables")
os.makedirs(FOLDER, exist_ok=True)
if not os.listdir(FOLDER):
    for number in range(5):
        np.save(os.path.join(FOLDER, f"{number}.npy"), np.random.default_rng(number).random((40, 1)))

class Tables(TaskDistribution):
    spec = TaskSpec((1,), 1, "regression", 4, 4)
    fingerprint = "0" * 64

    def __init__(self):
        super().__init__()
        self.paths = glob.glob(os.path.join(FOLDER, "*.npy"))  # HERE

    def draw(self, split, random):
        table = np.load(self.paths[random.integers(len(self.paths))])
        x = torch.from_numpy(table[random.choice(40, 8, replace=False)] + random.normal()).float()
        return Episode(x[:4], 2 * x[:4], x[4:], 2 * x[4:])

tasks = Tables()
"""


DRAWN = {
    "global": ("global generators", "numpy's global generator", line("shift = np.random.normal()")),
    "python": ("global generators", "Python's global generator", line("shift = python_random.gauss(0, 1)")),
    "torch": ("global generators", "torch's global generator", line("shift = torch.randn(1).numpy()")),
    "entropy": ("global generators", "operating system", line("shift = np.random.default_rng().normal()")),
    "time": ("time", "datetime.now()", line("shift = datetime.datetime.now().minute")),
    "order": ("worker count, order of draws", "", CACHED),
    "set": ("hash seed", "", SET),
    "hash": ("hash seed", "", line("shift = hash(WORDS[random.integers(8)]) % 5")),
    "rank": ("rank, worker, machine", "os.environ['RANK']", line("shift = int(os.environ.get('RANK', 0))")),
    "worker": (
        "rank, worker, machine",
        "get_worker_info",
        line("shift = getattr(torch.utils.data.get_worker_info(), 'id', 0)"),
    ),
    "environment": ("environment variables", "os.environ['SCALE']", line("shift = float(os.getenv('SCALE', '5'))")),
    "threads": (
        "thread count",
        "",
        line("shift = torch.from_numpy(random.normal(size=300_000)).float().sum().numpy()"),
    ),
    "files": ("order of files", "os.scandir()", FILES),
    "process": ("same ref, same bytes", "os.getpid()", line("shift = os.getpid() % 7919")),
    "rows": ("no row in two splits or both halves", "", IN_TWO_SPLITS),
    "halves": ("no row in two splits or both halves", "", IN_BOTH_HALVES),
    "classes": ("no class in two splits", "", NAMED_CLASSES),
}
"""By name: title of the proof that fails, what the line reads, and the code."""


def write(folder, name, code):
    """Write a job file; returns its path and the number of the line to be named, 0 if none is marked."""
    path = folder / f"{name}.py"
    text = HEAD + code + TAIL
    path.write_text(text)
    marked = [number for number, source in enumerate(text.splitlines(), 1) if source.endswith("# HERE")]
    return path, marked[0] if marked else 0
