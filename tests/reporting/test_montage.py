"""The montage: what is drawn where, checked on the pixels or on the rows that it is drawn from."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.image import imread

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.errors import UsageError
from medseg_diff.reporting import drawing, montage
from medseg_diff.reporting.layouts import ERRORS, left_of_lesion
from medseg_diff.reporting.montage import anomaly_layout, draw_montage, draw_rows, segmentation_layout
from medseg_diff.reporting.panels import MontageRow
from tests.made import facts_of

SHAPE = (30, 36, 12)
ORANGE, BLUE = (245, 166, 35), (79, 195, 247)


def pixels_like(path, colour, tolerance=30):
    image = (imread(path)[..., :3] * 255).astype(int)
    return (np.abs(image - np.array(colour)).max(axis=-1) < tolerance).sum()


def row(*without, brain=None, maps=None, **marks):
    """A slice with all that a segmentation has, but for the marks and maps named in `without`."""
    y, x = np.mgrid[:40, :30]
    tissue = ((y - 20) / 17) ** 2 + ((x - 15) / 12) ** 2 < 1
    lesion = (np.hypot(y - 14, x - 10) < 5) & tissue
    probability = lesion * 0.7
    maps = maps or {
        "probability": probability,
        "variance_between": probability * 0.1,
        "uncertainty": probability * (1 - probability),
    }
    marks = {"reference": [lesion], "mask": [lesion], **marks}
    return MontageRow(
        title="case, slice 1",
        images={"flair": tissue * 100.0 + lesion * 50, "t1ce": tissue * 80.0},
        brain=tissue if brain is None else brain,
        maps={name: plane for name, plane in maps.items() if name not in without},
        marks={name: planes for name, planes in marks.items() if name not in without},
    )


MAPS = ("probability", "variance_between", "uncertainty")


def draw(rows, path):
    draw_rows(rows, segmentation_layout, path)


def test_outlines_are_drawn_in_the_colours_of_reference_and_prediction(tmp_path):
    draw([row(*MAPS)], tmp_path / "both.png")
    draw([row(*MAPS, "reference")], tmp_path / "predicted.png")
    draw([row(*MAPS, "mask")], tmp_path / "reference.png")
    orange, blue = (pixels_like(tmp_path / "both.png", colour) for colour in (ORANGE, BLUE))
    assert pixels_like(tmp_path / "predicted.png", ORANGE) < 0.1 * orange
    assert pixels_like(tmp_path / "reference.png", BLUE) < 0.1 * blue
    assert 0 < pixels_like(tmp_path / "predicted.png", BLUE) <= blue  # that of the errors' legend is missing
    assert 0 < pixels_like(tmp_path / "reference.png", ORANGE) <= orange


def test_raters_add_thin_lines(tmp_path):
    y, x = np.mgrid[:40, :30]
    raters = [np.hypot(y - 14, x - 10) < radius for radius in (3, 7, 9)]
    draw([row(*MAPS)], tmp_path / "alone.png")
    draw([row(*MAPS, raters=raters)], tmp_path / "raters.png")
    assert pixels_like(tmp_path / "raters.png", ORANGE, 80) > 1.2 * pixels_like(tmp_path / "alone.png", ORANGE, 80)


def test_maps_are_black_at_zero_and_bright_at_their_largest_value(tmp_path):
    plain = row().brain
    for name, share in (("low", 0.0), ("high", 1.0)):
        maps = {"probability": plain * share, "variance_between": plain * share / 4, "uncertainty": plain * share / 4}
        draw([row("mask", "reference", maps=maps)], tmp_path / f"{name}.png")
    low, high = (imread(tmp_path / f"{name}.png")[..., :3].mean(axis=-1) for name in ("low", "high"))
    maps_begin = low.shape[1] * 4 // 7 + 40  # two scans, reference and prediction empty; without a reference no errors
    assert low[60:300, maps_begin:].mean() < 0.1
    assert (high[60:300, maps_begin:] > 0.9).mean() > 0.3
    assert np.array_equal(low[60:300, : maps_begin - 80], high[60:300, : maps_begin - 80])


def test_an_anomaly_map_is_shown_in_multiples_of_its_threshold(tmp_path):
    for name, threshold in (("at", 1.0), ("below", 8.0)):
        plain = row("reference", "mask", maps={"score": row().brain * 4.0})
        draw_rows([replace(plain, unit=threshold)], anomaly_layout, tmp_path / f"{name}.png")
    at, below = (imread(tmp_path / f"{name}.png")[60:300, :, :3].mean(axis=-1) for name in ("at", "below"))
    map_begins, map_ends = at.shape[1] * 3 // 5, at.shape[1] * 4 // 5  # two scans, reference, map, mask
    assert (at[:, map_begins:map_ends] > 0.9).mean() > 0.3 > 0.05 > (below[:, map_begins:map_ends] > 0.9).mean()
    assert np.array_equal(at[:, : map_begins - 30], below[:, : map_begins - 30])


def test_a_twin_that_is_known_stands_beside_the_reconstruction_and_what_nobody_has_takes_no_room(tmp_path):
    flair, score = row().images["flair"], {"score": row().brain * 4.0}
    for name, maps in (
        ("none", {}),
        ("healthy", {"healthy_flair": flair}),
        ("both", {"healthy_flair": flair, "twin_flair": flair}),
    ):
        draw_rows([row("reference", "mask", maps=score | maps)], anomaly_layout, tmp_path / f"{name}.png")
    none, healthy, both = (imread(tmp_path / f"{name}.png").shape[1] for name in ("none", "healthy", "both"))
    assert none < healthy < both and abs((healthy - none) - 2 * (both - healthy)) <= 2  # with what it changes


def columns_of(layout_of, *rows):
    return {column.title: column for column in layout_of(["flair", "t1ce"]).for_rows(rows).columns}


@pytest.mark.parametrize(
    ("largest", "ends"), [(0.055, 0.06), (0.06, 0.06), (0.061, 0.08), (0.012, 0.015), (0.3, 0.25), (0.0, 0.25)]
)
def test_the_variance_has_a_scale_of_its_own_that_the_bar_states(largest, ends):
    maps = {name: row().brain * largest for name in MAPS}
    shown = columns_of(segmentation_layout, row(maps=maps))
    assert shown["Variance between"].scale.ticks == (0, ends / 2, ends)
    assert shown["Total uncertainty"].scale.ticks[-1] == 0.25
    both = columns_of(segmentation_layout, row(maps=maps), row())["Variance between"].scale
    assert both.ticks[-1] == max(ends if largest else 0, 0.08)  # one scale for all rows, and the other reaches 0.07


def test_errors_are_shown_in_three_colours_where_there_is_a_reference(tmp_path):
    y, x = np.mgrid[:40, :30]
    mask, reference = np.hypot(y - 14, x - 10) < 5, np.hypot(y - 14, x - 14) < 5
    marked = row(mask=[mask], reference=[reference])
    colours = drawing._errors(marked)
    found = {word: to_rgba(colour, 0.85) for word, colour in ERRORS.items()}
    for word, plane in (
        ("found", mask & reference),
        ("missed", reference & ~mask),
        ("false positive", mask & ~reference),
    ):
        assert plane.any() and np.array_equal((colours == found[word]).all(axis=-1), plane)
    assert not colours[~(mask | reference)].any()
    assert "Errors" in columns_of(segmentation_layout, marked) and "Errors" in columns_of(anomaly_layout, marked)
    assert "Errors" not in columns_of(segmentation_layout, row("reference"))
    assert "Errors" not in columns_of(segmentation_layout, row("mask"))


@pytest.mark.parametrize(
    ("left", "said"), [(0.0, None), (0.4, "partial: 41% of the lesion left"), (1.0, "partial: 100% of the lesion left")]
)
def test_a_reconstruction_that_leaves_the_lesion_is_called_partial(left, said, tmp_path, monkeypatch):
    plain, noise = row(), np.random.default_rng(0).normal(0, 2, (40, 30))
    (lesion,), flair = plain.marks["reference"], plain.images["flair"] + noise
    places = np.argwhere(lesion)
    healed = np.where(lesion, 100.0, flair)
    for y, x in places[: round(left * len(places))]:
        healed[y, x] = flair[y, x]
    with_made = replace(plain, images={"flair": flair}, maps={"healthy_flair": healed, "score": lesion * 2.0})
    assert left_of_lesion(with_made).get("flair", 0) == pytest.approx(left, abs=0.01)
    texts = texts_drawn([with_made], anomaly_layout, tmp_path, monkeypatch)
    assert [text for text in texts if "partial" in text] == ([said] if said else [])
    healthy = replace(with_made, marks={"reference": [lesion & False], "mask": []})
    assert left_of_lesion(healthy) == {}


def texts_drawn(rows, layout_of, folder, monkeypatch):
    figures = []
    monkeypatch.setattr(montage, "save_png", lambda figure, path: figures.append(figure))
    draw_rows(rows, layout_of, folder / "none.png")
    return [text.get_text() for axes in figures[-1].axes for text in axes.texts]


def test_convention_and_sides_stand_in_every_montage(tmp_path, monkeypatch):
    texts = texts_drawn([row(), row()], segmentation_layout, tmp_path, monkeypatch)
    assert texts.count("R") == texts.count("L") == 2
    assert any("R is the patient's right" in text for text in texts)


def test_the_difference_is_the_scan_less_its_reconstruction(tmp_path):
    lesion = row().marks["reference"][0]
    scan = row().images["flair"]
    for name, made in (("same", scan), ("darker", scan - 40.0 * lesion), ("brighter", scan + 40.0 * lesion)):
        shown = row("mask", "reference", maps={"score": lesion * 0.0, "healthy_flair": made})
        draw_rows([shown], anomaly_layout, tmp_path / f"{name}.png")
    size = imread(tmp_path / "same.png").shape[1] // 7
    for name, colour, other in (("darker", ORANGE, BLUE), ("brighter", BLUE, ORANGE)):
        image = imread(tmp_path / f"{name}.png")[60:300, 2 * size + 40 : 3 * size, :3] * 255
        near = {each: (np.abs(image - np.array(each)).max(axis=-1) < 120).sum() for each in (colour, other)}
        assert near[colour] > 200 > 20 > near[other]


def test_rows_of_other_sizes_and_missing_maps_fit_on_one_sheet(tmp_path):
    square = np.ones((16, 16), bool)
    bare = MontageRow(title="a case with a very long name " * 3, images={"t1": square * 1.0}, brain=square)
    draw([row(), bare, row(brain=np.zeros((40, 30), bool))], tmp_path / "sheet.png")
    one, three = tmp_path / "one.png", tmp_path / "sheet.png"
    draw([row()], one)
    assert imread(three).shape[1] == imread(one).shape[1]
    assert imread(three).shape[0] > 1.5 * imread(one).shape[0]


def test_a_figure_is_the_same_file_every_time(tmp_path):
    for name in ("first.png", "second.png"):
        draw([row()], tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no slice"):
        draw([], tmp_path / "none.png")


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
        (folder / "case.json").write_text(json.dumps(facts_of({"lesion": [1]})))
        rows.append([name, *(f"{name}/{column}.nii.gz" for column in ("t1", "flair", "seg"))])
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "t1", "flair", "seg"], *rows])
    return tmp_path


def rows_drawn(predicted, monkeypatch):
    """The rows of the folder's montage, in their order."""
    rows = []
    monkeypatch.setattr(montage, "draw_rows", lambda drawn, *_: rows.extend(drawn))
    draw_montage(predicted / "out", predicted / "cases.csv", predicted / "none.png")
    return rows


