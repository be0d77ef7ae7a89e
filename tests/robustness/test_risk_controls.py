"""Every promise of docs/risk_controls.md and SECURITY.md names a test, and every test that they name is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/risk_controls.md", "SECURITY.md")
TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


def rows_of(page: str) -> list[str]:
    """The rows of every table of a page, without headers and rules."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    heads = {number for number, line in enumerate(lines) if line.startswith("|---")}
    return [line for n, line in enumerate(lines) if line.startswith("|") and n not in heads and n + 1 not in heads]


def names_in(file: str) -> set[str]:
    """The tests of a file as pytest calls them, and the classes they are in."""
    found = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {node.name} | {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_no_promise_stands_without_a_test(page):
    rows = rows_of(page)
    assert len(rows) > 15
    assert [row for row in rows if not TEST.search(row.rsplit("|", 2)[1])] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_is_there(page):
    named = {found for row in rows_of(page) for found in TEST.findall(row)}
    assert (
        sorted(f"{file}::{name}" for file, name in named if not (ROOT / file).is_file() or name not in names_in(file))
        == []
    )
    assert all(part.startswith(("test_", "Test")) for _, name in named for part in name.split("::"))
