"""What a run is given becomes what it was trained on; what could mean two things is refused with the fix."""

import io
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from distmeta.data import Preprocessing, ShardDataset, build_glyphs, build_image_folder, from_arrays
from distmeta.data.pictures import DARK
from distmeta.data.sources.omniglot import drawings
from distmeta.errors import DataError

GREY = Preprocessing((1, 28, 28), "uint8")
COLOUR = Preprocessing((3, 28, 28), "uint8")
INK = Preprocessing((1, 28, 28), "uint8", ink=True)
ROWS = Preprocessing((5,), "float32")
RANDOM = np.random.default_rng(0)


def photos(*shape):
    return RANDOM.integers(2, 256, shape, dtype=np.uint8)


def stored(directory):
    """All images of a dataset by class name, as networks see them."""
    dataset = ShardDataset.open(directory)
    found = {}
    for split in dataset.manifest.splits:
        part = dataset.split(split)
        for i, name in enumerate(part.names):
            rows = np.arange(part.counts[i])
            found[name] = part.gather(np.full(len(rows), i), rows).astype(np.float32) / np.float32(255)
    return dataset.manifest, found


# -- the same pixels as the dataset's ----------------------------------------------------------------------------------

KINDS = {"png": {}, "jpg": {"quality": 90}, "webp": {"quality": 80}, "bmp": {}, "tif": {}, "gif": {}, "ppm": {}}


@pytest.mark.parametrize("ink", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(None, None), (16, None), (16, 1), (16, 3), (33, 3)])
def test_a_file_becomes_what_the_build_made_of_it(tmp_path, ink, size, channels):
    root = tmp_path / "in"
    for i, (suffix, options) in enumerate(KINDS.items()):
        page = np.full((24, 30, 3), 250 if i % 2 else 3, np.uint8)
        page[6:-6, 8:-8] = RANDOM.integers(0, 256, (12, 14, 3))
        image = Image.fromarray(page)
        if suffix == "gif":
            image = image.quantize(32)
        (root / "train" / suffix).mkdir(parents=True)
        image.save(root / "train" / suffix / f"1.{suffix}", **options)
    build_image_folder(root, tmp_path / "out", size=size, channels=channels, ink=ink)
    manifest, images = stored(tmp_path / "out")
    made = Preprocessing.of(manifest)
    assert made == Preprocessing.from_dict(made.to_dict())
    assert made.ink is ink
    assert made.input_shape == (channels or (1 if ink else 3), *((size, size) if size else (24, 30)))
    for suffix in KINDS:
        path = root / "train" / suffix / f"1.{suffix}"
        with Image.open(path) as opened:
            for given_as in (path, str(path), path.read_bytes(), opened):
                assert np.array_equal(made.inputs([given_as]), images[suffix]), suffix
        assert np.array_equal(made.inputs(path), images[suffix])
        assert np.array_equal(made.inputs(images[suffix]), images[suffix]), "its own images are unchanged"


