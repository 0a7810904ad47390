"""What the pages' Python examples import is there, under that name."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def examples():
    """Page and code of each example."""
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            yield pytest.param(code, id=page.name)


@pytest.mark.parametrize("code", list(examples()))
def test_an_example_imports_what_there_is(code):
    named = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert named
    for node in named:
        module = importlib.import_module(node.module)
        assert [one.name for one in node.names if not hasattr(module, one.name)] == []
