"""The benchmark of unseen scanners: who is learned from and who tested, what is measured, what is printed."""

import json
from dataclasses import replace

import pytest

from benchmarks import unseen
from benchmarks.unseen import LEVERS, QUICK, coverage, measure, show
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.files import read_facts, write_json
from medseg_diff.recipes.lookup import load_recipe

TINY = replace(
    QUICK,
    patients=2,
    tested=2,
    shape=(40, 40, 32),
    overrides=(
        *unseen.AT_3_MM[:-2],
        "preparation.spacing_mm=[6, 6, null]",
        "view.size=[32, 32]",
        "network.multipliers=[1, 1]",
        "network.attention=[]",
        "training={steps: 2, batch: 4, validate_every: 2, learning_rate: 0.001}",
        "sampling.members=2",
        "validation={slices: 2, members: 1, calibration_slices: 0}",
    ),
    levers=("no gamma",),
    rivals=("MONAI's U-Net", "nnU-Net's network"),
)


@pytest.mark.parametrize("name", LEVERS)
def test_every_lever_is_a_recipe(name) -> None:
    assert load_recipe(unseen.CONFIG, task="segment", overrides=[*LEVERS[name], *unseen.AT_3_MM]) is not None


def test_a_lever_and_a_rival_are_trained_and_tested_on_other_scanners(tmp_path) -> None:
    result = measure(tmp_path, size=TINY, device="cpu")
    assert [row["name"] for row in result["rows"]] == ["no gamma", "MONAI's U-Net", "nnU-Net's network"]
    for row in result["rows"]:
        (run,) = row["seeds"]
        assert 0 <= run["worst_tenth"] <= run["dice"] <= 1 and run["volume_error_ml"] > 0 and run["seconds"] > 0
    assert result["rows"][0]["seeds"][0]["coverage"] is not None and result["rows"][1]["seeds"][0]["coverage"] is None
    assert json.loads((tmp_path / "unseen.json").read_text())["rows"][2] == result["rows"][2]
    learned, tested = (read_manifest(tmp_path / folder / "cases.csv") for folder in ("patients_0", "tested"))
    assert {case.split for case in learned.cases} == {"train"}
    images = [{case.paths["t1"].read_bytes() for case in manifest.cases} for manifest in (learned, tested)]
    assert not images[0] & images[1]
    kept = tmp_path / "measured/no_gamma_0.json"
    write_json(kept, read_facts(kept) | {"run": {"dice": 0.5}})
    assert measure(tmp_path, size=replace(TINY, rivals=()), device="cpu")["rows"][0]["seeds"] == [{"dice": 0.5}]
    text = show(result)
    assert "no gamma" in text and "worst tenth" in text and "2 phantoms of three scanners" in text


def test_coverage_is_the_share_of_references_in_their_intervals(tmp_path) -> None:
    for name, low, high in (("a", 10, 20), ("b", 30, 40)):
        (tmp_path / name).mkdir()
        facts = {"volume_ml": {"whole_tumour": {"members": {"low": low, "high": high}}}}
        (tmp_path / name / "case.json").write_text(json.dumps(facts))
    rows = [{"case": "a", "reference_ml": "12"}, {"case": "b", "reference_ml": "12"}]
    assert coverage(tmp_path, rows) == 0.5
    assert coverage(tmp_path, [{"case": "none", "reference_ml": "12"}]) is None
