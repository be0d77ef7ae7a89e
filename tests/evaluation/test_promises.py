"""Promises whose keeping is known by construction: intervals, guaranteed masks, the chance of a lesion, unlike scans."""

import csv
import json

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.errors import UsageError
from medseg_diff.reporting.evaluation import evaluation_figure
from tests.made import LPS, NOTHING, TUMOUR, Study, ball

TRUE_ML = np.count_nonzero(TUMOUR) * 2 * 2 * 3 / 1000


def promise(study, name, *, intervals=(), probability=None, typicality=None, guaranteed=None):
    """What case.json and the folder of a case promise, beside what `predict` wrote."""
    file = study.predictions / name / "case.json"
    facts = json.loads(file.read_text())
    levels = [{"level": level, "low": low, "high": high} for level, low, high in intervals]
    facts |= {"volume_ml": {"whole_tumour": {"intervals": levels}}, "typicality": typicality}
    facts |= {"lesion_presence": {"whole_tumour": {"probability": probability}}}
    file.write_text(json.dumps(facts))
    if guaranteed is not None:
        write_volume(study.predictions / name / "guaranteed_mask.nii.gz", guaranteed.astype(np.uint8), LPS)


@pytest.fixture
def study(tmp_path):
    """Two patients with a lesion, one without; one interval of three does not hold."""
    study = Study(tmp_path)
    half, large = TUMOUR & (np.indices(TUMOUR.shape)[0] < 12), ball((12, 11, 8), 4)
    for name, seg in (("a", TUMOUR), ("b", TUMOUR), ("c", NOTHING)):
        study.add(name, seg=seg).predict(name, seg)
    around = (TRUE_ML - 0.5, TRUE_ML + 1)
    promise(study, "a", intervals=[(0.5, 0, 0.1), (0.9, *around)], probability=0.9, guaranteed=large)
    promise(study, "b", intervals=[(0.5, *around), (0.9, 0, TRUE_ML - 0.1)], probability=0.7, guaranteed=half)
    promise(study, "c", intervals=[(0.9, 0, 0.4)], probability=0.4, typicality={"score": 2.6, "threshold": 1.3})
    return study


def test_what_was_promised_is_compared_with_what_is(study):
    summary = study.evaluate()
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert values["coverage90"] == pytest.approx(2 / 3)
    assert values["width90_ml"] == pytest.approx(np.mean([1.5, TRUE_ML - 0.1, 0.4]), rel=1e-5)
    half = np.count_nonzero(TUMOUR & (np.indices(TUMOUR.shape)[0] < 12)) / np.count_nonzero(TUMOUR)
    assert values["guaranteed_missed"] == pytest.approx((1 - half) / 2)
    large = np.count_nonzero(ball((12, 11, 8), 4)) / np.count_nonzero(TUMOUR)
    assert values["guaranteed_ratio"] == pytest.approx((large + half) / 2)
    assert values["presence_brier"] == pytest.approx(np.mean([0.1**2, 0.3**2, 0.4**2]))
    assert (values["typicality"], values["atypical"], summary["metrics"]["atypical"]["cases"]) == (2, 1, 1)
    curve = summary["curves"]["whole_tumour"]["intervals"]
    assert curve == {"level": [0.5, 0.9], "coverage": [0.5, pytest.approx(2 / 3, abs=1e-6)]}
    rows = {row["case"]: row for row in csv.DictReader((study.predictions / "per_case.csv").open())}
    assert (rows["b"]["coverage90"], rows["a"]["coverage90"], rows["c"]["low90_ml"]) == ("0", "1", "0")


def test_the_figure_shows_intervals_and_unlike_scans(study, tmp_path):
    study.evaluate()
    evaluation_figure(study.predictions, tmp_path / "all.png")
    rows = list(csv.DictReader((study.predictions / "per_case.csv").open()))
    for name in ("low90_ml", "high90_ml", "typicality"):
        for row in rows:
            row.pop(name)  # as an earlier version wrote them
    with (study.predictions / "per_case.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    evaluation_figure(study.predictions, tmp_path / "earlier.png")
    assert (tmp_path / "all.png").read_bytes() != (tmp_path / "earlier.png").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"volume_ml": 7.5},
        {"volume_ml": {"whole_tumour": {"intervals": [{"level": 0.9}]}}},
        {"lesion_presence": {"whole_tumour": {"probability": "high"}}},
        {"typicality": {"score": 1}},
    ],
)
def test_a_case_json_that_was_changed_is_refused(study, changes):
    file = study.predictions / "a" / "case.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError, match=r"case.json has changed since it was written"):
        study.evaluate()