@pytest.mark.parametrize("ink", [False, True])
def test_unusual_files_become_what_the_build_made_of_them(tmp_path, ink):
    page = np.full((24, 30, 3), 255, np.uint8)
    page[6:-6, 8:-8] = RANDOM.integers(0, 256, (12, 14, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image, grey = Image.fromarray(page), page[..., 0]
    files = {
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "turned.jpg": (image, {"exif": exif}),
        "sixteen.png": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "bits.png": (Image.fromarray(grey > 127), {}),
        "clear.png": (Image.fromarray(np.concatenate([page, grey[..., None]], -1)), {}),
        "palette.png": (image.quantize(16), {"transparency": 3}),
        "sixteen.tiff": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        "moving.gif": (image, {"save_all": True, "append_images": [image.rotate(90)]}),
    }
    for name, (made_as, options) in files.items():
        path = tmp_path / "in" / "train" / name.replace(".", "-") / name
        path.parent.mkdir(parents=True)
        made_as.save(path, **options)
    build_image_folder(tmp_path / "in", tmp_path / "out", size=16, channels=3, ink=ink)
    manifest, images = stored(tmp_path / "out")
    made = Preprocessing.of(manifest)
    for path in (tmp_path / "in").rglob("*.*"):
        assert np.array_equal(made.inputs(path), images[path.parent.name]), path.name


def test_omniglot_originals_become_its_images(omniglot_dir, omniglot_source):
    manifest, images = stored(omniglot_dir)
    made = Preprocessing.of(manifest)
    assert made == Preprocessing((1, 28, 28), "uint8", ink=True)
    with zipfile.ZipFile(omniglot_source / "images_background.zip") as archive:
        for match in drawings(archive)[::97]:
            found = made.inputs([archive.read(match[0])])[0]
            assert np.array_equal(found, images[f"{match[1]}/{match[2]}"][int(match[4]) - 1]), match[0]
    every = np.concatenate(list(images.values()))
    assert np.array_equal(made.inputs(every), every)


def test_glyphs_of_the_dataset_are_unchanged(tmp_path):
    build_glyphs(tmp_path / "out", instances=3)
    manifest, images = stored(tmp_path / "out")
    made, every = Preprocessing.of(manifest), np.concatenate(list(images.values()))
    assert made.ink
    assert np.array_equal(made.inputs(every), every)
    assert np.array_equal(made.inputs(np.rint(every * 255).astype(np.uint8)), every)
    assert np.allclose(made.inputs(1 - every), every, atol=1e-6), "black on white"


def test_networks_see_the_same_floats(tmp_path):
    """Dividing by 255 in numpy or torch: the same bits."""
    bytes_ = np.arange(256, dtype=np.uint8)
    floats = torch.from_numpy(bytes_).float() / 255
    assert np.array_equal(Preprocessing((256,), "uint8").inputs(bytes_[None])[0], floats.numpy())


@pytest.mark.parametrize(
    ("name", "provenance", "ink"),
    [
        ("glyphs", {"source": "characters rendered from the DejaVu and STIX fonts that matplotlib ships"}, True),
        ("omniglot", {"source": "https://github.com/brendenlake/omniglot", "ink": "255 on 0, Lanczos"}, True),
        ("omniglot", {"source": "https://github.com/brendenlake/omniglot"}, True),
        ("omniglot-runs", {"source": "https://github.com/brendenlake/omniglot/tree/master/python"}, True),
        ("omniglot", {"source": "image folder", "split": "64/16/20", "size": 28, "channels": 1}, False),
        ("glyphs", {"source": "numpy arrays"}, False),
        ("anything", {}, False),
        ("anything", {"source": "image folder", "ink": True}, True),
        ("glyphs", {"source": "characters rendered from somewhere", "ink": False}, False),
    ],
)
def test_datasets_of_earlier_versions(tmp_path, name, provenance, ink):
    manifest = from_arrays(photos(4, 1, 8, 8), [0, 1, 2, 3], tmp_path, splits="50/25/25")
    old = manifest.model_copy(update={"name": name, "provenance": provenance})
    fill = 0.75 if provenance.get("source", "").startswith("characters") else None
    assert Preprocessing.of(old) == Preprocessing((1, 8, 8), "uint8", ink=ink, fill=fill)


# -- arrays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [GREY, COLOUR, INK, Preprocessing((3, 28, 28), "uint8", ink=True)])
@given(data=st.data())
def test_the_ways_to_give_the_same_pictures_agree(made, data):
    """Layouts and containers exactly; bytes and floats to one grey level of 255, in interpolation."""
    count, side = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([14, 28, 31]))
    channels = data.draw(st.sampled_from([1, 3]))
    seed = data.draw(st.integers(0, 99))
    first = np.full((count, channels, side, side), data.draw(st.sampled_from([0, 255])), np.uint8)
    inner = np.random.default_rng(seed).integers(0, 256, (count, channels, side - 6, side - 6), dtype=np.uint8)
    first[:, :, 3:-3, 3:-3] = inner
    last = first.transpose(0, 2, 3, 1)
    expected = made.inputs(first)
    assert expected.shape == (count, *made.input_shape)
    assert expected.dtype == np.float32
    assert 0 <= expected.min() <= expected.max() <= 1
    pictures = [Image.fromarray(one[..., 0] if channels == 1 else one) for one in last]
    ways = [last, first.astype(np.int64), torch.from_numpy(first), torch.from_numpy(last.copy()), list(first)]
    ways += [list(last), pictures, tuple(pictures), list(torch.from_numpy(first))]
    if channels == 1:
        ways += [list(first[:, 0]), *([first[:, 0]] if count != 3 or made.input_shape[0] == 1 else [])]
    for way in ways:
        assert np.array_equal(made.inputs(way), expected)
    for dtype in (np.float64, np.float32):
        assert np.abs(made.inputs((first / 255).astype(dtype)) - expected).max() <= 1.01 / 255
    assert np.abs(made.inputs(torch.from_numpy(first / 255).to(torch.bfloat16)) - expected).max() < 0.03
    one_by_one = np.concatenate([made.inputs(first[i : i + 1]) for i in range(count)])
    assert np.array_equal(one_by_one, expected), "an input does not depend on the others"


def test_bools_are_black_and_white():
    bits = RANDOM.random((2, 28, 28)) > 0.5
    assert np.array_equal(GREY.inputs(bits)[:, 0], bits.astype(np.float32))
    assert np.array_equal(GREY.inputs(bits[:, :14, :14]), GREY.inputs(np.where(bits[:, :14, :14], 255, 0)))
    assert Preprocessing((5,)).inputs(np.array([[True, False, True, True, False]])).tolist() == [[1, 0, 1, 1, 0]]


def test_alpha_in_arrays_is_over_white():
    clear = np.zeros((1, 40, 40, 4), np.uint8)
    assert (COLOUR.inputs(clear) == 1).all()
    assert (COLOUR.inputs(clear / 255.0) == 1).all()
    assert (INK.inputs(clear) == 0).all(), "paper"


def test_ink_is_turned_per_picture():
    page = np.full((28, 28), 255, np.uint8)
    page[10:18, 10:18] = 0
    found = INK.inputs([page, 255 - page, Image.fromarray(page), page / 255, page > 127])
    assert np.array_equal(found, np.repeat(found[:1], 5, 0))
    assert found[0, 0, 0, 0] == 0
    assert found[0, 0, 14, 14] == 1
    grey = np.where(page > 0, 200, 20).astype(np.uint8)
    assert INK.inputs([grey])[0, 0, 14, 14] == pytest.approx(0.9, abs=0.01), "grey paper is 0"
    assert INK.inputs([grey])[0, 0, 0, 0] == 0
    assert np.abs(INK.inputs([grey / 255]) - INK.inputs([grey])).max() < 1 / 255


def test_rows_of_numbers():
    rows = RANDOM.normal(size=(3, 5)) * 100
    for given_as in (rows, rows.tolist(), torch.from_numpy(rows), [tuple(row) for row in rows], list(rows)):
        assert np.array_equal(ROWS.inputs(given_as), rows.astype(np.float32))
    assert ROWS.inputs(np.arange(10).reshape(2, 5)).tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    scaled = Preprocessing((5,), "uint8")
    for given_as in (np.full((1, 5), 51, np.uint8), np.full((1, 5), 51), np.full((1, 5), 0.2)):
        assert np.allclose(scaled.inputs(given_as), 0.2, atol=1e-7)


def test_floats_of_a_scale_of_their_own():
    made = Preprocessing((1, 4, 4), "float32")
    x = RANDOM.normal(size=(2, 1, 4, 4))
    assert np.array_equal(made.inputs(x), x.astype(np.float32))
    for given_as in (Image.new("L", (4, 4)), np.zeros((1, 1, 4, 4), np.uint8), np.zeros((1, 1, 8, 8))):
        with pytest.raises(DataError, match="floats of its dataset's own scale"):
            made.inputs(given_as if isinstance(given_as, np.ndarray) else [given_as])


def test_empty_batches():
    assert GREY.inputs([]).shape == (0, 1, 28, 28)
    assert GREY.inputs(np.zeros((0, 28, 28))).shape == (0, 1, 28, 28)
    assert ROWS.inputs([]).shape == (0, 5)


def test_paths_in_an_array(tmp_path):
    Image.fromarray(photos(30, 30)).save(tmp_path / "a.png")
    expected = GREY.inputs([tmp_path / "a.png"])
    for given_as in (np.array([str(tmp_path / "a.png")]), np.array([tmp_path / "a.png"], object)):
        assert np.array_equal(GREY.inputs(given_as), expected)


NAN = np.zeros((3, 28, 28))
NAN[1, 4, 4] = np.nan


@pytest.mark.parametrize(
    ("made", "value", "message"),
    [
        (GREY, np.full((2, 28, 28), 200.0), r"floats? from 0 to 1. Divide by 255|Divide by 255, or give uint8"),
        (GREY, RANDOM.normal(size=(2, 28, 28)), "Undo the normalisation"),
        (GREY, np.full((2, 28, 28), 300), "integers from 0 to 255"),
        (GREY, np.full((2, 28, 28), -1), "integers from 0 to 255"),
        (GREY, np.ones((2, 28, 28), np.int64), "black and almost black, or black and white. Give bools"),
        (GREY, np.eye(28, dtype=np.uint8)[None], "Give bools"),
        (GREY, NAN, "Input 1 has NaN"),
        (GREY, list(NAN), "Input 1 has NaN"),
        (GREY, np.zeros((2, 28, 28), complex), "complex128; expected integers 0 to 255"),
        (GREY, np.zeros((28, 28, 3)), r"one picture in colours, or 28 grey ones. For one picture, give x\[None\]"),
        (COLOUR, np.zeros((84, 84, 3)), "one picture in colours"),
        (COLOUR, np.zeros((3, 84, 84)), "one picture in colours"),
        (COLOUR, np.zeros((3, 28, 28)), "one picture in colours"),
        (COLOUR, np.zeros((2, 3, 50, 3)), "channels may be the first or the last"),
        (COLOUR, [np.zeros((3, 28, 3))], r"Input 0 has shape \[3, 28, 3\], whose channels may be"),
        (COLOUR, np.zeros((2, 2, 28, 28)), r"expected pictures \[B, H, W\]"),
        (COLOUR, [np.zeros((28, 28, 2))], r"Input 0 has shape \[28, 28, 2\]; expected pictures \[H, W\]"),
        (GREY, np.zeros((28, 28)), r"\[28, 28\]; expected pictures .* give x\[None\]"),
        (GREY, np.float64(3), "one number"),
        (GREY, np.zeros((2, 0, 5)), "no pixels"),
        (GREY, {"a": 1}, "are a dict; expected a list of pictures"),
        (GREY, iter([]), "expected a list of pictures"),
        (GREY, [photos(28, 28), 3], "Input 1 is a int; expected a path"),
        (
            GREY,
            [photos(28, 28), "nowhere.png"],
            r"^nowhere\.png does not exist\. Correct the path; the current folder is /",
        ),
        (GREY, [b"GIF89a"], "Input 0: the picture cannot be read"),
        (GREY, [photos(28, 28), __file__], "^/.*test_preprocessing.py cannot be read as an image"),
        (GREY, torch.zeros(2, 28, 28).to_sparse(), "Give a dense tensor"),
        (INK, [np.full((28, 28), 150, np.uint8)], "Input 0 has a background of 150, neither dark"),
        (INK, [Image.new("L", (9, 9)), Image.new("L", (99, 99), 150)], "Input 1 has a background of 150"),
        (INK, np.full((2, 28, 28), 150 / 255), "Input 0 has a background of 150"),
        (ROWS, [Image.new("L", (5, 1))], "is a picture; the model takes numbers of shape"),
        (ROWS, "photo.png", "is a picture; the model takes numbers"),
        (ROWS, np.zeros((2, 4)), r"float64 \[2, 4\]; .* expected \[B, 5\]"),
        (ROWS, [[1, 2, 3]], r"expected \[B, 5\]"),
        (ROWS, [[1, 2, 3, 4, 5], [1, 2]], "Input 0 is a list"),
        (ROWS, np.full((1, 5), 1e300), "Input 0 has NaN or infinite"),
        (Preprocessing((5,), "uint8"), np.full((1, 5), 7.0), "expected floats from 0 to 1"),
    ],
)
def test_refused(made, value, message):
    with pytest.raises(DataError, match=message):
        made.inputs(value)


def test_a_picture_file_is_called_by_its_path(tmp_path):
    """The second of 20 was "Input 1", without its name."""
    Image.new("L", (28, 28), 150).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}/grey\.png has a background of 150"):
        INK.inputs([np.zeros((28, 28), np.uint8), tmp_path / "grey.png"])


