"""A trained learner in scikit-learn: its own acceptance suite, its tools, pictures, and another process."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distmeta
from distmeta.errors import CheckpointMismatch, ConfigError, LearnerContractError

sklearn = pytest.importorskip("sklearn", reason="needs the extra distmeta[sklearn]")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_wine  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from distmeta.sklearn import FewShotClassifier  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

# Tasks as the checks of scikit-learn have them: 1 to 24 columns, standardised by the support set, filled up with zeros.
TABLES = """
import numpy as np
import torch
import distmeta

MOST = 24


class Tables(distmeta.TaskDistribution):
    spec = distmeta.TaskSpec((MOST,), 5, "classification", 25, 25)
    fingerprint = "1" * 64

    def draw(self, split, random):
        columns = int(random.integers(1, MOST + 1))
        y = np.repeat(np.arange(5), 10)
        x = random.normal(size=(50, columns)) * random.uniform(0.3, 1.5, columns)
        x += 2 * random.normal(size=(5, columns))[y]
        first = np.arange(50) % 10 < 5
        x = np.pad((x - x[first].mean(0)) / x[first].std(0), ((0, 0), (0, MOST - columns)))
        x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
        return distmeta.Episode(x[first], y[first], x[~first], y[~first])


experiment = distmeta.Experiment(
    learner=distmeta.{learner},
    tasks=Tables(),
    outer=distmeta.Outer(iterations={iterations}, meta_batch_size=8, lr=1e-3),
    evaluation=distmeta.Evaluation(every=0, test_tasks=10),
)
"""
PICTURES = """
import distmeta

