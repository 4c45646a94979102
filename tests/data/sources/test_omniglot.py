"""Omniglot from the official archives, and the download that fetches them."""

import http.server
import io
import json
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from distmeta.data import ShardDataset, build_omniglot, inspect, verify
from distmeta.data.sources import omniglot as module
from distmeta.errors import DataError
from distmeta.types import SPLITS

# -- the real archives -------------------------------------------------------------------------------------------------


@pytest.mark.omniglot
def test_every_class_of_the_vinyals_split(omniglot_dir, omniglot_source):
    report = verify(omniglot_dir)
    assert report.classes == {"meta_train": 1028, "meta_validation": 172, "meta_test": 423}
    assert sum(report.images.values()) == 32_460
    dataset = ShardDataset.open(omniglot_dir)
    assert dataset.input_shape == (1, 28, 28)
    published = json.loads((omniglot_source / "vinyals_split.json").read_text())
    for name, key in (("meta_train", "train"), ("meta_validation", "val"), ("meta_test", "test")):
        ids = [c.id + 1 for c in dataset.manifest.splits[name].classes]
        assert ids == sorted(published[key])
        assert (dataset.split(name).counts == 20).all()


@pytest.mark.omniglot
def test_ink_is_bright_and_rows_are_drawers(omniglot_dir, omniglot_source):
    """Image i of a class is the drawing of drawer i + 1: compared with the archive itself."""
    split = ShardDataset.open(omniglot_dir).split("meta_test")
    with zipfile.ZipFile(omniglot_source / "images_evaluation.zip") as archive:
        for c in (0, 200, 422):
            prefix = f"images_evaluation/{split.names[c]}/{1201 + c:04d}"
            for drawer in (1, 2, 20):
                with Image.open(io.BytesIO(archive.read(f"{prefix}_{drawer:02d}.png"))) as image:
                    ink = (~np.asarray(image)).astype(np.float64)
                got = split.gather(np.array([c]), np.array([drawer - 1]))[0, 0].astype(np.float64) / 255
                # The same amount of ink at the same place: scaling down keeps the mean and the centre.
                assert got.mean() == pytest.approx(ink.mean(), rel=0.1)
                for axis in (0, 1):
                    there = (ink.sum(axis) * (np.arange(105) + 0.5)).sum() / ink.sum() / 105
                    here = (got.sum(axis) * (np.arange(28) + 0.5)).sum() / got.sum() / 28
                    assert here == pytest.approx(there, abs=0.01)


@pytest.mark.omniglot
def test_no_image_is_blank(omniglot_dir):
    dataset = ShardDataset.open(omniglot_dir)
    for name in SPLITS:
        split = dataset.split(name)
        x = split.gather(np.repeat(np.arange(split.classes), 20), np.tile(np.arange(20), split.classes))
        assert (x.reshape(len(x), -1).max(1) > 100).all()
        assert x.mean() < 40, "paper is dark"


@pytest.mark.omniglot
def test_official_split(omniglot_source, tmp_path):
    seen = []
    build_omniglot(
        tmp_path, source=omniglot_source, split="background-evaluation", size=8, progress=lambda *at: seen.append(at)
    )
    summary = inspect(tmp_path)
    counts = {name: values["classes"] for name, values in summary["splits"].items()}
    assert counts == {"meta_train": 964, "meta_validation": 0, "meta_test": 659}
    assert seen[-1] == (1623, 1623)
    dataset = ShardDataset.open(tmp_path)
    alphabets = [{name.split("/")[0] for name in dataset.split(s).names} for s in ("meta_train", "meta_test")]
    assert [len(a) for a in alphabets] == [30, 20]
    assert not alphabets[0] & alphabets[1]
    with pytest.raises(DataError, match="no classes in meta_validation"):
        dataset.split("meta_validation")


# -- damaged archives and downloads, with small ones -------------------------------------------------------------------


def small_archive(first, count):
    """``count`` characters from id ``first``, nested as the official archives are, with what macOS adds."""
    png = io.BytesIO()
    Image.new("1", (105, 105), 1).save(png, "PNG")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.mkdir("top")
        for i in range(first, first + count):
            for drawer in range(1, 21):
                name = f"top/Alphabet_{first}/character{i - first + 1:02d}/{i:04d}_{drawer:02d}.png"
                archive.writestr(name, png.getvalue())
                archive.writestr(f"__MACOSX/{name.replace(f'/{i:04d}', f'/._{i:04d}')}", b"")
    return data.getvalue()


