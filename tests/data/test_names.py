"""The names of ``distmeta.data`` are loaded when they are used, and are what the package lists."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import distmeta.data


def test_names_are_where_the_lazy_loader_looks_for_them():
    """One list is for type checkers, one for the interpreter: they must agree, and with ``__all__``."""
    tree = ast.parse(Path(distmeta.data.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    for_types = {alias.name: node.module.removeprefix("distmeta.data.") for node in block.body for alias in node.names}
    assert for_types == distmeta.data._HOME
    assert sorted(for_types) == sorted(distmeta.data.__all__) == dir(distmeta.data)
    assert all(getattr(distmeta.data, name) is not None for name in dir(distmeta.data))
    with pytest.raises(AttributeError, match="no attribute 'build_glyhps'"):
        distmeta.data.build_glyhps  # noqa: B018


def test_no_name_is_that_of_a_module():
    """``distmeta.data.verify`` would be a module or a function, by what was imported before."""
    modules = {path.stem for path in Path(distmeta.data.__file__).parent.iterdir()}
    assert not modules & set(distmeta.data.__all__)


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, distmeta.data; print({'torch', 'pyarrow', 'PIL', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
