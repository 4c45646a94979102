"""Build the API reference from the docstrings of the public names: ``python .ci/api_reference.py FOLDER``.

A name or a type that pdoc cannot resolve is an error.
"""

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import distmeta
import distmeta.data
import distmeta.errors
import distmeta.testing

MODULES = (distmeta, distmeta.data, distmeta.errors, distmeta.testing)

for module in MODULES:
    for name in getattr(module, "__all__", ()):
        # pdoc reads a module's namespace, which lacks names that are loaded when first used.
        value = getattr(module, name)
        setattr(module, name, value)
        # It looks a named tuple's types up in the module of __new__, which for named tuples does not exist.
        if hasattr(value, "_fields") and hasattr(value, "_field_defaults"):
            value.__new__.__module__ = value.__module__

pdoc.render.configure(docformat="google", show_source=False)
warnings.simplefilter("error")
pdoc.pdoc(*(module.__name__ for module in MODULES), output_directory=Path(sys.argv[1]))
