"""The stub that type checkers and editors read says what the functions take."""

import ast
import inspect

import pytest

import medseg_diff
from tests import stub


def test_it_is_what_the_options_make():
    written = ast.parse(stub.STUB.read_text(encoding="utf-8"))
    assert ast.dump(written) == ast.dump(ast.parse(stub.stub())), "python -m tests.stub, then ruff format, renews it"


def test_it_has_every_name():
    tree = ast.parse(stub.STUB.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    names |= {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(medseg_diff.__all__) <= names


@pytest.mark.parametrize("name", [*medseg_diff.VERBS, "load_model"])
def test_help_says_what_every_keyword_means(name):
    verb = getattr(medseg_diff, name)
    assert verb.__name__ == name and inspect.getdoc(verb)
    parameters = inspect.signature(verb).parameters
    if name in (*stub.GROUPED, "load_model"):
        said = inspect.getdoc(verb).split("Args:\n")[1]
        assert [each for each in parameters if f"    {each}: " not in said] == []


def test_types_are_written_as_one_writes_them():
    options = stub.options_of(medseg_diff.segment)
    assert options["out"] == ("str | Path | None", False) and options["shard"][0] == "str | tuple[int, int]"
    assert stub.options_of(medseg_diff.train_seg)["data"] == ("str | Path", True)
