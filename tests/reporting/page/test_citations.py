"""Every part that can be used has its paper, and no entry is broken."""

import re
from typing import get_args

import pytest

from medseg_diff.diffusion import AnySolver
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.recipes.lookup import find_recipe, recipe_names
from medseg_diff.reporting.page.citations import ARXIV, ENGINES, SOLVERS, citations, references
from medseg_diff.settings import read_yaml


def kinds(union):
    return {each.model_fields["kind"].default for each in get_args(get_args(union)[0])}


def test_every_solver_and_engine_has_an_entry():
    assert set(SOLVERS) == kinds(AnySolver) and set(ENGINES) == kinds(AnyEngine)
    assert {*SOLVERS.values(), *ENGINES.values()} <= set(references())


@pytest.mark.parametrize("task", ["segment", "anomaly", "synthesise"])
def test_every_number_that_a_recipe_names_is_known(task):
    known = " ".join(references().values())
    for name in recipe_names(task):
        paper = read_yaml(find_recipe(name, task=task))["paper"]
        missing = [number for number in ARXIV.findall(paper) if number not in known]
        assert not missing, f"{task}/{name} names arXiv {missing}, which references.bib lacks"


def test_entries_are_whole():
    for key, entry in references().items():
        assert entry.count("{") == entry.count("}") and re.match(rf"@\w+\{{{key},\n", entry), key


def test_what_was_used_is_cited_and_nothing_else():
    interval = {"whole": {"level": 0.95}}
    found = " ".join(
        citations({"solver": {"kind": "ddim"}, "fusion": "staple", "volume_ml": interval}, "arXiv 2112.03145")
    )
    assert all(word in found for word in ("song2021", "warfield2004", "wolleb2022ensembles", "angelopoulos2021"))
    assert not any(word in found for word in ("ho2020", "guo2017", "wolleb2022anomaly"))
