"""A run that is loaded gives the logits that its evaluation computed, without its data and its job's folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distmeta
from distmeta.errors import CheckpointDamaged, CheckpointMismatch, ConfigError
from distmeta.experiment.job import load_job
from distmeta.learners import find_learners
from distmeta.learners.over_tasks import map_tasks
from distmeta.run.place import Place
from distmeta.types import Episode, TaskRef

NET = """
from torch import nn


def net(outputs):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, outputs),
    )
"""
JOB = """
import distmeta
from my_net import net

experiment = distmeta.Experiment(
    learner=distmeta.{learner},
    tasks=distmeta.FewShot(data="digits", ways=3, shots=2, queries=3),
    outer=distmeta.Outer(iterations=2, meta_batch_size=4),
    runtime=distmeta.Runtime(chunk_size=4),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
    name="{name}",
)
"""
LEARNERS = {
    **{
        name: f"{name}(net({3 if kind.model_kind == 'classifier' else 8}))"
        for name, kind in find_learners().items()
        if kind.model_kind in ("classifier", "encoder")
    },
    "InContext": "InContext(distmeta.image_context(distmeta.conv4(8, norm='none', head=False), width=8, heads=2))",
    "FullContext": "MatchingNet(net(8), full_context=True, features=8)",
    "Koch": "Siamese(net(8), form='koch')",
}
NAMES = ("ant", "bee", "cat")  # in the order of the positions 0, 1, 2


@pytest.fixture(scope="module")
def home(digits_dir, tmp_path_factory):
    """A folder where a run of each learner was trained; its data and the job's folder are then taken away."""
    folder = tmp_path_factory.mktemp("loading")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "my_net.py").write_text(NET)
    shutil.copytree(digits_dir, folder / "digits")
    tasks = distmeta.FewShot(data=folder / "digits", ways=3, shots=2, queries=3)
    torch.save([tuple(tasks.episode(TaskRef("meta_test", 0, n), 0)) for n in range(3)], folder / "episodes.pt")
    for name, learner in LEARNERS.items():
        job = folder / "jobs" / f"{name}.py"
        job.write_text(JOB.format(learner=learner, name=name))
        loaded = load_job(job, {"tasks.data": str(folder / "digits")})
        distmeta.meta_train(loaded, run_dir=folder / name, place=Place())
    shutil.rmtree(folder / "jobs")
    shutil.rmtree(folder / "digits")
    sys.modules.pop("my_net", None)
    return folder


def episodes(home):
    return [Episode(*parts, ways=3) for parts in torch.load(home / "episodes.pt")]


def named(labels):
    return [NAMES[place] for place in labels]


