"""The notebook: stored without outputs, and every cell of it runs, on little."""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY

NOTEBOOK = json.loads((Path(__file__).parents[2] / "notebooks" / "first_steps.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
LITTLE = {"cases": 12, "shape": (40, 40, 32), "overrides": list(TINY)}


def test_no_output_is_stored():
    assert NOTEBOOK["nbformat"] == 4 and len(CELLS) > 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in CELLS:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert LITTLE.keys() <= names.keys()
            names |= LITTLE
    pyplot.close("all")
    assert names["metrics"]["cases"] == len(names["results"]) == 2
    assert names["result"].folder is None and (names["written"] / "case.json").is_file()
    assert "Dice " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["first_steps"]
