"""Anomaly maps of phantoms by an untrained system: what is written, on which grid, and what is refused or warned of."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import medseg_diff
from medseg_diff.data.brain import find_brain
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume, axes_of, reoriented
from medseg_diff.data.reading import read_case, read_map
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.data.transforms import Preparation, prepare_case, restore, with_change
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.methods.anomaly.baselines import plain_baselines
from medseg_diff.methods.anomaly.normative import cleaned, depth_of
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.calibration import AnomalyCalibration, read_calibration
from medseg_diff.recipes.trained import recipe_of
from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly import anomaly

CHANNELS = ("t2", "flair")
CALIBRATION = "calibration.json"
BASELINES = ("blur", "flair", "flair_t2", "saliency", "scale_0")


def read(path) -> Volume:
    return read_map(Path(path))


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


def files_in(folder):
    """{relative name: bytes} of every result below a folder, case.json apart: it tells the time."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "case.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def study(untrained_anomaly, tmp_path_factory):
    """The two test phantoms with their baselines."""

    class Study:
        model, table, data = untrained_anomaly.folder, untrained_anomaly.table, untrained_anomaly.table.parent
        out = tmp_path_factory.mktemp("mapped") / "out"
        cases = tuple(case.name for case in read_manifest(untrained_anomaly.table).of("test"))

        def again(self, out, **options):
            return anomaly(data=self.table, split="test", out=out, model=self.model, device="cpu", **options)

        def one(self, out, volume=None, **options):
            return anomaly(
                [str(volume or self.data / self.cases[0])], out=out, model=self.model, device="cpu", **options
            )

    found = Study()
    assert found.again(found.out, baselines=True) == [found.out / case for case in found.cases]
    return found


def test_every_file_is_there_and_nothing_else(study):
    for case in study.cases:
        assert set(files_in(study.out / case)) == {
            "anomaly.nii.gz",
            "anomaly_mask.nii.gz",
            "lesions.csv",
            *(f"healthy_{channel}.nii.gz" for channel in CHANNELS),
            *(f"baselines/{name}.nii.gz" for name in BASELINES),
        }


def test_outputs_lie_on_the_grid_of_the_input(study):
    image = read(study.data / study.cases[0] / "t2.nii.gz")
    for path in (study.out / study.cases[0]).rglob("*.nii.gz"):
        found = read(path)
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)


