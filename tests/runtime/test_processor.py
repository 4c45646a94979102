"""The kind of processor, on each system."""

from __future__ import annotations

import platform

import pytest

from distmeta.runtime import processor

INTEL = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Xeon\n\nprocessor\t: 1\n"
)
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n"
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd40\n"


@pytest.fixture(autouse=True)
def fresh():
    processor.entries.cache_clear()
    yield
    processor.entries.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(INTEL, "GenuineIntel 6-207"), (AMD, "AuthenticAMD 25-17"), (ARM, "0x41 8-0xd40"), ("vendor_id : A\n", "A ?-?")],
)
def test_it_is_that_of_the_first_processor(tmp_path, monkeypatch, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.kind() == expected


def test_elsewhere_it_is_what_python_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert processor.kind() == "arm"
