"""Where MLflow keeps a trained learner: runs and registered models, fetched as folders."""

from __future__ import annotations

import tempfile
from pathlib import Path

from distmeta.errors import ConfigError, foreign


def fetched(uri: str) -> Path:
    """Download what ``runs:/RUN_ID``, ``runs:/RUN_ID/PATH`` or ``models:/NAME@ALIAS`` names.

    Returns:
        A folder of ``distmeta export``, or a run directory, in a temporary folder.

    Raises:
        ConfigError: MLflow is not installed, does not answer, or holds no learner of distmeta there.
    """
    raise ConfigError(f"{uri}: loading from MLflow is not built yet.")


_ = tempfile, foreign