def test_the_limit_of_pixels():
    big = np.zeros((1, 30, 30), np.uint8)
    for given_as in (big, list(big), [Image.fromarray(big[0])]):
        assert GREY.inputs(given_as, max_pixels=900).shape == (1, 1, 28, 28)
        with pytest.raises(DataError, match="30x30 pixels; expected at most 899"):
            GREY.inputs(given_as, max_pixels=899)


def test_a_thin_picture_does_not_become_a_huge_one():
    file = io.BytesIO()
    Image.new("1", (1, 5_000_000), 1).save(file, "PNG")
    assert INK.inputs([file.getvalue()]).shape == (1, 1, 28, 28)
    assert GREY.inputs([file.getvalue()]).shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "int8"},
        {"ink": "false"},
        {"input_shape": [1, 0, 28]},
        {"input_shape": []},
        {"input_shape": [1.5]},
        {"input_shape": "28"},
        {"input_shape": [True, 28, 28]},
    ],
)
def test_bad_dictionaries(changes):
    with pytest.raises((TypeError, ValueError)):
        Preprocessing.from_dict({**GREY.to_dict(), **changes})
    with pytest.raises(KeyError):
        Preprocessing.from_dict({})


def test_dark_and_light_have_room_between():
    assert DARK < 128


GLYPH = Preprocessing((1, 28, 28), "uint8", ink=True, fill=0.75)


