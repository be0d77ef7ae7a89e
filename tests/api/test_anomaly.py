"""From Python: anomaly maps as arrays, every line of docs/python.md about them."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest

import medseg_diff
from medseg_diff.data.reading import read_labels, read_map
from medseg_diff.data.tables.inputs import MissingChannels
from medseg_diff.tasks.apply.anomaly import anomaly as on_command_line


@pytest.fixture(scope="module")
def model(untrained_anomaly):
    return medseg_diff.load_model(untrained_anomaly.folder, device="cpu")


@pytest.fixture(scope="module")
def written(patient, untrained_anomaly, tmp_path_factory):
    out, volume = tmp_path_factory.mktemp("written"), [str(patient.place / "patient")]
    (folder,) = on_command_line(volume, out=out, model=untrained_anomaly.folder, device="cpu", threshold="otsu")
    return folder


@pytest.fixture(scope="module")
def result(patient, model):
    return medseg_diff.anomaly({c: patient.names[c] for c in ("t2", "flair")}, model=model, threshold="otsu")


ROWS = {
    "result.score": lambda found, folder: np.array_equal(found, read_map(folder / "anomaly.nii.gz").voxels),
    "result.mask": lambda found, folder: np.array_equal(found, read_labels(folder / "anomaly_mask.nii.gz").voxels),
    "result.threshold": lambda found, folder: found == facts_in(folder)["threshold"]["value"] > 0,
    "result.healthy": lambda found, folder: (
        list(found) == ["t2", "flair"]
        and np.array_equal(found["flair"], read_map(folder / "healthy_flair.nii.gz").voxels)
    ),
    "result.lesions": lambda found, folder: (
        found.equals(pandas.read_csv(folder / "lesions.csv")) and len(found) == facts_in(folder)["lesions"] > 0
    ),
    "result.volume_ml": lambda found, folder: found == facts_in(folder)["volume_ml"] > 0,
}


def facts_in(folder):
    return json.loads((folder / "case.json").read_text())


@pytest.mark.parametrize("row", ROWS)
def test_an_anomaly_map_has(row, result, written):
    assert ROWS[row](eval(row, {"result": result}), written)


def test_the_page_says_so():
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    section = page.split("Of an anomaly map:\n")[1].split("Of both:")[0]
    assert all(f"| `{row}` |" in section for row in ROWS) and section.count("\n| `result.") == len(ROWS) + 1


def test_it_says_what_it_found_in_a_line(result):
    first, second, *warnings = repr(result).splitlines()
    assert first == "AnomalyResult of patient"
    assert second == f"  {len(result.lesions)} lesions, {result.volume_ml:.1f} ml above {result.threshold:.3g}"
    assert len(warnings) == len(result.warnings) > 0


def test_an_image_alone_says_which_channel_is_missing(patient, model):
    with pytest.raises(MissingChannels, match="t2 not found"):
        medseg_diff.anomaly(patient.names["flair"], model=model)


def test_images_without_files_are_called_after_their_places(patient, model, result, tmp_path):
    images = {c: nibabel.Nifti1Image(patient.names[c].get_fdata(), patient.names[c].affine) for c in ("t2", "flair")}
    first, second = medseg_diff.anomaly([images, images], model=model, threshold="otsu")
    assert (first.name, second.name) == ("case_1", "case_2")
    assert np.array_equal(first.score, result.score)  # this engine draws no noise
    place = first.save(tmp_path)
    assert medseg_diff.AnomalyResult.read(place).facts == first.facts
    assert (tmp_path / "summary.csv").read_text().splitlines()[1].startswith("case_1,anomaly,")
