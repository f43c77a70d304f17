"""The examples in the ops' docstrings and in the README run, and print what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import ldae_fast.kernels
import pytest

from ldae_fast import ops

ROOT = Path(__file__).parents[1]
MODULES = [
    m.name
    for m in pkgutil.walk_packages(ldae_fast.kernels.__path__, "ldae_fast.kernels.")
    if not m.name.endswith("library")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name), verbose=False).failed == 0


@pytest.mark.parametrize("name", ops.__all__)
def test_every_op_has_an_example(name):
    """And says what it raises, and where it is from: a paper's number or year."""
    doc = getattr(ops, name).__doc__
    assert ">>> " in doc, f"{name} has no example"
    assert "Raises " in doc, f"{name} does not say what it raises"
    assert re.search(r"arXiv \d{4}\.\d{5}|\b20\d\d\b", doc), f"{name} names no source"


def test_readme_examples():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
