"""Every kind of picture file becomes the right 8-bit pixels, and what has no right pixels is refused by name."""

import io
import struct
import subprocess
import sys
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from distmeta.data.pictures import FORMATS, Recipe, background, bright_ink, colours, drawn, fitted, open_picture
from distmeta.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (9, 12), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(0, 240, 5)[:, None], np.arange(0, 240, 5)[None], 90), -1).astype(
    np.uint8
)


def encoded(image, kind, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def pixels(source, channels=3, size=None):
    found = fitted(open_picture(source), channels, size)
    return found[0] if channels == 1 else found.transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ],
)
def test_lossless_formats_are_exact(kind, options):
    assert np.array_equal(pixels(encoded(RGB, kind, **options)), RGB)
    assert np.array_equal(pixels(encoded(GREY, kind, **options), 1), GREY)
    assert colours(open_picture(encoded(RGB, kind, **options))) == 3
    if kind != "WEBP":  # which has colours always
        assert colours(open_picture(encoded(GREY, kind, **options))) == 1


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("MPO", {})])
def test_lossy_formats_are_close(kind, options):
    assert np.abs(pixels(encoded(SMOOTH, kind, **options)).astype(int) - SMOOTH).mean() < 4


def test_the_first_picture_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixels(data)[0, 0].tolist() == [255, 0, 0], kind


def test_palettes_and_bits():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, "PNG"))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    palette.info["transparency"] = 1
    assert pixels(encoded(palette, "PNG"))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    bits = Image.fromarray(GREY > 127)
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(pixels(encoded(bits, kind), 1), np.where(GREY > 127, 255, 0)), kind
        assert colours(open_picture(encoded(bits, kind))) == 1


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_alpha_is_over_white(alpha):
    for mode, value, expected in [
        ("RGBA", (200, 100, 0, alpha), [200, 100, 0]),
        ("LA", (100, alpha), [100, 100, 100]),
    ]:
        found = pixels(encoded(Image.new(mode, (2, 2), value), "PNG"))[0, 0]
        over = [round(255 + (c - 255) * alpha / 255) for c in expected]
        assert np.abs(found.astype(int) - over).max() <= 1, mode
    for mode in ("RGBa", "La"):
        assert pixels(Image.new(mode, (2, 2)))[0, 0].tolist() == [255, 255, 255], "clear, premultiplied"
    png = encoded(np.full((2, 2, 3), 7, np.uint8), "PNG", transparency=(7, 7, 7))
    assert (pixels(png) == 255).all(), "one colour that means clear"


def test_cmyk_jpegs_have_their_colours():
    """Adobe's programs store them inverted; Pillow undoes that, and writes them so."""
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    red = pixels(data)[8, 8].astype(int)
    assert np.abs(red - [255, 0, 0]).max() < 12
    assert abs(int(pixels(data, 1)[8, 8]) - 76) < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY),
    }
    for kind, options in [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]:
        found = pixels(encoded(GREY, kind, exif=exif, **options), 1)
        assert np.array_equal(found, turned[orientation]), kind


SIXTEEN = np.array([[0, 128, 129, 257 * 155 + 100, 65535]], np.uint16)
EIGHT = [0, 0, 1, 155, 255]


def test_sixteen_bits():
    assert pixels(encoded(SIXTEEN, "PNG"), 1)[0].tolist() == EIGHT
    assert pixels(encoded(SIXTEEN, "TIFF"), 1)[0].tolist() == EIGHT
    assert pixels(Image.fromarray(SIXTEEN), 1)[0].tolist() == EIGHT
    pgm = b"P5 5 1 65535\n" + SIXTEEN.astype(">u2").tobytes()
    assert pixels(pgm, 1)[0].tolist() == EIGHT
    assert colours(open_picture(pgm)) == 1
    big = Image.frombytes("I;16B", (5, 1), SIXTEEN.astype(">u2").tobytes())
    assert pixels(big, 1)[0].tolist() == EIGHT
    assert pixels(sixteen_bit_rgb(), 3)[0, 0].tolist() == [255, 155, 0]


def png(width, height, bits, colour, rows, extra=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def sixteen_bit_rgb():
    return png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 257 * 155 + 100, 60))


def test_sixteen_bit_grey_with_a_clear_value():
    clear = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 300) + struct.pack(">I", zlib.crc32(b"tRNS\x01\x2c"))
    data = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 300, 600), extra=clear)
    assert pixels(data, 1)[0].tolist() == [255, 2]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((2, 2), 200, np.int32)), "32-bit integers without a known range"),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "floating point without a known range"),
        (Image.new("LAB", (2, 2)), "mode LAB; expected grey, RGB"),
    ],
)
def test_numbers_without_a_known_range(image, message):
    """Values to 200 in 32 bits would have become black when taken as 16 bits."""
    with pytest.raises(DataError, match=message):
        open_picture(image)
    with pytest.raises(DataError, match=message):
        open_picture(encoded(image, "TIFF"))