def test_the_mask_is_the_map_above_the_stored_threshold_and_the_table_counts_it(study):
    stored = json.loads((study.model / CALIBRATION).read_text())["maps"]["anomaly"]["threshold"]
    for case in study.cases:
        folder, report = study.out / case, report_of(study.out / case)
        assert report["threshold"]["value"] == stored and "20.00%" in report["threshold"]["how"]
        score, mask = read(folder / "anomaly.nii.gz"), read(folder / "anomaly_mask.nii.gz").voxels > 0
        voxel_ml = abs(np.linalg.det(score.affine[:3, :3])) / 1000
        components, _ = ndimage.label(score.voxels > stored, structure=np.ones((3, 3, 3)))
        volumes = np.bincount(components.ravel()) * voxel_ml
        large = [number for number in range(1, len(volumes)) if volumes[number] >= 0.5]
        assert large and len(volumes) - 1 - len(large) == report["removed"]
        np.testing.assert_array_equal(mask, np.isin(components, large))
        with (folder / "lesions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert report["lesions"] == len(rows)
        assert [float(row["volume_ml"]) for row in rows] == pytest.approx(sorted(volumes[large])[::-1], abs=1e-3)
        place = np.linalg.solve(score.affine, [*(float(rows[0][f"{axis}_mm"]) for axis in "xyz"), 1])[:3]
        middle = ndimage.center_of_mass(mask, components, 1 + int(volumes[1:].argmax()))
        assert place == pytest.approx(middle, abs=0.1)


def test_the_baselines_stand_above_normative_means_of_their_own(study):
    run = Run(study.model)
    known, findings = read_calibration(run, AnomalyCalibration), recipe_of(run, AnomalyRecipe).findings
    case = next(case for case in read_manifest(study.table).cases if case.name == study.cases[0])
    prepared = prepare_case(read_case(case, CHANNELS, reference=False), Preparation())
    depth_mm = depth_of(prepared.brain, prepared.spacing_mm)
    for name, raw in plain_baselines(prepared.image, prepared.brain, CHANNELS, prepared.spacing_mm).items():
        score = cleaned(raw, prepared.brain, findings, spacing_mm=prepared.spacing_mm)
        normal = known.maps[name].normative_mean.at(depth_mm)
        expected = np.where(depth_mm > findings.rim_mm, score[0].numpy() - normal, 0)
        written = read(study.out / case.name / "baselines" / f"{name}.nii.gz").voxels
        np.testing.assert_allclose(written, restore(prepared, torch.from_numpy(expected)[None])[0], atol=1e-5)
        assert normal.min() > 0.05  # far above that tolerance


def test_outside_the_brain_the_map_is_zero_and_the_healthy_brain_is_the_input(study):
    case = study.cases[0]
    images = [read(study.data / case / f"{channel}.nii.gz").voxels for channel in CHANNELS]
    outside = ~find_brain(np.stack(images))
    assert not read(study.out / case / "anomaly.nii.gz").voxels[outside].any()
    for channel, image in zip(CHANNELS, images, strict=True):
        healthy = read(study.out / case / f"healthy_{channel}.nii.gz").voxels
        np.testing.assert_array_equal(healthy[outside], image[outside])
        inside = ~outside
        assert 0.02 < abs(healthy[inside] - image[inside]).mean() / image[inside].std() < 2  # in the units of the input


def test_case_json_tells_what_was_done(study):
    report = report_of(study.out / study.cases[0])
    assert report["task"] == "anomaly" and report["channels"] == list(CHANNELS) and report["baselines"] is True
    assert report["network_evaluations"] == {"denoiser": 4, "classifier": 5}  # two of guidance, three of p(healthy)
    assert report["threshold_asked"] == "healthy"
    sums = (study.model / "SHA256SUMS").read_text()
    assert all(report[key] in sums for key in ("sha256", "classifier_sha256", "recipe_sha256", "calibration_sha256"))
    checks, stored = report["quality_checks"], json.loads((study.model / CALIBRATION).read_text())
    assert checks["round_trip"]["error"] > 0 and checks["round_trip"]["limit"] == stored["round_trip"]["limit"] > 0
    assert checks["classifier"]["healthy_called_diseased"] == stored["reference"]["called_diseased"]
    assert checks["drift"]["healthy"] == stored["reference"]["drift"] and checks["calibration"] == {"holds": True}
    assert checks["p_healthy"]["slices"] + checks["drift"]["slices"] == report["slices"]
    assert report["normative_mean"] == stored["maps"]["anomaly"]["normative_mean"]
    assert len(report["slice_scores"]["z_mm"]) == len(report["slice_scores"]["score"]) == report["slices"]
    assert set(report["baseline_thresholds"]) == set(BASELINES)
    text = (study.out / study.cases[0] / "case.json").read_text()
    assert str(study.model.parent) not in text and str(study.out) not in text


def test_bytes_do_not_depend_on_shards_or_on_baselines(study, tmp_path):
    for number in (2, 1):
        written = study.again(tmp_path, shard=(number, 2))
        assert written == [tmp_path / study.cases[number - 1]]
    expected = {name: content for name, content in files_in(study.out).items() if "baselines" not in name}
    assert files_in(tmp_path) == expected


def test_a_turned_scan_or_one_file_of_four_dimensions_gives_the_same_findings(study, tmp_path):
    case = study.cases[0]
    volumes = [read(study.data / case / f"{channel}.nii.gz") for channel in CHANNELS]
    for channel, volume in zip(CHANNELS, volumes, strict=True):
        turned = reoriented(volume, "SLA")
        write_volume(tmp_path / "turned" / f"{channel}.nii.gz", turned.voxels, turned.affine, code=2)
    write_stack(tmp_path / "stack.nii.gz", volumes[::-1])
    expected = read(study.out / case / "anomaly.nii.gz")
    for volume in ("turned", "stack.nii.gz"):
        order = CHANNELS[::-1] if volume == "stack.nii.gz" else ()
        (folder,) = study.one(tmp_path / "out", volume=tmp_path / volume, channels=order)
        assert report_of(folder)["named_channels"] == (list(order) or None)
        found = read(folder / "anomaly.nii.gz")
        assert axes_of(found.affine) == ("SLA" if volume == "turned" else axes_of(expected.affine))
        assert {read(path).code for path in folder.glob("*.nii.gz")} == {2}  # as nibabel writes the stack, too
        np.testing.assert_allclose(
            reoriented(found, axes_of(expected.affine)).voxels, expected.voxels, atol=1e-6 if volume == "turned" else 0
        )
        rows = (folder / "lesions.csv").read_text()
        assert rows == (study.out / case / "lesions.csv").read_text()


def write_stack(path, volumes):
    """The channels as one 4D file, as the Medical Segmentation Decathlon has them."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.stack([v.voxels for v in volumes], axis=-1), volumes[0].affine), path)


def test_one_file_of_a_case_finds_its_siblings(study, tmp_path):
    (folder,) = study.one(tmp_path, volume=study.data / study.cases[0] / "flair.nii.gz", threshold="otsu")
    report, stored = report_of(folder), json.loads((study.model / CALIBRATION).read_text())["maps"]["anomaly"]
    assert report["threshold_asked"] == "otsu" and report["threshold"]["value"] != stored["threshold"]
    assert "Otsu" in report["threshold"]["how"]


def test_complete_cases_are_skipped_and_other_settings_do_not_mix(study, tmp_path):
    shutil.copytree(study.out / study.cases[0], tmp_path / study.cases[0])
    before = (tmp_path / study.cases[0] / "case.json").stat().st_mtime_ns
    study.one(tmp_path)
    assert (tmp_path / study.cases[0] / "case.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"was made with threshold_asked healthy, not 0\.5"):
        study.one(tmp_path, threshold=0.5)
    (folder,) = study.one(tmp_path, threshold=0.5, overwrite=True)
    assert report_of(folder)["threshold"] == {"value": 0.5, "how": "given"}
    assert not (folder / "baselines" / "blur.nii.gz").exists()  # those of the last time are gone


def test_the_stored_threshold_holds_for_the_settings_that_it_was_measured_with(study, tmp_path):
    with pytest.raises(
        UsageError, match=r"measured with other settings of engine or findings. Fix: use --threshold otsu"
    ):
        study.one(tmp_path, overrides=["engine.depth=10"])
    (folder,) = study.one(tmp_path, overrides=["engine.depth=10"], threshold="otsu")
    report = report_of(folder)
    assert report["engine"]["depth"] == 10 and report["normative_mean"] is None
    assert any("no normative mean was subtracted" in warning for warning in report["warnings"])


def test_a_case_that_lacks_a_channel_is_told_what_fits_an_anomaly_map(study, tmp_path):
    (tmp_path / "p").mkdir()
    shutil.copy(study.data / study.cases[0] / "t1.nii.gz", tmp_path / "p")
    with pytest.raises(ImageError) as caught:
        anomaly([str(tmp_path / "p")], out=tmp_path / "out", model=study.model, runs=study.model.parent, device="cpu")
    fitting = caught.value.line.partition("recipes that fit: ")[2]
    assert "guided_t1" in fitting and "wolleb" not in fitting
    assert "train-anomaly takes channels=[t1]" in caught.value.line


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -1.0])
def test_a_threshold_that_is_none_is_refused(study, tmp_path, threshold):
    with pytest.raises(UsageError, match=r"threshold .* is out of range"):
        study.one(tmp_path, threshold=threshold)


def test_a_threshold_of_few_false_positives_is_given_where_enough_healthy_brains_were_measured(
    recalibrated, study, tmp_path
):
    run = recalibrated()
    known = json.loads(run.calibration_file.read_text())["maps"]
    spread = [[0.1 * brain + 0.01 * place for place in range(9, 0, -1)] for brain in range(9)]
    known["anomaly"]["thresholds_by_volume"] = spread
    run = recalibrated(maps=known)
    run.seal()
    common = {"model": run.folder, "device": "cpu"}
    scan = [str(study.data / study.cases[0])]
    (folder,) = anomaly(scan, out=tmp_path / "one", guarantee=1.5, **common)
    report = report_of(folder)
    assert report["threshold"]["value"] == pytest.approx(0.1 * 8 + 0.01 * 6)  # the strictest brain, at 1 ml
    assert report["threshold_asked"] == "fp_ml=1.5 at 0.9" and "measured on 9" in report["threshold"]["how"]
    mask = read(folder / "anomaly_mask.nii.gz").voxels > 0
    assert not (mask & (read(folder / "anomaly.nii.gz").voxels <= report["threshold"]["value"])).any()
    for options, said in (
        ({"guarantee": 1.0, "level": 0.95}, "19 are needed, 9 are measured"),
        ({"guarantee": 0.01}, "ask for 0.1 ml or more"),
        ({"level": 0.9}, "--level belongs to --guarantee"),
        ({"guarantee": 1.0, "threshold": 0.5}, "both set the threshold"),
        ({"guarantee": 1.0, "level": 90}, "level 90 is out of range"),
        ({"guarantee": 1.0, "level": 0.0}, "level 0 is out of range"),
        ({"guarantee": 1.0, "overrides": ["engine.depth=10"]}, "0 are measured with these settings"),
    ):
        with pytest.raises(UsageError) as caught:
            anomaly(scan, out=tmp_path / "no", **common, **options)
        assert said in caught.value.line


def test_without_anything_healthy_there_is_no_stored_threshold(recalibrated, study, tmp_path):
    run = recalibrated(maps={}, source="nothing")
    run.seal()
    with pytest.raises(UsageError, match="no threshold from healthy brains"):
        anomaly([str(study.data / study.cases[0])], out=tmp_path, model=run.folder, device="cpu")


def test_a_scan_that_changed_everywhere_is_warned_of(recalibrated, study, tmp_path):
    run = recalibrated()
    facts = json.loads((run.folder / CALIBRATION).read_text())
    normal = facts["maps"]["anomaly"]["normative_mean"]
    normal["score"] = [score / 3 for score in normal["score"]]
    (run.folder / CALIBRATION).write_text(json.dumps(facts))
    run.seal()
    anomaly([str(study.data / study.cases[0])], out=tmp_path, model=run.folder, device="cpu")
    found = report_of(next(path.parent for path in tmp_path.glob("*/case.json")))
    gain, before = (
        each["quality_checks"]["intensity_gain"]["gain"] for each in (found, report_of(study.out / study.cases[0]))
    )
    assert gain > 1.5 and any("times as much as healthy brains" in each for each in found["warnings"])
    assert before >= 1


def test_the_calibration_says_what_it_was_measured_on(study):
    facts = json.loads((study.model / CALIBRATION).read_text())
    assert facts["source"] == "slices without lesion of validation cases (1)"  # these phantoms are all diseased
    assert facts["maps"]["anomaly"]["threshold"] > 0 and facts["reference"]["drift"] > 0
    assert facts["round_trip"]["limit"] > facts["round_trip"]["error"]
    classifier = facts["classifier"]
    assert classifier["balanced_accuracy"] == 0.9  # of the times that the engine passes: 90 is deeper
    assert classifier["auroc"] == 0.95
    assert [each["t"] for each in classifier["by_time"]] == [10, 90]
    assert (
        set(facts["maps"]) == {"anomaly", *BASELINES} and f"  {CALIBRATION}" in (study.model / "SHA256SUMS").read_text()
    )


def test_a_change_in_network_units_comes_back_in_those_of_the_scan(study):
    case = read_manifest(study.table).cases[0]
    images = read_case(case, CHANNELS, reference=False)
    for preparation in (Preparation(), Preparation(intensity="robust", background=-5.0), Preparation(per_slice=True)):
        prepared = prepare_case(images, preparation)
        same = with_change(images, prepared, torch.zeros_like(prepared.image))
        twice = with_change(images, prepared, prepared.image.clamp(min=-1) + 1)
        again = prepare_case(replace(images, image=twice), preparation)
        brain = find_brain(images.image)
        np.testing.assert_array_equal(same[:, ~brain], images.image[:, ~brain])
        untouched = same[:, brain] == images.image[:, brain]
        assert untouched.mean() > 0.9  # all but what the scale cuts off
        assert (twice[:, brain] >= same[:, brain] - 1e-3).all()
        torch.testing.assert_close(again.brain, prepared.brain)


@pytest.fixture(scope="module")
def measured(study):
    return medseg_diff.evaluate(study.out, study.table)


def test_evaluation_knows_anomaly_maps_by_their_folder(measured, study):
    assert measured["task"] == "anomaly" and measured["data"] == "phantom" and measured["cases"] == 2
    assert json.loads((study.out / "metrics.json").read_text()) == measured
    wanted = {"auroc", "average_precision", "dice_best", "dice_preset", "false_positives_ml", "lesion_sensitivity"}
    assert wanted <= set(measured["metrics"]) and set(measured["baselines"]) == set(BASELINES)
    for numbers in (measured["metrics"], *measured["baselines"].values()):
        assert numbers["dice_best"]["value"] >= numbers["dice_preset"]["value"] - 0.02
        assert numbers["auroc"]["low"] <= numbers["auroc"]["value"] <= numbers["auroc"]["high"]


def test_the_numbers_are_those_of_the_voxels(measured, study):
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = {"auroc": [], "average_precision": [], "flair": []}
    for case in study.cases:
        truth = read(study.data / case / "seg.nii.gz").voxels > 0
        brain = find_brain(np.stack([read(study.data / case / f"{c}.nii.gz").voxels for c in CHANNELS]))
        score = read(study.out / case / "anomaly.nii.gz").voxels
        flair = read(study.out / case / "baselines" / "flair.nii.gz").voxels
        found["auroc"].append(roc_auc_score(truth[brain], score[brain]))
        found["average_precision"].append(average_precision_score(truth[brain], score[brain]))
        found["flair"].append(roc_auc_score(truth[brain], flair[brain]))
    for key in ("auroc", "average_precision"):
        assert measured["metrics"][key]["value"] == pytest.approx(np.mean(found[key]), abs=1e-9)
    assert measured["baselines"]["flair"]["auroc"]["value"] == pytest.approx(np.mean(found["flair"]), abs=1e-9)
    gain = measured["baselines"]["flair"]["auroc_gain"]["value"]
    assert gain == pytest.approx(np.mean(found["auroc"]) - np.mean(found["flair"]), abs=1e-9)


def test_a_case_without_lesion_counts_for_false_positives(study, tmp_path):
    rows = study.table.read_text().splitlines()
    columns = rows[0].split(",")
    chosen = [row.split(",") for row in rows[1:] if row.split(",")[0] in study.cases]
    healthy = dict(zip(columns, chosen[0], strict=True)) | {"seg": "", "seg_1": "", "seg_2": "", "label": "healthy"}
    table = study.data / "healthy.csv"
    table.write_text("\n".join([rows[0], ",".join(healthy.values()), ",".join(chosen[1])]) + "\n")
    found = medseg_diff.evaluate(study.out, table, out=tmp_path)["metrics"]
    expected = report_of(study.out / study.cases[0])["volume_ml"]
    assert found["false_positives_ml"]["value"] == pytest.approx(expected, abs=0.01)
    assert found["auroc"]["cases"] == 1 and found["auroc_of_volumes"]["value"] in (0.0, 1.0)


def test_results_that_are_missing_are_named(study, tmp_path):
    shutil.copytree(study.out / study.cases[0], tmp_path / study.cases[0])
    with pytest.raises(UsageError, match=rf"no complete result for 1 of 2 cases: {study.cases[1]}"):
        medseg_diff.evaluate(tmp_path, study.table, split="test")


def test_a_montage_is_drawn(study, tmp_path):
    from medseg_diff.reporting.montage import draw_montage

    draw_montage(study.out, study.table, tmp_path / "montage.png")
    assert (tmp_path / "montage.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "montage.png").stat().st_size > 50_000
