"""The benchmark of ensembles, whole, in miniature: what it measures means nothing, that it measures is the test."""

import json
from dataclasses import replace

import pytest

from benchmarks.ensembles import LEVEL_SETS, OURS, QUICK, SURFACES, measure, show, summary

TINY = replace(
    QUICK,
    cases=5,
    tested=2,
    members=3,
    shape=(32, 32, 32),
    overrides=(
        "training={steps: 2, batch: 2, validate_every: 2, learning_rate: 0.001}",
        "network.width=8",
        "network.groups=4",
        "view.size=[32,32]",
        "validation={slices: 2, members: 1, calibration_slices: 0}",
    ),
)


def test_all_are_trained_alike_and_measured_on_the_same_cases(tmp_path):
    result = measure(tmp_path, size=TINY, device="cpu")
    (seed,) = result["seeds"]
    names = {OURS, LEVEL_SETS, SURFACES}
    assert set(seed["cases"]) == names == set(result["means"])
    assert len({tuple(cases) for cases in seed["cases"].values()}) == 1
    assert set(result["differences"]) == names - {OURS} and len(result["holds"]) == 3
    levels, surfaces = (list(seed["cases"][name].values()) for name in (LEVEL_SETS, SURFACES))
    assert [case["dice"] for case in levels] == [case["dice"] for case in surfaces]  # one network, cut in two ways
    members = {name: len(list((tmp_path / "seed_0" / name).glob("*/members/*.nii.gz"))) for name in names}
    assert set(members.values()) == {3 * len(levels)}
    assert seed["parameters"]["supervised"] < seed["parameters"]["diffusion"]
    assert json.loads((tmp_path / "ensembles.json").read_text())["holds"] == result["holds"]
    text = show(result)
    assert "diffusion less supervised, level sets" in text and "at the same surfaces: " in text


def test_differences_are_paired_and_the_verdict_follows_them():
    def case(dice, ged2):
        rest = dict.fromkeys(("ged2_unbiased", "ece_band", "auroc_error_band", "auroc_error"))
        return {"dice": dice, "ged2": ged2, **rest}

    seeds = [
        {
            "cases": {
                OURS: {f"{seed}/a": case(0.8, 0.30), f"{seed}/b": case(0.6, 0.50)},
                LEVEL_SETS: {f"{seed}/a": case(0.81, 0.35), f"{seed}/b": case(0.598, 0.52)},
                SURFACES: {f"{seed}/a": case(0.81, 0.29), f"{seed}/b": case(0.598, 0.49)},
            }
        }
        for seed in range(3)
    ]
    found = summary(seeds)
    apart = found["differences"][LEVEL_SETS]
    assert apart["dice"]["value"] == pytest.approx(-0.004) and apart["ged2"]["value"] == pytest.approx(-0.035)
    assert apart["ged2"]["cases"] == 6 and apart["ged2"]["low"] < -0.035 < apart["ged2"]["high"]
    assert list(found["holds"].values()) == [True, True, False]