@pytest.mark.parametrize("name", LEARNERS)
def test_logits_are_those_of_the_evaluation_however_the_inputs_come(name, home, tmp_path):
    predictor = distmeta.load(home / name)
    learner = predictor.learner
    assert predictor.card["name"] == name
    for n, episode in enumerate(episodes(home)):
        with torch.no_grad():
            stacked = episode.map(lambda part: part[None])
            loop = learner.model_kind == "set"  # those take the tasks of a chunk stacked
            expected = map_tasks(learner.query_logits_alone, predictor.params, stacked, loop=loop)[0].numpy()
        paths = {"support": [], "query": []}
        for half, images in (("support", episode.support_x), ("query", episode.query_x)):
            for place, image in enumerate(images):
                paths[half].append(tmp_path / f"{n}-{half}-{place}.png")
                Image.fromarray((image[0] * 255).round().byte().numpy()).save(paths[half][-1])
        fast = predictor.adapt(paths["support"], named(episode.support_y))
        assert fast.classes_.tolist() == list(NAMES)
        scale = np.abs(expected).max()
        ways = {
            "paths": paths["query"],
            "texts": [str(path) for path in paths["query"]],
            "pictures": [Image.open(path) for path in paths["query"]],
            "bytes": [path.read_bytes() for path in paths["query"]],
            "floats": episode.query_x,
            "arrays": (episode.query_x * 255).round().byte().numpy(),
            "rows of pixels": [np.asarray(Image.open(path)) for path in paths["query"]],
        }
        for inputs in ways.values():
            np.testing.assert_allclose(fast.logits(inputs), expected, rtol=0, atol=1e-6 * scale)
        together = fast.logits(paths["query"])
        alone = np.concatenate([fast.logits(path) for path in paths["query"]])
        turned = fast.logits(paths["query"][::-1])[::-1]
        for found in (alone, turned):
            np.testing.assert_allclose(found, together, rtol=0, atol=1e-6 * scale)
        assert fast.predict(paths["query"]).tolist() == named(expected.argmax(1))
        np.testing.assert_allclose(fast.predict_proba(paths["query"]).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_many_tasks_are_learned_at_once_and_alike(name, home):
    predictor, tasks = distmeta.load(home / name), episodes(home)
    given = [(episode.support_x, named(episode.support_y)) for episode in tasks]
    given.append((tasks[0].support_x[:4], ["x", "x", "y", "y"]))  # another shape, alone in its group
    for (x, labels), fast in zip(given, predictor.adapt_all(given), strict=True):
        query = tasks[0].query_x
        one = predictor.adapt(x, labels)
        np.testing.assert_allclose(fast.logits(query), one.logits(query), rtol=1e-4, atol=1e-5)
        assert fast.classes_.tolist() == one.classes_.tolist()


@pytest.mark.parametrize("name", LEARNERS)
def test_an_answer_is_explained(name, home):
    predictor, episode = distmeta.load(home / name), episodes(home)[0]
    fast = predictor.adapt(episode.support_x, named(episode.support_y))
    found = fast.explain(episode.query_x[:1])
    assert found.classes.tolist() == list(NAMES)
    np.testing.assert_allclose(found.logits, fast.logits(episode.query_x[:1])[0], rtol=1e-5, atol=1e-6)
    if name == "InContext" or predictor.most_classes is None:
        assert found.logits_by_step is None
        assert found.support_weights.shape == (6,)
        assert found.support_weights.sum() == pytest.approx(1, abs=1e-5)
        assert (found.support_weights >= 0).all()
        assert found.strongest(2) == np.argsort(-found.support_weights, kind="stable")[:2].tolist()
        assert found.support_labels.tolist() == named(episode.support_y)
    else:
        assert found.support_weights is None
        assert found.strongest() == []
        np.testing.assert_allclose(found.logits_by_step[-1], found.logits, rtol=1e-4, atol=1e-5)
        assert len(found.logits_by_step) > 1


def test_matching_networks_explain_by_their_attention(home):
    """The attention is the prediction: summed over the examples of a class it is the probability of that class."""
    predictor, episode = distmeta.load(home / "MatchingNet"), episodes(home)[0]
    fast = predictor.adapt(episode.support_x, named(episode.support_y))
    for query in episode.query_x:
        weights = fast.explain(query[None]).support_weights
        by_class = [weights[np.asarray(episode.support_y) == place].sum() for place in range(3)]
        np.testing.assert_allclose(by_class, fast.predict_proba(query[None])[0], rtol=1e-4, atol=1e-6)


def test_a_fresh_process_loads_without_ray_mlflow_data_and_the_jobs_folder(home, tmp_path):
    episode = episodes(home)[0]
    for place, image in enumerate([*episode.support_x[::2], episode.query_x[0]]):
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(tmp_path / f"{place}.png")
    program = """
import sys
for name in ("ray", "mlflow", "matplotlib"):
    sys.modules[name] = None
import distmeta
predictor = distmeta.load(sys.argv[1])
fast = predictor.adapt([f"{sys.argv[2]}/{n}.png" for n in range(3)], ["ant", "bee", "cat"])
print(fast.predict(f"{sys.argv[2]}/3.png").tolist(), fast.logits(f"{sys.argv[2]}/3.png").tolist())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(home / "MAML"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    fast = distmeta.load(home / "MAML").adapt(episode.support_x[::2], ["ant", "bee", "cat"])
    label, logits = done.stdout.split("]", 1)
    assert label == f"['{fast.predict(episode.query_x[:1])[0]}'"
    np.testing.assert_allclose(np.array(eval(logits)), fast.logits(episode.query_x[:1]), rtol=1e-5)


def test_the_kept_modules_are_those_of_the_training(home, tmp_path):
    """The job's own folder may hold other code by now."""
    run = tmp_path / "run"
    shutil.copytree(home / "ProtoNet", run)
    assert (run / "code" / "my_net.py").read_text() == NET
    (run / "code" / "my_net.py").write_text(NET.replace("nn.ReLU()", "nn.Tanh()"))
    with pytest.raises(ConfigError, match=r"my_net.py has sha256 \w+, expected \w+: it was damaged or edited"):
        distmeta.load(run)
    (run / "code" / "my_net.py").unlink()
    with pytest.raises(ConfigError, match=r"my_net.py cannot be read"):
        distmeta.load(run)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_no_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no folder .*nowhere; expected a run directory, a folder of"):
        distmeta.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is not a run: there is no run.json in it"):
        distmeta.load(tmp_path)


def test_a_damaged_checkpoint_is_refused(home, tmp_path):
    shutil.copytree(home / "MAML", tmp_path / "run")
    (newest,) = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1:]
    content = bytearray((newest / "params.safetensors").read_bytes())
    content[-3] ^= 1
    (newest / "params.safetensors").write_bytes(content)
    with pytest.raises(CheckpointDamaged, match=r"params.safetensors has sha256"):
        distmeta.load(tmp_path / "run")


