"""Every factor changes what it names, nothing else, and is undone."""

import datetime
import glob
import os
import platform
import random
import secrets
import time
import uuid

import numpy as np
import pytest
import torch

from distmeta.auditing.surroundings import FACTORS, Surroundings

READ = {
    "generators": lambda _: [random.random(), np.random.random(), torch.rand(1).item()],
    "entropy": lambda _: [
        os.urandom(4),
        secrets.token_hex(4),
        uuid.uuid4().hex,
        uuid.uuid1().hex,
        np.random.default_rng().random(),
        random.Random().random(),
        torch.seed(),
    ],
    "clock": lambda _: [
        time.time(),
        time.time_ns(),
        time.perf_counter(),
        time.localtime().tm_wday,
        time.gmtime(86_400.0).tm_mday - 2 + time.gmtime().tm_mday,
        time.strftime("%H"),
        datetime.datetime.now(),
        datetime.datetime.today(),
        datetime.datetime.utcnow(),
        datetime.date.today(),
    ],
    "environment": lambda _: [("TZ" in os.environ, os.environ.get("TZ")), os.getenv("SCALE")],
    "rank": lambda _: [
        os.getenv("RANK"),
        platform.node(),
        torch.utils.data.get_worker_info() and torch.utils.data.get_worker_info().id,
        torch.distributed.is_initialized(),
    ],
    "files": lambda folder: [
        os.listdir(folder),
        glob.glob(f"{folder}/*"),
        [path.name for path in folder.iterdir()],
    ],
    "threads": lambda _: [torch.get_num_threads(), os.cpu_count(), os.getenv("OMP_NUM_THREADS")],
}


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        (tmp_path / name).touch()
    return tmp_path


def read(factor, varied, folder):
    noted = []
    surroundings = Surroundings(varied, {"SCALE": "3"}, noted.append)
    with surroundings.entered():
        surroundings.reset()
        return READ[factor](folder), noted


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_changes_what_it_names_and_the_others_do_not(factor, folder):
    pinned, noted = read(factor, (), folder)
    assert read(factor, (), folder)[0] == pinned
    changed, _ = read(factor, (factor,), folder)
    assert all(a != b for a, b in zip(pinned, changed, strict=True))
    others = set(FACTORS) - {factor}
    # The environment's time zone changes what the clock shows, by design.
    assert read(factor, others - {"environment"}, folder)[0] == pinned
    assert noted or factor == "generators"


def test_everything_is_undone(folder):
    torch.manual_seed(1)
    before = dict(os.environ), os.listdir, time.time, datetime.datetime, os.environ.__class__, torch.get_num_threads
    states = random.getstate(), torch.get_rng_state().tolist()
    for factor in FACTORS:
        read(factor, FACTORS, folder)
    assert (dict(os.environ), os.listdir, time.time, datetime.datetime, os.environ.__class__) == before[:5]
    assert torch.get_num_threads is before[5]
    assert (random.getstate(), torch.get_rng_state().tolist()) == states


def test_the_types_of_the_calendar_stay_what_they_are(folder):
    real, now = datetime.datetime, datetime.datetime.__dict__["now"]
    with Surroundings((), {}, lambda what: None).entered():
        assert datetime.datetime is real  # pandas, imported now, derives from it

        class Own(datetime.datetime):
            pass

        assert type(Own.now()) is Own
        assert Own.now(datetime.UTC).utcoffset() == datetime.timedelta(0)
        assert datetime.datetime.now().year == datetime.date.today().year == 2025
    assert datetime.datetime.__dict__["now"] is now
    assert datetime.datetime.now().timestamp() == pytest.approx(time.time(), abs=60)


def test_seeds_that_are_given_hold():
    with Surroundings((), {}, lambda what: None).entered():
        random.seed(3)
        inside = random.random(), random.Random(3).random()
    assert inside == (random.Random(3).random(),) * 2


def test_a_scan_of_a_folder_is_one(folder):
    with Surroundings(("files",), {}, lambda what: None).entered(), os.scandir(folder) as entries:
        assert [entry.name for entry in entries] == ["c", "b", "a"]
