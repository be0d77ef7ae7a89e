"""The benchmark of folds: who is learned from and who tested, what is measured and kept, what is printed."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.folds import ALONE, FAR, NEAR, QUICK, RIVAL, WHOLE, Averaged, measure, show
from benchmarks.unseen import AT_3_MM
from medseg_diff.data.tables.manifest import read_manifest

TINY = replace(
    QUICK,
    patients=10,
    near=2,
    far=2,
    healthy=0.0,
    folds=2,
    members=2,
    shape=(40, 40, 32),
    overrides=(
        *AT_3_MM[:-2],
        "preparation.spacing_mm=[6, 6, null]",
        "view.size=[32, 32]",
        "network.multipliers=[1, 1]",
        "network.attention=[]",
        "training={steps: 2, batch: 4, learning_rate: 0.001}",
        "validation={slices: 2, members: 1}",
        "sampling.members=4",
    ),
)


def test_a_study_one_fold_and_rivals_are_tested_on_near_and_far_scanners(tmp_path) -> None:
    result = measure(tmp_path, size=TINY, device="cpu")
    assert [(row["where"], row["model"]) for row in result["rows"]] == [
        (where, model) for where in (NEAR, FAR) for model in (WHOLE, ALONE, RIVAL)
    ]
    whole, alone, rival = result["rows"][:3]
    with (tmp_path / "predictions/0_near/study/per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    inside = [float(row["low90_ml"]) <= float(row["reference_ml"]) <= float(row["high90_ml"]) for row in rows]
    assert whole["coverage90"] == sum(inside) / len(inside) and len(rows) == 2
    assert whole["guaranteed_missed"] == pytest.approx(sum(float(row["guaranteed_missed"]) for row in rows) / 2)
    assert alone["coverage90"] is None and rival["coverage90"] is None and rival["dice"] is not None
    learned, near = (read_manifest(tmp_path / "phantoms_0" / name).cases for name in ("learned.csv", "near.csv"))
    assert len(learned) == 10 and len(near) == 2 and not {each.name for each in learned} & {each.name for each in near}
    weights = tmp_path / "study_0/fold_1/weights/last.safetensors"
    before = weights.stat().st_mtime_ns
    assert measure(tmp_path, size=TINY, device="cpu") == result and weights.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "folds.json").read_text())["rows"] == result["rows"]
    text = show(result)
    assert "10 phantoms of three scanners in 2 folds" in text and "the study" in text and "other scanners" in text


def test_networks_together_have_the_mean_of_their_probabilities() -> None:
    class Says(nn.Module):
        def __init__(self, probability: float) -> None:
            super().__init__()
            self.probability = probability

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.full_like(image, self.probability).logit()

    together = Averaged([Says(0.2), Says(0.6)])(torch.zeros(1, 1, 2, 2)).sigmoid()
    torch.testing.assert_close(together, torch.full((1, 1, 2, 2), 0.4))