def test_a_bomb_is_refused_before_it_is_decoded():
    """A header of 60000x60000 pixels in 70 bytes, in a process that could not hold them."""
    bomb = png(60000, 60000, 8, 2, b"\0")
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from distmeta.data.pictures import open_picture\n"
        "from distmeta.errors import DataError\n"
        "try: open_picture(sys.stdin.buffer.read())\n"
        "except DataError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=bomb, capture_output=True, check=True, timeout=60)
    assert "more than 89,000,000 pixels" in done.stdout.decode()


def test_the_limit_of_pixels():
    data = encoded(RGB, "PNG")
    assert open_picture(data, max_pixels=9 * 12).size == (12, 9)
    with pytest.raises(DataError, match=r"has 12x9 pixels; expected at most 107 in all. Scale it down"):
        open_picture(data, max_pixels=9 * 12 - 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is no PNG, JPEG"),
        (b"not an image", "it is no PNG, JPEG"),
        (encoded(RGB, "PNG")[:80], "cannot be read as an image"),
        (b"\x89PNG\r\n\x1a\n broken", "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is no PNG, JPEG"),  # runs a program
    ],
)
def test_unreadable(tmp_path, data, message):
    with pytest.raises(DataError, match=rf"^the picture .*{message}"):
        open_picture(data)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match=rf"^{tmp_path}/x.png .*{message}"):
        open_picture(tmp_path / "x.png")


@pytest.mark.parametrize("path", [".", "a\0b.png"])
def test_unreadable_paths(path):
    with pytest.raises(DataError, match="cannot be read as an image"):
        open_picture(path)


def test_a_path_to_nothing(tmp_path, monkeypatch):
    """It was "[Errno 2] No such file or directory"."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^nowhere\.png does not exist\. .* current folder is {tmp_path}\.$"):
        open_picture("nowhere.png")


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_read_or_refused(kind, data):
    """Never another error than DataError: the build and the server count on it."""
    whole = bytearray(encoded(RGB, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    try:
        image = open_picture(bytes(whole[:cut]), max_pixels=10_000)
        assert fitted(image, 3, (5, 5)).shape == (3, 5, 5)
    except DataError:
        pass


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]))
def test_fitted_has_the_size_asked_for(height, width, tall, wide, channels):
    found = fitted(Image.new("RGB", (width, height), "lime"), channels, (tall, wide))
    assert found.shape == (channels, tall, wide)
    assert found.dtype == np.uint8
    assert len(np.unique(found.reshape(channels, -1), axis=1).T) == 1, "one colour stays one colour"


def drawing(height, width, paper, ink):
    """A plain page with a cross in its middle."""
    page = np.full((height, width), paper, np.uint8)
    page[height // 2, width // 4 : -(width // 4)] = ink
    page[height // 4 : -(height // 4), width // 2] = ink
    return page


@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]), st.sampled_from([None, (28, 28), (20, 30)]))
def test_drawings_become_bright_ink_either_way_round(height, width, channels, size):
    black = drawn(Image.fromarray(drawing(height, width, 255, 0)), channels, size, "page")
    white = drawn(Image.fromarray(drawing(height, width, 0, 255)), channels, size, "page")
    assert np.array_equal(black, white)
    assert black.shape == (channels, *(size or (height, width)))
    assert black[:, 0, 0].max() == 0
    assert black.max() > 100
    assert np.array_equal(black[0], black[-1])


def test_paper_that_is_a_little_grey_becomes_zero():
    assert np.array_equal(bright_ink(drawing(9, 9, 200, 0), "page"), drawing(9, 9, 0, 255))
    dim = drawing(9, 9, 30, 255)
    assert np.array_equal(bright_ink(dim, "page"), dim), "dark ones are as they are"


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_on_nothing(ink):
    """A page's canvas: white strokes on a clear background would be white on white."""
    strokes = drawing(20, 20, 0, 255)
    canvas = Image.fromarray(np.stack([np.full_like(strokes, ink), strokes], -1))
    assert canvas.mode == "LA"
    assert np.array_equal(drawn(canvas, 1, None, "canvas")[0], strokes)
    assert np.array_equal(drawn(canvas.convert("RGBA"), 1, None, "canvas")[0], strokes)


def test_drawings_are_padded_not_cropped():
    wide = drawing(10, 40, 255, 255)
    wide[:, 1:3] = 0  # ink at the far left
    wide[0] = wide[-1] = 255
    assert drawn(Image.fromarray(wide), 1, (20, 20), "page")[0][:, :3].max() > 100
    thin = Image.new("L", (1, 1_000_000), 255)
    assert drawn(thin, 1, (28, 28), "page").shape == (1, 28, 28), "no square of a million is made"


@pytest.mark.parametrize("grey", [85, 150, 169])
def test_a_background_that_is_neither(grey):
    with pytest.raises(DataError, match=rf"page.png has a background of {grey}, neither dark .* raise its contrast"):
        background(drawing(9, 9, grey, 0), "page.png")


@pytest.mark.parametrize(("size", "channels"), [((0, 0), None), (None, 2)])
def test_bad_recipes(size, channels):
    with pytest.raises(DataError, match="expected"):
        Recipe(size, channels)
