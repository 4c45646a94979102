"""Accuracies by occurrence, by hand and against counting in a loop."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distmeta.occurrences import accuracies, occurrence


def test_occurrences_are_counted_per_class_and_per_sequence():
    targets = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [2, -1, 2, -1, 0]])
    assert occurrence(targets).tolist() == [[1, 1, 2, 3, 2], [1, 2, 3, 4, 5], [1, 0, 2, 0, 1]]


@given(st.lists(st.lists(st.integers(-1, 4), min_size=12, max_size=12), min_size=1, max_size=3))
def test_occurrences_are_those_of_counting_in_a_loop(targets):
    expected = np.zeros((len(targets), 12), int)
    for row, sequence in zip(expected, targets, strict=True):
        seen = Counter()
        for step, target in enumerate(sequence):
            seen[target] += 1
            row[step] = seen[target] if target >= 0 else 0
    np.testing.assert_array_equal(occurrence(torch.tensor(targets)).numpy(), expected)


def test_a_string_is_one_class_only_if_all_symbols_are_the_same():
    targets = torch.tensor([[[0, 1], [1, 0], [0, 1], [0, 0]]])
    assert occurrence(targets).tolist() == [[1, 1, 2, 1]]


def test_accuracies_by_hand():
    targets = torch.tensor([[0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0]])
    right = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 0, 1, 0, 1, 1]]).bool()
    found = accuracies(right, targets)
    assert {name: value.tolist() for name, value in found.items()} == {
        "accuracy": [0.5, pytest.approx(4 / 6)],
        "accuracy_instance_1": [0.0, 0.5],
        "accuracy_instance_2": [1.0, 0.5],
        "accuracy_instance_3": [0.5, 1.0],
    }


def test_the_tenth_occurrence_is_there_when_there_is_one():
    targets = torch.arange(20)[None] % 2
    found = accuracies(torch.arange(20)[None] >= 18, targets)
    assert [name.rsplit("_", 1)[1] for name in found if "instance" in name] == ["1", "2", "3", "4", "5", "10"]
    assert found["accuracy_instance_10"].tolist() == [1.0]
    assert "accuracy_instance_10" not in accuracies(torch.ones(1, 18).bool(), targets[:, :18])
