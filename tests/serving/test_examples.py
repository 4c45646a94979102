"""Examples from disk: a folder per class, loose pictures, CSV; whatever else is there is named, with the fix."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distmeta.errors import DataError
from distmeta.serving.examples import read_examples


@pytest.fixture
def pictures(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x.webp"):
        path = tmp_path / "support" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path.with_suffix(path.suffix))
    (tmp_path / "support/a/notes.txt").touch()
    (tmp_path / "support/.hidden").mkdir()
    (tmp_path / "loose").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "loose/q.png")
    return tmp_path


def table(path, text):
    path.write_text(text)
    return path


def test_folders_are_classes(pictures):
    found = read_examples(pictures / "support", labelled=True)
    assert found.names == ("a/x.webp", "b/1.JPG", "b/2.png")
    assert found.labels == ("a", "b", "b")
    assert found.pictures
    asked = read_examples(pictures / "loose", labelled=False, like=found)
    assert (asked.names, asked.labels) == (("q.png",), None)
    assert read_examples(pictures / "support", labelled=False).labels == ("a", "b", "b")
    one = read_examples(pictures / "loose/q.png", labelled=False)
    assert one.inputs == (pictures / "loose/q.png",)


def test_columns_are_taken_by_name(tmp_path):
    known = read_examples(table(tmp_path / "s.csv", "\ufeffx,y,kind\n1,2,ant\n3,4,bee\n"), labelled=True)
    assert (known.columns, known.labels) == (("x", "y"), ("ant", "bee"))
    asked = read_examples(table(tmp_path / "q.csv", "y,more,x\n2.5,8,1e1\n"), labelled=False, like=known)
    assert asked.inputs.tolist() == [[10.0, 2.5]]
    assert asked.labels is None
    asked = read_examples(table(tmp_path / "q.csv", "label,y,x\nbee,2,1\n"), labelled=False, like=known)
    assert (asked.inputs.tolist(), asked.labels, asked.names) == ([[1.0, 2.0]], ("bee",), ("line 2",))
    asked = read_examples(table(tmp_path / "q.csv", "x,y,kind\n1,2,ant\n"), labelled=False, like=known)
    assert asked.labels == ("ant",)
    named = read_examples(table(tmp_path / "s.csv", "label,x\nant,1\n"), labelled=True)
    assert (named.columns, named.labels) == (("x",), ("ant",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("x,y\n", "has no rows"),
        ("x,x\n1,2\n", "no different names"),
        ("x,\n1,2\n", "no different names"),
        ("1,2\n3,4\n", "line 1 is numbers; expected the names"),
        ("x,y\n1,ant\n2\n", "line 3 has 1 cells; expected 2"),
        ("x,y,z\n1,two,ant\n", "line 2, column 'y' is 'two'; expected a finite number"),
        ("x,y\nnan,ant\n", "column 'x' is 'nan'"),
        ("label\nant\n", "the label's column alone"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_examples(table(tmp_path / "s.csv", text), labelled=True)


def test_a_query_without_the_columns(tmp_path):
    known = read_examples(table(tmp_path / "s.csv", "x,y,kind\n1,2,ant\n"), labelled=True)
    with pytest.raises(DataError, match="lacks the columns y, which the support examples have"):
        read_examples(table(tmp_path / "q.csv", "x,z\n1,2\n"), labelled=False, like=known)


def test_a_table_in_another_encoding(tmp_path):
    (tmp_path / "s.csv").write_bytes("x,kind\n1,gr\xfcn\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read as CSV.*UTF-8"):
        read_examples(tmp_path / "s.csv", labelled=True)


def test_folders_that_are_none(pictures, tmp_path):
    cases = {
        "nowhere": "--support .*nowhere does not exist",
        "loose": "has no class folders; expected .*CLASS",
        "mixed": "has folders .* and pictures",
        "empty": "holds no pictures",
        "support/a/notes.txt": "is neither a folder nor a CSV file",
    }
    (tmp_path / "mixed/a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "mixed/q.png")
    (tmp_path / "empty/a").mkdir(parents=True)
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            read_examples(tmp_path / name, labelled=True)
    with pytest.raises(DataError, match="expected either"):
        read_examples(tmp_path / "mixed", labelled=False)
    known = read_examples(pictures / "support", labelled=True)
    with pytest.raises(DataError, match=r"are pictures, those of .* are rows of numbers"):
        read_examples(table(tmp_path / "q.csv", "x\n1\n"), labelled=False, like=known)


def test_numbers_are_float64(tmp_path):
    found = read_examples(table(tmp_path / "s.csv", "x,kind\n1,a\n"), labelled=True)
    assert found.inputs.dtype == np.float64
    assert Path(tmp_path / "s.csv").exists()
