"""What an evaluation warns of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from distmeta.runtime.evaluation import few_classes_warning


@pytest.mark.parametrize(("classes", "said"), [(19, "meta_test has 19 classes: the interval"), (20, ""), (None, "")])
def test_few_classes_are_warned_of(classes, said):
    text = few_classes_warning(SimpleNamespace(classes=lambda split: classes), "meta_test")
    assert text.startswith(said)
    assert bool(text) == bool(said)