def letter(width, height, scale, at):
    """An L of ink on paper, wherever and however large it is drawn."""
    page = np.full((height, width), 255, np.uint8)
    x, y = at
    page[y : y + 16 * scale, x : x + 3 * scale] = 0
    page[y + 13 * scale : y + 16 * scale, x : x + 10 * scale] = 0
    return Image.fromarray(page)


@pytest.mark.parametrize(
    ("width", "height", "scale", "at"), [(200, 100, 5, (10, 10)), (100, 300, 4, (40, 200)), (600, 600, 20, (100, 150))]
)
def test_ink_of_a_framed_dataset_is_cut_out_scaled_and_centred(width, height, scale, at):
    """Seen before: the same letter on a landscape page was smaller, and a third of the answers turned wrong."""
    (found,) = GLYPH.inputs([letter(width, height, scale, at)])
    (expected,) = GLYPH.inputs([letter(160, 160, 10, (30, 0))])
    assert np.abs(found - expected).mean() < 0.02
    rows, columns = np.flatnonzero(found[0].any(1)), np.flatnonzero(found[0].any(0))
    assert (rows[0], rows[-1]) == (3, 23)  # 21 of 28 pixels, centred
    assert abs((columns[0] + columns[-1]) / 2 - 13.5) <= 1


def test_what_has_the_datasets_size_is_left_as_it_is():
    page = np.zeros((28, 28), np.uint8)
    page[2:9, 4:8] = 200
    for page_given in ([Image.fromarray(page)], page[None], [Image.fromarray(255 - page)]):
        assert np.array_equal(GLYPH.inputs(page_given)[0, 0], page.astype(np.float32) / np.float32(255))
    assert not GLYPH.inputs([Image.new("L", (90, 70), 255)]).any()  # an empty page


@pytest.mark.parametrize("fill", [0, 2.0, "0.5", True])
def test_a_damaged_fill_is_refused(fill):
    with pytest.raises(ValueError, match="fill"):
        Preprocessing.from_dict({**GLYPH.to_dict(), "fill": fill})
    assert Preprocessing.from_dict(GLYPH.to_dict()) == GLYPH