experiment = distmeta.Experiment(
    learner=distmeta.ProtoNet(distmeta.conv4(width=4, head=False)),
    tasks=distmeta.FewShot(data={data!r}, ways=3, shots=1, queries=2),
    outer=distmeta.Outer(iterations=2, meta_batch_size=2),
    evaluation=distmeta.Evaluation(every=0, test_tasks=4),
)
"""


def trained(folder: Path, text: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        (folder / "job.py").write_text(text)
        distmeta.meta_train(distmeta.load_job(folder / "job.py"), run_dir=folder / "run")
    return folder / "run"


def tables(learner, iterations):
    return TABLES.replace("{learner}", learner).replace("{iterations}", str(iterations))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    protonet = 'ProtoNet(distmeta.mlp((64,), norm="layer", head=False))'
    return trained(tmp_path_factory.mktemp("rows"), tables(protonet, 60))


@pytest.fixture(scope="module")
def maml(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("maml"), tables("MAML(distmeta.mlp((32,)), inner_lr=0.1)", 2))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, digits_dir) -> Path:
    return trained(tmp_path_factory.mktemp("pictures"), PICTURES.format(data=str(digits_dir)))


def test_scikit_learns_own_checks(rows):
    """None is expected to fail; one is skipped by scikit-learn itself, where array API is not switched on."""
    estimator = FewShotClassifier(str(rows), pad_features=True, standardise=True)
    found = check_estimator(estimator, expected_failed_checks={}, on_skip=None)
    status = {}
    for check in found:
        status.setdefault(check["status"], []).append(check["check_name"])
    assert set(status) <= {"passed", "skipped"}
    assert set(status.get("skipped", [])) <= {"check_array_api_input"}
    assert len(status["passed"]) > 40


def test_five_folds_of_wine(rows):
    x, y = load_wine(return_X_y=True)
    names = np.array(["barolo", "grignolino", "barbera"], object)[y]
    scores = cross_val_score(FewShotClassifier(rows, pad_features=True, standardise=True), x, names, cv=5)
    assert scores.shape == (5,)
    assert scores.mean() > 0.85
    unscaled = FewShotClassifier(rows, pad_features=True)
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(), unscaled), {"fewshotclassifier__standardise": [True, False]}
    )
    search.fit(x, names)
    assert search.best_params_ == {"fewshotclassifier__standardise": True}
    assert set(search.classes_) == {"barolo", "grignolino", "barbera"}


def test_it_gives_what_the_learner_gives(rows, maml):
    x, y = np.random.default_rng(0).normal(size=(20, 24)), np.arange(20) % 3 + 0.0
    for source in (rows, maml):
        fast = distmeta.load(source).adapt(x, y.astype(int))
        found = FewShotClassifier(source).fit(x, y)
        assert np.abs(found.predict_proba(x) - fast.predict_proba(x)).max() < 1e-6
        assert found.classes_.tolist() == [0.0, 1.0, 2.0]
        assert np.array_equal(found.predict(x), fast.predict(x))
        assert found.n_features_in_ == 24
    assert clone(found).get_params() == {"source": maml, "pad_features": False, "standardise": False}
    assert not hasattr(clone(found), "classes_")


def test_a_pickle_is_small_and_works_in_another_process_and_folder(rows, tmp_path, monkeypatch):
    x, y = load_wine(return_X_y=True)
    monkeypatch.chdir(rows.parent)
    estimator = FewShotClassifier("run", pad_features=True, standardise=True).fit(x[::2], y[::2])
    content = pickle.dumps(estimator)
    assert b"ProtoNet" not in content
    assert b"Linear" not in content
    assert len(content) < 20_000
    (tmp_path / "e.pickle").write_bytes(content)
    np.savez(tmp_path / "x.npz", x=x)
    program = (
        "import pickle, numpy as np, torch; torch.set_num_threads(1); "
        "e = pickle.load(open('e.pickle', 'rb')); np.save('p.npy', e.predict_proba(np.load('x.npz')['x']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(distmeta.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "p.npy"), estimator.predict_proba(x))


def test_a_pickle_of_other_parameters_is_refused(rows, maml, tmp_path):
    distmeta.export(rows, tmp_path / "e")
    x, y = np.random.default_rng(0).normal(size=(6, 24)), [0, 1] * 3
    content = pickle.dumps(FewShotClassifier(tmp_path / "e").fit(x, y))
    (tmp_path / "e").rename(tmp_path / "old")
    distmeta.export(maml, tmp_path / "e")
    with pytest.raises(CheckpointMismatch, match="has other parameters than when fit was called"):
        pickle.loads(content).predict(x)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Paths and pixels of pictures of two classes: stripes down, stripes across."""
    root, random = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    half = np.repeat([[0, 200]], 4, 1)
    patterns = (np.tile(half, (8, 1)), np.tile(half.T, (1, 8)))
    pixels = np.array([patterns[n % 2] + random.integers(0, 50, (8, 8)) for n in range(20)], np.uint8)
    paths = [root / f"{n}.png" for n in range(20)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    return paths, pixels, np.array(["down", "across"])[np.arange(20) % 2]


def test_pictures_in_every_form(pictures, drawn):
    paths, pixels, y = drawn
    expected = FewShotClassifier(pictures).fit(paths, y).predict_proba(paths)
    forms = {
        "text": [str(path) for path in paths],
        "array of text": np.array([str(path) for path in paths]),
        "array of paths": np.array(paths, object),
        "column of text": np.array([[str(path)] for path in paths]),
        "bytes": [path.read_bytes() for path in paths],
        "PIL": [Image.fromarray(one) for one in pixels],
        "list of arrays": list(pixels),
        "[n, H, W]": pixels,
        "[n, C, H, W]": pixels[:, None],
        "floats [n, H, W, C]": (pixels[..., None] / 255).astype(np.float32),
        "tensor": torch.from_numpy(pixels),
        "rows": pixels.reshape(20, -1),
        "rows in lists": pixels.reshape(20, -1).tolist(),
    }
    for name, x in forms.items():
        found = FewShotClassifier(pictures).fit(x, y)
        assert np.abs(found.predict_proba(x) - expected).max() < 1e-6, name
        assert hasattr(found, "n_features_in_") == name.startswith("rows"), name
    for x in (forms["text"], forms["array of text"], pixels, forms["rows"]):
        scores = cross_val_score(FewShotClassifier(pictures), x, y, cv=5)
        assert scores.mean() > 0.9


def test_what_cannot_be_fitted_is_named(rows, maml, pictures, drawn, tmp_path):
    paths, pixels, y = drawn
    x = np.zeros((12, 24))
    with pytest.raises(LearnerContractError, match=r"12 classes, 0, 1, .*MAML\) tells at most 5 apart.*tasks\.ways=12"):
        FewShotClassifier(maml).fit(x, np.arange(12))
    with pytest.raises(ValueError, match=r"X has 13 features; .* takes rows of 24 numbers. Give pad_features=True"):
        FewShotClassifier(rows).fit(x[:, :13], np.arange(12))
    with pytest.raises(ValueError, match=r"X has 25 features; .* Choose as many columns"):
        FewShotClassifier(rows, pad_features=True).fit(np.zeros((4, 25)), [0, 0, 1, 1])
    with pytest.raises(ConfigError, match="There is no folder"):
        FewShotClassifier(tmp_path / "nix").fit(x, np.arange(12))
    with pytest.raises(ValueError, match="X is one str; expected a list of pictures"):
        FewShotClassifier(pictures).fit(str(paths[0]), y)
    with pytest.raises(ValueError, match="Found 20 pictures and 19 labels"):
        FewShotClassifier(pictures).fit(paths, y[:-1])
    with pytest.raises(ValueError, match=r"X has 63 features; .* flattened rows of 64"):
        FewShotClassifier(pictures).fit(pixels.reshape(20, -1)[:, 1:], y)
    with pytest.raises(TypeError, match="sample_weight"):
        FewShotClassifier(rows).fit(x, np.arange(12) % 2, sample_weight=np.ones(12))


def test_a_learner_of_numbers_is_no_classifier(tmp_path):
    from helpers import SINES

    run = trained(tmp_path, SINES)
    with pytest.raises(ConfigError, match="is a MAML for regression; expected a learner that classifies"):
        FewShotClassifier(run).fit(np.zeros((4, 1)), [0, 0, 1, 1])


def test_without_scikit_learn_the_message_has_the_fix():
    program = "import sys; sys.modules['sklearn'] = None; import distmeta.sklearn"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'distmeta[sklearn]'" in done.stderr
