"""The kind of processor: libraries below torch choose kernels by it, and with the kernels the last bits."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@cache
def entries() -> dict[str, str]:
    """The entries of the first processor in ``/proc/cpuinfo``, by name; none where there is no such file."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def kind() -> str:
    """Maker, family and model: two CPUs with AVX-512, of AMD and of Intel, do not give the same bits.

    Example:
        >>> kind() == kind() != ""
        True
    """
    found = entries()
    for maker, family, model in (
        ("vendor_id", "cpu family", "model"),
        ("CPU implementer", "CPU architecture", "CPU part"),
    ):
        if maker in found:
            return f"{found[maker]} {found.get(family, '?')}-{found.get(model, '?')}"
    return platform.processor() or platform.machine() or "unknown CPU"
