"""A worker in this process: its threads, its chunks without a memory of earlier ones, and the task it blames."""

import contextlib

import numpy as np
import pytest
import torch

from distmeta.bench import cases
from distmeta.errors import NonFiniteGradientError
from distmeta.learners.param_layout import ParamLayout
from distmeta.runtime import chunks, processor
from distmeta.runtime.backend import LocalBackend
from distmeta.runtime.chunks import Share
from distmeta.runtime.worker import Worker, WorkerSetup
from distmeta.types import Chunk
from helpers import sines

CHUNK = Chunk(0, "meta_train", 3, 0, 4)


@pytest.fixture
def start():
    """Make a worker and the parameters it is sent; the threads of this process are as before afterwards."""
    before = torch.get_num_threads()

    def make(name="worker-0", threads=1):
        experiment = sines()
        learner = experiment.learner.bind(experiment.tasks.spec, seed=0)
        params = learner.init_meta_params(np.random.default_rng(0))
        layout = ParamLayout.of(params)
        setup = WorkerSetup(learner, experiment.tasks, layout, seed=0, threads=threads)
        return Worker(name, setup), layout.flatten(params)

    yield make
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_with_the_threads_of_its_setup(start, threads):
    torch.set_num_threads(3 - threads)
    worker, _ = start(threads=threads)
    assert torch.get_num_threads() == threads
    assert f"{threads} threads" in worker.info().kernel
    assert worker.info().kernel.startswith(f"{processor.kind()}, ")


def test_a_chunk_has_the_same_bits_whoever_computes_it_and_whatever_came_before(start):
    worker, vector = start()
    _, first = worker.train_chunk(CHUNK, 0, vector)
    worker.train_chunk(Chunk(1, "meta_train", 3, 4, 8), 0, vector)
    worker.evaluate_chunk(Chunk(0, "meta_test", 0, 0, 4), 0, vector, seed=5)
    again, other = worker.train_chunk(CHUNK, 0, vector)[1], start("worker-1")[0].train_chunk(CHUNK, 0, vector)[1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, other)
    assert first.any()


def test_a_share_has_the_sums_of_its_nodes(start):
    worker, vector = start()
    parts = chunks.split(10, 2, split="meta_train", step=3)
    headers, sums = worker.train(Share(parts[1:], 5), 0, vector)
    own = [worker.train_chunk(part, 0, vector) for part in parts]
    assert [header.chunk for header in headers] == list(parts[1:])
    for found, (header, _) in zip(headers, own[1:], strict=True):
        np.testing.assert_array_equal(found.metrics["loss"], header.metrics["loss"])
    gradients = [gradient for _, gradient in own]
    np.testing.assert_array_equal(sums, [gradients[1], gradients[2] + gradients[3], gradients[4]])
    assert worker.train(Share(parts[:1], 5), 0, vector)[1].tobytes() == gradients[0].tobytes()
    (alone,) = worker.evaluate(Share(parts[2:3], 5), 0, vector, 5)
    np.testing.assert_array_equal(alone.metrics["loss"], worker.evaluate_chunk(parts[2], 0, vector, 5).metrics["loss"])


def test_a_loss_that_is_no_number_is_blamed_on_its_task(start):
    worker, vector = start()
    with pytest.raises(NonFiniteGradientError, match=r"4 of 4 tasks.*Lower learner\.inner_lr") as caught:
        worker.train_chunk(CHUNK, 0, np.full_like(vector, np.inf))
    assert caught.value.task_ref == CHUNK.refs[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["MAML", "Reptile", "ProtoNet", "Siamese"])
def test_a_gpu_computes_the_gradient_of_the_cpu(name):
    """In float64: what is left of a difference is no rounding."""
    experiment = cases.random_images(name).with_overrides({"tasks.size": 16})
    learner = cases.ready(experiment)
    learner = learner.with_model(learner.model.double())
    params = {key: p.detach().double() for key, p in learner.starting_params(np.random.default_rng(0)).items()}
    layout = ParamLayout.of(params)
    setup = WorkerSetup(learner, experiment.tasks, layout, seed=0, threads=1)
    with contextlib.closing(LocalBackend()):
        there, here = (
            Worker("worker-0", setup, gpu=gpu).train_chunk(CHUNK, 0, layout.flatten(params))[1] for gpu in (True, False)
        )
    assert np.linalg.norm(there - here) < 1e-8 * np.linalg.norm(here)