def test_the_slice_is_the_largest_one_and_turned_to_radiological_display(predicted, monkeypatch):
    shown, healthy = rows_drawn(predicted, monkeypatch)  # lesions first
    assert (shown.title, healthy.title) == ("sick, slice 6", "healthy, slice 7")
    assert shown.spacing_mm == (2.0, 1.0)
    assert list(shown.images) == ["flair", "t1"]
    (reference,), (mask,) = shown.marks["reference"], shown.marks["mask"]
    assert reference.shape == (SHAPE[1], SHAPE[0])
    down, across = np.argwhere(reference).mean(axis=0)
    assert down < SHAPE[1] / 2 - 5  # to the front: up
    assert across < SHAPE[0] / 2 - 4  # the patient's right: on the left
    assert np.array_equal(shown.maps["probability"] > 0.5, mask)
    assert "variance_between" not in shown.maps


def test_slices_are_numbered_as_in_the_file(predicted, monkeypatch):
    for path in predicted.rglob("*.nii.gz"):  # stored from the head down
        image = nibabel.load(path)
        affine = image.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]])
        write_volume(path, np.asarray(image.dataobj)[..., ::-1], affine)
    shown = rows_drawn(predicted, monkeypatch)[0]
    assert shown.title == f"sick, slice {SHAPE[2] - 5}" and shown.index == 5


def test_the_montage_of_a_folder_puts_lesions_first_and_keeps_to_the_number_of_cases(predicted):
    draw_montage(predicted / "out", predicted / "cases.csv", predicted / "two.png")
    draw_montage(predicted / "out", predicted / "cases.csv", predicted / "one.png", cases=1)
    assert imread(predicted / "two.png").shape[0] > 1.3 * imread(predicted / "one.png").shape[0]
    # The one case shown is the sick one, although the healthy one stands first in the table.
    (predicted / "out" / "sick" / "mask.nii.gz").unlink()
    draw_montage(predicted / "out", predicted / "cases.csv", predicted / "healthy.png", cases=1)
    assert pixels_like(predicted / "one.png", ORANGE) > 1.5 * pixels_like(predicted / "healthy.png", ORANGE)


def test_a_folder_without_predictions_is_refused(predicted):
    (predicted / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no case of cases.csv has results in empty"):
        draw_montage(predicted / "empty", predicted / "cases.csv", predicted / "none.png")


def test_importing_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, medseg_diff.reporting.montage, medseg_diff.reporting.curves; "
        "assert not {'torch', 'monai', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
