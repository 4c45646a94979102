"""What was left out is counted whole and named in part."""

import json
import os

import numpy as np

from distmeta.data.remarks import NAMED, Identical, Tally, record, remarks


def test_all_are_counted_and_the_first_are_kept():
    tally = Tally()
    for i in range(250):
        tally.add(f"{i}.txt")
    assert (tally.count, len(tally.first)) == (250, NAMED)
    assert tally.text() == "0.txt, 1.txt, 2.txt and 247 more"
    assert remarks({"left out": record({"not pictures": tally, "corrupt": Tally()})}) == [
        "left out, not pictures: 250 (0.txt, 1.txt, 2.txt and 247 more)"
    ]


def test_names_that_are_no_text():
    tally = Tally()
    tally.add(os.fsdecode(b"a\xff.png"))
    json.dumps(record({"corrupt": tally}), ensure_ascii=False).encode()


def test_provenance_of_others():
    """Datasets of earlier versions and of users have other things there, or nothing."""
    for provenance in ({}, {"left out": "two"}, {"identical": None}, {"left out": {"corrupt": 3}}):
        assert remarks(provenance) == []


def test_few_bytes_are_kept_of_each_picture():
    seen = Identical()
    seen.add("meta_train", "a", "1", np.zeros((3, 84, 84), np.uint8))
    assert [len(digest) for digest in seen._first] == [16]
