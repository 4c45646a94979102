"""Floor 4: algorithms, one file each. They know :class:`~distmeta.types.Episode` not tasks or the runtime."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from distmeta.learners.base import MetaLearner


def find_learners() -> dict[str, type[MetaLearner]]:
    """Every algorithm of this folder by class name; a new file is found without editing any list.

    Example:
        >>> find_learners()["MAML"].__name__
        'MAML'
    """
    found: dict[str, type[MetaLearner]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, MetaLearner) and not inspect.isabstract(kind) and kind.__module__ == module.__name__:
                found[name] = kind
    return found
