"""Figures: what is drawn where, checked on the pixels or on the rows that they are drawn from."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.reporting.figures import montage_of_predictions, segmentation_montage, training_curves
from medseg_diff.reporting.panels import MontageRow
from medseg_diff.reporting.slices import largest_slice

SHAPE = (30, 36, 12)
ORANGE, BLUE = (245, 166, 35), (79, 195, 247)


def pixels_like(path, colour, tolerance=30):
    image = (imread(path)[..., :3] * 255).astype(int)
    return (np.abs(image - np.array(colour)).max(axis=-1) < tolerance).sum()


def row(**changes):
    y, x = np.mgrid[:40, :30]
    brain = ((y - 20) / 17) ** 2 + ((x - 15) / 12) ** 2 < 1
    lesion = (np.hypot(y - 14, x - 10) < 5) & brain
    probability = lesion * 0.7
    plain = {
        "title": "case, slice 1",
        "images": {"flair": brain * 100.0 + lesion * 50, "t1ce": brain * 80.0},
        "brain": brain,
        "reference": lesion,
        "mask": lesion,
        "probability": probability,
        "spread": probability * 0.1,
        "uncertainty": probability * (1 - probability),
    }
    return MontageRow(**(plain | changes))


NO_MAPS = {"probability": None, "spread": None, "uncertainty": None}


def test_outlines_are_drawn_in_the_colours_of_reference_and_prediction(tmp_path):
    segmentation_montage([row(**NO_MAPS)], tmp_path / "both.png")
    segmentation_montage([row(**NO_MAPS, reference=None)], tmp_path / "predicted.png")
    segmentation_montage([row(**NO_MAPS, mask=None)], tmp_path / "reference.png")
    orange, blue = (pixels_like(tmp_path / "both.png", colour) for colour in (ORANGE, BLUE))
    assert pixels_like(tmp_path / "predicted.png", ORANGE) < 0.5 * orange
    assert pixels_like(tmp_path / "predicted.png", BLUE) == blue
    assert pixels_like(tmp_path / "reference.png", BLUE) < 0.5 * blue
    assert pixels_like(tmp_path / "reference.png", ORANGE) == orange


def test_raters_add_thin_lines(tmp_path):
    y, x = np.mgrid[:40, :30]
    raters = [np.hypot(y - 14, x - 10) < radius for radius in (3, 7, 9)]
    segmentation_montage([row(**NO_MAPS)], tmp_path / "alone.png")
    segmentation_montage([row(**NO_MAPS, raters=raters)], tmp_path / "raters.png")
    assert pixels_like(tmp_path / "raters.png", ORANGE, 80) > 1.2 * pixels_like(tmp_path / "alone.png", ORANGE, 80)


def test_maps_are_black_at_zero_and_bright_at_their_largest_value(tmp_path):
    plain = row().brain
    for name, share in (("low", 0.0), ("high", 1.0)):
        maps = {"probability": plain * share, "spread": plain * share / 4, "uncertainty": plain * share / 4}
        segmentation_montage([row(**maps, mask=None, reference=None)], tmp_path / f"{name}.png")
    low, high = (imread(tmp_path / f"{name}.png")[..., :3].mean(axis=-1) for name in ("low", "high"))
    maps_begin = low.shape[1] * 4 // 7 + 40
    assert low[60:300, maps_begin:].mean() < 0.1
    assert (high[60:300, maps_begin:] > 0.9).mean() > 0.3
    assert np.array_equal(low[60:300, : maps_begin - 80], high[60:300, : maps_begin - 80])


def test_rows_of_other_sizes_and_missing_maps_fit_on_one_sheet(tmp_path):
    square = np.ones((16, 16), bool)
    bare = MontageRow(title="a case with a very long name " * 3, images={"t1": square * 1.0}, brain=square)
    segmentation_montage([row(), bare, row(brain=np.zeros((40, 30), bool))], tmp_path / "sheet.png")
    one, three = tmp_path / "one.png", tmp_path / "sheet.png"
    segmentation_montage([row()], one)
    assert imread(three).shape[1] == imread(one).shape[1]
    assert imread(three).shape[0] > 1.5 * imread(one).shape[0]


def test_a_figure_is_the_same_file_every_time(tmp_path):
    for name in ("first.png", "second.png"):
        segmentation_montage([row()], tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no slice"):
        segmentation_montage([], tmp_path / "none.png")


@pytest.fixture
def predicted(tmp_path):
    """Two cases in RAS: a healthy one, and one with a lesion to the right and front, largest in slice 5."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    brain, lesion = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    brain[4:26, 4:32, 1:11] = True
    lesion[20:24, 26:30, 4:7] = True
    lesion[18:24, 24:30, 5] = True
    rows = []
    for name, seg in (("healthy", np.zeros(SHAPE, bool)), ("sick", lesion)):
        images = {"t1": brain * 90.0 + np.arange(SHAPE[0])[:, None, None], "flair": brain * 50.0 + seg * 50.0}
        images["t1"][~brain] = 0
        for channel, voxels in images.items():
            write_volume(tmp_path / name / f"{channel}.nii.gz", voxels.astype(np.float32), affine)
        write_volume(tmp_path / name / "seg.nii.gz", seg.astype(np.uint8), affine)
        folder = tmp_path / "out" / name
        write_volume(folder / "mask.nii.gz", seg.astype(np.uint8), affine)
        write_volume(folder / "probability.nii.gz", (seg * 0.9).astype(np.float32), affine)
        (folder / "case.json").write_text(json.dumps({"regions": {"lesion": [1]}}))
        rows.append([name, *(f"{name}/{column}.nii.gz" for column in ("t1", "flair", "seg"))])
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "t1", "flair", "seg"], *rows])
    return tmp_path


