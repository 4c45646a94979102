"""The picture of answers: many classes, one query, wrong answers; a PNG each time."""

import numpy as np
import pytest
from PIL import Image

from distmeta.figures.answers import MOST, draw_answers


@pytest.mark.parametrize(
    ("classes", "shots", "queries", "channels", "known"),
    [(2, 1, 1, 1, False), (5, 3, 7, 3, True), (30, 1, 50, 1, True)],
)
def test_a_picture_of_any_task(tmp_path, classes, shots, queries, channels, known):
    random, names = np.random.default_rng(0), [f"class {n} with a long name" for n in range(classes)]
    probabilities = random.dirichlet(np.ones(classes), queries)
    path = draw_answers(
        tmp_path / "deep" / "a.png",
        title="demo",
        classes=names,
        support=random.random((classes * shots, channels, 8, 8)),
        support_labels=[name for name in names for _ in range(shots)],
        queries=random.random((queries, channels, 8, 8)),
        names=[f"folder/{n}.png" for n in range(queries)],
        probabilities=probabilities,
        truth=[names[0]] * queries if known else None,
        ink=channels == 1,
    )
    with Image.open(path) as picture:
        assert (picture.format, picture.width) == ("PNG", 1350)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    red = (pixels == np.array([0xC8, 0x55, 0x3D])).all(1).any()
    assert red == known  # frames of wrong answers, and only of those
    assert len(probabilities) <= MOST or picture.height < 4000