@pytest.fixture
def archives(monkeypatch):
    """Two small archives, and a module that expects them."""
    monkeypatch.setattr(module, "ARCHIVES", {"images_background.zip": 40, "images_evaluation.zip": 20})
    monkeypatch.setattr(module, "CLASSES", 3)
    return {"images_background.zip": small_archive(1, 2), "images_evaluation.zip": small_archive(3, 1)}


class Server:
    """A file server on this machine that can cut connections and ignore ``Range``."""

    def __init__(self, files):
        self.files, self.ranges, self.cut_after, self.ignore_range = files, [], None, False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                data = outer.files.get(self.path.rsplit("/", 1)[-1])
                outer.ranges.append(self.headers["Range"])
                if data is None:
                    self.send_error(404)
                    return
                start = 0
                if self.headers["Range"] and not outer.ignore_range:
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                    if start >= len(data):
                        self.send_error(416)
                        return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][: outer.cut_after])

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(archives, monkeypatch, tmp_path):
    monkeypatch.setenv("DISTMETA_CACHE", str(tmp_path / "cache"))
    with Server(archives) as running:
        monkeypatch.setattr(module, "SOURCE_URL", f"http://127.0.0.1:{running.http.server_port}/python")
        yield running


def test_download_and_build(server, tmp_path):
    manifest = build_omniglot(tmp_path / "out", split="vinyals")
    assert [c.name for c in manifest.splits["meta_train"].classes] == [
        "Alphabet_1/character01",
        "Alphabet_1/character02",
        "Alphabet_3/character01",
    ]
    assert server.ranges == [None, None]
    build_omniglot(tmp_path / "again")
    assert server.ranges == [None, None], "the second build takes the cached archives"


def test_a_cut_download_is_continued(server, tmp_path):
    server.cut_after = 1000
    with pytest.raises(DataError, match=r"ended after 1000 of .*--from DIR"):
        build_omniglot(tmp_path / "out")
    server.cut_after = None
    build_omniglot(tmp_path / "out")
    assert server.ranges == [None, "bytes=1000-", None]


def test_a_server_that_ignores_range(server, tmp_path):
    server.cut_after = 1000
    with pytest.raises(DataError):
        build_omniglot(tmp_path / "out")
    server.cut_after, server.ignore_range = None, True
    build_omniglot(tmp_path / "out")


def test_a_complete_part_file_is_used(server, archives, tmp_path):
    """Killed after the last byte and before the rename."""
    folder = tmp_path / "cache" / "downloads" / "omniglot"
    folder.mkdir(parents=True)
    (folder / "images_background.zip.part").write_bytes(archives["images_background.zip"])
    build_omniglot(tmp_path / "out")


def test_a_page_instead_of_the_archive_is_not_kept(server, archives, tmp_path):
    good = archives["images_background.zip"]
    server.files["images_background.zip"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="not a whole zip"):
        build_omniglot(tmp_path / "out")
    server.files["images_background.zip"] = good
    build_omniglot(tmp_path / "out")


def test_no_network(server, tmp_path):
    server.files = {}
    with pytest.raises(DataError, match=r"404.*by hand.*--from DIR"):
        build_omniglot(tmp_path / "out")


def test_from_a_folder(archives, tmp_path):
    with pytest.raises(DataError, match=r"images_background.zip is absent.*images_evaluation.zip"):
        build_omniglot(tmp_path / "out", source=tmp_path)
    for name, data in archives.items():
        (tmp_path / name).write_bytes(data)
    build_omniglot(tmp_path / "out", source=tmp_path, split="background-evaluation")
    verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not a whole zip"),
        (lambda data: data[:-30], "not a whole zip"),
        (lambda data: data.replace(b"IDAT", b"IDAX", 1), "fails its CRC"),
        (lambda data: small_archive(1, 1), "holds 20 drawings, expected 40"),
        (lambda data: small_archive(2, 2), "do not hold the characters 1 to 3"),
    ],
)
def test_damaged_archive(archives, tmp_path, damage, message):
    archives["images_background.zip"] = damage(archives["images_background.zip"])
    for name, data in archives.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        build_omniglot(tmp_path / "out", source=tmp_path)


@pytest.mark.parametrize("settings", [{"split": "lake"}, {"size": 0}])
def test_bad_settings(tmp_path, settings):
    with pytest.raises(DataError, match="expected"):
        build_omniglot(tmp_path / "out", source=tmp_path, **settings)
