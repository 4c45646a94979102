"""Standard output for results, standard error for people."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(highlight=False, soft_wrap=True, markup=False, stderr=True)


def print_json(values: Any) -> None:
    """One JSON object on standard output."""
    out.file.write(json.dumps(values, indent=1) + "\n")
