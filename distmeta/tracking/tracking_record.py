"""``tracking.json``: what of a run MLflow has, and what is still to be sent."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from distmeta.errors import FileDamaged, RuntimeFailure
from distmeta.files import read_record, write_record
from distmeta.tracking.metrics_file import METRICS_FILE

RECORD_FILE = "tracking.json"


def now_ms() -> int:
    """Milliseconds since 1970, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


@dataclass
class Artifact:
    """A file or folder to upload."""

    path: str
    folder: str | None
    # Counts, not a flag: an artifact noted again while it is being sent is still pending afterwards.
    noted: int = 1
    sent: int = 0


@dataclass
class TrackingRecord:
    """What must survive the process: enough to continue the run, and to create it when it never was."""

    experiment: str
    run_name: str
    uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    sent_rows: int = 0
    status: str = "RUNNING"
    started: int = field(default_factory=now_ms)
    ended: int | None = None
    # Marks the run in MLflow, to find one whose creation succeeded but whose answer was lost.
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    creating: bool = False
    described: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] | None = None
    artifacts: list[Artifact] = field(default_factory=list)

    @classmethod
    def load(cls, run_dir: Path) -> TrackingRecord | None:
        """The record of ``run_dir``; None where there is none.

        Raises:
            RuntimeFailure: the file is not a record, or cannot be read.
        """
        path = run_dir / RECORD_FILE
        try:
            values = read_record(path, undigested=True)
            known = {f.name for f in fields(cls)}
            values = {key: value for key, value in values.items() if key in known}
            values["artifacts"] = [Artifact(**artifact) for artifact in values.get("artifacts", [])]
            return cls(**values)
        except FileNotFoundError:
            return None
        except (FileDamaged, TypeError, AttributeError):
            raise RuntimeFailure(
                f"{path} is damaged or is not a tracking record. Move it away, and the run is tracked anew from "
                f"{METRICS_FILE}."
            ) from None
        except OSError as error:
            raise RuntimeFailure(
                f"{path} cannot be read: {error.strerror}; expected a file that may be read. Fix its permissions, or "
                f"move it away, and the run is tracked anew from {METRICS_FILE}."
            ) from None

    def save(self, run_dir: Path) -> None:
        """Write it, atomically."""
        write_record(run_dir / RECORD_FILE, asdict(self))
