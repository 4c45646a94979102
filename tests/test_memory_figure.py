"""The picture of a memory: what is drawn, and which of its slots."""

import numpy as np
import pytest

from distmeta.memory_figure import _used_slots, draw_memory

pytest.importorskip("matplotlib")


def panels(steps=9, slots=40):
    random = np.random.default_rng(0)
    outputs = random.random((3, steps))
    outputs[:, :4] = np.nan
    return {
        "inputs": random.integers(0, 2, (4, steps)),
        "outputs": outputs,
        "write weights": np.eye(slots)[:, 5 : 5 + steps],
        "read weights": np.eye(slots)[:, 7 : 7 + steps],
    }


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_a_picture_is_written_and_shows_what_it_is_given(tmp_path):
    first = draw_memory(tmp_path / "new" / "a.png", panels(), title="copy")
    assert first == tmp_path / "new" / "a.png"
    same = draw_memory(tmp_path / "b.png", panels(), title="copy")
    assert np.array_equal(pixels(first), pixels(same))
    for name in panels():
        changed = panels()
        changed[name] = 1 - changed[name]
        other = pixels(draw_memory(tmp_path / "c.png", changed, title="copy"))
        assert other.shape != pixels(first).shape or not np.array_equal(other, pixels(first)), name


def test_only_used_slots_are_drawn_and_the_same_of_every_head():
    assert _used_slots(panels()) == (4, 17)
    assert _used_slots({"inputs": np.ones((4, 9))}) == (0, 4)
    whole = panels() | {"write weights": np.full((40, 9), 1 / 40)}
    assert _used_slots({"write weights": whole["write weights"]}) == (0, 40)
    spill = panels()
    spill["read weights"][39, 0] = 0.2  # a moment's uncertainty at the other end is not worth half a picture
    assert _used_slots(spill) == (4, 17)


def test_panels_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="time steps; expected as many in each"):
        draw_memory(tmp_path / "a.png", panels() | {"inputs": np.ones((4, 8))})
    assert not (tmp_path / "a.png").exists()