def test_another_model_is_refused(home, tmp_path):
    learner = distmeta.MAML(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)))
    with pytest.raises(CheckpointMismatch, match=r"other names or shapes than the model"):
        distmeta.load(home / "MAML", learner=learner)


def test_a_run_from_python_needs_its_learner(digits_dir, tmp_path):
    def learner():
        torch.manual_seed(3)
        return distmeta.MAML(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), inner_lr=0.1)

    trained = learner()
    trained.train(distmeta.FewShot(digits_dir, ways=3), iterations=1, run_dir=tmp_path / "run", place=Place())
    with pytest.raises(ConfigError, match=r"was started from Python, .* Write distmeta\.load\(RUN_DIR, learner="):
        distmeta.load(tmp_path / "run")
    x = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    fast = distmeta.load(tmp_path / "run", learner=learner()).adapt(x, [5, 6, 7])
    expected = trained.adapt(torch.from_numpy(x).float() / 255, torch.tensor([5, 6, 7]))
    np.testing.assert_allclose(fast.logits(x), expected.logits(torch.from_numpy(x).float() / 255), rtol=1e-6)


def test_learners_of_a_support_set_run_no_sequence_and_the_reverse(home, tmp_path):
    with pytest.raises(distmeta.DistmetaError, match=r"MAML learns from a support set. Use adapt"):
        distmeta.load(home / "MAML").run(np.zeros((4, 1, 8, 8)))
    job = tmp_path / "copy_task.py"
    job.write_text(
        "import distmeta\n"
        "experiment = distmeta.Experiment(\n"
        "    learner=distmeta.NTM(distmeta.ntm(size=8, slots=6, width=4)),\n"
        "    tasks=distmeta.CopyTask(bits=3, length=3, max_length=3),\n"
        "    outer=distmeta.Outer(iterations=1, meta_batch_size=2),\n"
        "    evaluation=distmeta.Evaluation(every=0, test_tasks=4),\n"
        ")\n"
    )
    loaded = load_job(job)
    distmeta.meta_train(loaded, run_dir=tmp_path / "run", place=Place())
    predictor = distmeta.load(tmp_path / "run")
    episode = loaded.experiment.tasks.take(1)[0].episode
    with torch.no_grad():
        expected = predictor.learner.query_logits(predictor.params, episode).numpy()
    np.testing.assert_allclose(predictor.run(episode.query_x), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(predictor.run(episode.query_x[None].numpy())[0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(distmeta.DistmetaError, match=r"shape \[4, 1\]; expected \[L, 4\]"):
        predictor.run(np.zeros((4, 1)))
    with pytest.raises(distmeta.DistmetaError, match=r"NaN or infinite"):
        predictor.run(np.full((4, 4), np.nan))
    with pytest.raises(distmeta.DistmetaError, match=r"Use run\(sequence\)"):
        predictor.adapt(np.zeros((2, 5)), ["a", "b"])
    assert Path(tmp_path / "run" / "job.py").exists()
