"""What an evaluation warns of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distmeta.runtime.evaluation import caution


@pytest.mark.parametrize(("classes", "said"), [(19, "meta_test has 19 classes: the interval"), (20, ""), (None, "")])
def test_few_classes_are_a_caution(classes, said):
    text = caution(SimpleNamespace(classes=lambda split: classes), "meta_test")
    assert text.startswith(said)
    assert bool(text) == bool(said)
