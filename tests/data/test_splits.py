"""Splits that are too small are named, with the division that would do."""

import pytest

from distmeta.data.splits import advised_percentages, divide_again, split_by_percent, too_small

EIGHT = {"meta_train": 5, "meta_validation": 1, "meta_test": 2}


@pytest.mark.parametrize("classes", range(6, 60))
@pytest.mark.parametrize("fewest", [2, 5])
def test_what_is_advised_gives_every_split_enough(classes, fewest):
    advised = advised_percentages(classes, fewest)
    if advised is None:
        assert classes < 3 * fewest + 2
        return
    divided = split_by_percent([f"c{i}" for i in range(classes)], advised, seed=0)
    assert min(map(len, divided.values())) >= fewest


def test_eight_classes_by_the_usual_percentages_leave_one_for_validation():
    divided = split_by_percent(list("abcdefgh"), "64/16/20", seed=0)
    assert {split: len(members) for split, members in divided.items()} == EIGHT
    warning = too_small(EIGHT, {"split": "64/16/20"})
    assert warning.startswith("warning: meta_validation has 1 class, of which no task can be drawn")
    assert "--split 50/25/25 gives each split at least 2 of the 8 classes" in warning
    assert not too_small({"meta_train": 4, "meta_validation": 2, "meta_test": 2}, {"split": "50/25/25"})
    assert not too_small({"meta_train": 8, "meta_validation": 0, "meta_test": 2}, {}), "an absent split is no mistake"


@pytest.mark.parametrize(
    ("provenance", "fewest", "advice"),
    [
        ({"splits": "64/16/20"}, 2, "with splits=50/25/25"),
        ({"split": "folders"}, 2, "Moving classes between the splits"),
        ({"split": "64/16/20"}, 5, "Add classes: 8 are too few for 5 in each of three splits."),
    ],
)
def test_the_advice_is_for_the_way_in_which_the_data_were_built(provenance, fewest, advice):
    assert advice in divide_again(EIGHT, fewest, provenance)