def test_the_slice_is_the_largest_one_and_turned_to_radiological_display(predicted):
    sick = read_manifest(predicted / "cases.csv").cases[1]
    shown = largest_slice(sick, predicted / "out" / "sick")
    assert shown.title == "sick, slice 6"
    assert shown.spacing_mm == (2.0, 1.0)
    assert list(shown.images) == ["flair", "t1"]
    assert shown.reference.shape == (SHAPE[1], SHAPE[0])
    down, across = np.argwhere(shown.reference).mean(axis=0)
    assert down < SHAPE[1] / 2 - 5  # to the front: up
    assert across < SHAPE[0] / 2 - 4  # the patient's right: on the left
    assert np.array_equal(shown.probability > 0.5, shown.mask)
    assert shown.spread is None


def test_the_montage_of_a_folder_puts_lesions_first_and_keeps_to_the_number_of_cases(predicted):
    montage_of_predictions(predicted / "out", predicted / "cases.csv", predicted / "two.png")
    montage_of_predictions(predicted / "out", predicted / "cases.csv", predicted / "one.png", cases=1)
    assert imread(predicted / "two.png").shape[0] > 1.3 * imread(predicted / "one.png").shape[0]
    # The one case shown is the sick one, although the healthy one stands first in the table.
    (predicted / "out" / "sick" / "mask.nii.gz").unlink()
    montage_of_predictions(predicted / "out", predicted / "cases.csv", predicted / "healthy.png", cases=1)
    assert pixels_like(predicted / "one.png", ORANGE) > 1.5 * pixels_like(predicted / "healthy.png", ORANGE)


def test_a_folder_without_predictions_is_refused(predicted):
    (predicted / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no case of cases.csv has a mask in empty"):
        montage_of_predictions(predicted / "empty", predicted / "cases.csv", predicted / "none.png")


def write_metrics(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["step", "name", "value"], *rows])
    return path


def test_training_curves_show_loss_and_dice_and_nothing_else(tmp_path):
    loss = [[step, "loss", 1 / (step + 1)] for step in range(80)]
    dice = [[step, "validation_dice", step / 100] for step in range(0, 80, 20)]
    rate = [[step, "learning_rate", 1e-3] for step in range(80)]
    training_curves(write_metrics(tmp_path / "both.csv", loss + dice), tmp_path / "both.png")
    training_curves(write_metrics(tmp_path / "more.csv", loss + rate + dice), tmp_path / "more.png")
    training_curves(write_metrics(tmp_path / "loss.csv", [*loss, [80, "loss", "nan"]]), tmp_path / "loss.png")
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "more.png").read_bytes()
    assert imread(tmp_path / "both.png").shape[1] == 2 * imread(tmp_path / "loss.png").shape[1]


@pytest.mark.parametrize(
    "content", ["step,name,value\n1,learning_rate,0.1\n", "a,b\n1,2\n", "step,name,value\n1,loss,x\n"]
)
def test_a_table_without_curves_is_refused(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UsageError, match=r"metrics.csv"):
        training_curves(tmp_path / "metrics.csv", tmp_path / "none.png")
    with pytest.raises(UsageError, match="no such file"):
        training_curves(tmp_path / "missing.csv", tmp_path / "none.png")


def test_importing_loads_neither_torch_nor_matplotlib():
    code = "import sys, medseg_diff.reporting.figures; assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
