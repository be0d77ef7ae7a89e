"""Anomaly maps of phantoms by an untrained system: what is written, on which grid, and what is refused or warned of."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import medseg_diff
from medseg_diff.data.brain import find_brain
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import Volume, axes_of, reoriented
from medseg_diff.data.reading import read_case, read_map
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.anomaly_volume import HealedVolume
from medseg_diff.tasks.apply.healer import CALIBRATION, load_healer
from medseg_diff.tasks.apply.quality_checks import guards_of

CHANNELS = ("t2", "flair")
RIVALS = ("blur", "flair", "flair_t2", "saliency", "scale_0")


def read(path) -> Volume:
    return read_map(Path(path))


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


def files_in(folder):
    """{relative name: bytes} of every result below a folder, case.json apart: it tells the time."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "case.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def study(untrained_healer, tmp_path_factory):
    """The two test phantoms with their baselines."""

    class Study:
        model, table, data = untrained_healer.folder, untrained_healer.table, untrained_healer.table.parent
        out = tmp_path_factory.mktemp("healed") / "out"
        cases = tuple(case.name for case in read_manifest(untrained_healer.table).of("test"))

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
            *(f"healed_{channel}.nii.gz" for channel in CHANNELS),
            *(f"baselines/{name}.nii.gz" for name in RIVALS),
        }


def test_outputs_lie_on_the_grid_of_the_input(study):
    image = read(study.data / study.cases[0] / "t2.nii.gz")
    for path in (study.out / study.cases[0]).rglob("*.nii.gz"):
        found = read(path)
        assert found.shape == image.shape
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)


def test_the_mask_is_the_map_above_the_stored_threshold_and_the_table_counts_it(study):
    for case in study.cases:
        folder, report = study.out / case, report_of(study.out / case)
        score, mask = read(folder / "anomaly.nii.gz"), read(folder / "anomaly_mask.nii.gz").voxels > 0
        stored = json.loads((study.model / CALIBRATION).read_text())
        assert report["threshold"]["value"] == stored["threshold"] and "2.00%" in report["threshold"]["how"]
        assert (score.voxels[mask] > stored["threshold"]).all()
        with (folder / "lesions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        voxel_ml = abs(np.linalg.det(score.affine[:3, :3])) / 1000
        assert sum(float(row["volume_ml"]) for row in rows) == pytest.approx(mask.sum() * voxel_ml, abs=0.01)
        assert report["lesions"] == len(rows) and all(float(row["volume_ml"]) >= 0.5 for row in rows)
        if rows:
            place = np.linalg.solve(score.affine, [*(float(rows[0][f"{axis}_mm"]) for axis in "xyz"), 1])[:3]
            assert all(0 <= index < size for index, size in zip(place, mask.shape, strict=True))


def test_outside_the_brain_the_map_is_zero_and_the_healed_brain_is_the_input(study):
    case = study.cases[0]
    images = [read(study.data / case / f"{channel}.nii.gz").voxels for channel in CHANNELS]
    outside = ~find_brain(np.stack(images))
    assert not read(study.out / case / "anomaly.nii.gz").voxels[outside].any()
    for channel, image in zip(CHANNELS, images, strict=True):
        healed = read(study.out / case / f"healed_{channel}.nii.gz").voxels
        np.testing.assert_array_equal(healed[outside], image[outside])
        inside = ~outside
        assert 0.02 < abs(healed[inside] - image[inside]).mean() / image[inside].std() < 2  # in the units of the input


def test_case_json_tells_what_was_done(study):
    report = report_of(study.out / study.cases[0])
    assert report["task"] == "anomaly" and report["channels"] == list(CHANNELS) and report["baselines"] is True
    assert report["passes_per_slice"] == {"denoiser": 4, "classifier": 2, "guards": 4}
    assert report["threshold_asked"] == "healthy"
    sums = (study.model / "SHA256SUMS").read_text()
    assert all(report[key] in sums for key in ("sha256", "classifier_sha256", "recipe_sha256", "calibration_sha256"))
    guards = report["guards"]
    assert guards["round_trip"]["error"] > 0 and guards["round_trip"]["limit"] > 0
    assert guards["classifier"]["balanced_accuracy"] == 0.9 and guards["classifier"]["auroc"] == 0.95
    stored = json.loads((study.model / CALIBRATION).read_text())
    assert guards["classifier"]["healthy_called_diseased"] == stored["called_diseased"]
    assert guards["p_healthy"]["slices"] + guards["drift"]["slices"] == report["slices"]
    assert len(report["slice_scores"]["z_mm"]) == len(report["slice_scores"]["score"]) == report["slices"]
    assert set(report["baseline_thresholds"]) == set(RIVALS)
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
        write_volume(tmp_path / "turned" / f"{channel}.nii.gz", turned.voxels, turned.affine)
    write_stack(tmp_path / "stack.nii.gz", volumes)
    expected = read(study.out / case / "anomaly.nii.gz")
    for volume in ("turned", "stack.nii.gz"):
        (folder,) = study.one(tmp_path / "out", volume=tmp_path / volume)
        found = read(folder / "anomaly.nii.gz")
        assert axes_of(found.affine) == ("SLA" if volume == "turned" else axes_of(expected.affine))
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
    report = report_of(folder)
    assert report["threshold_asked"] == "otsu" and report["threshold"]["value"] != report["floor"]
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
    with pytest.raises(UsageError, match=r"measured with other depth, steps or scale. Fix: use --threshold otsu"):
        study.one(tmp_path, depth=10)
    (folder,) = study.one(tmp_path, depth=10, threshold="otsu")
    report = report_of(folder)
    assert report["healing"]["depth"] == 10 and report["floor"] is None
    assert any("no floor" in warning for warning in report["warnings"])


@pytest.fixture
def recalibrated(study, tmp_path):
    """A copy of the run whose calibration.json one may change."""

    def change(**facts):
        folder = tmp_path / "runs" / "changed"
        if not folder.exists():
            shutil.copytree(study.model, folder)
        known = json.loads((folder / CALIBRATION).read_text())
        (folder / CALIBRATION).write_text(json.dumps(known | facts))
        return Run(folder)

    return change


def test_a_classifier_at_chance_is_refused(recalibrated):
    run = recalibrated(classifier={"balanced_accuracy": 0.51, "auroc": 0.53, "by_time": []})
    run.seal()
    with pytest.raises(CheckpointError, match=r"no better than by chance \(balanced accuracy 0.51, AUROC 0.53\)"):
        load_healer(run, device="cpu", precision=None)


def test_a_classifier_of_which_nothing_is_known_is_said(recalibrated, caplog):
    run = recalibrated(classifier={"balanced_accuracy": None, "auroc": None, "by_time": []})
    run.seal()
    load_healer(run, device="cpu", precision=None)
    assert "whether it guesses is not known" in caplog.text


def test_a_changed_or_missing_calibration_is_refused(recalibrated):
    run = recalibrated(threshold=9.0)
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        load_healer(run, device="cpu", precision=None)
    (run.folder / CALIBRATION).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_healer(run, device="cpu", precision=None)


def test_without_anything_healthy_there_is_no_stored_threshold(recalibrated, study, tmp_path):
    run = recalibrated(threshold=None, floor=None, rivals={}, source="nothing")
    run.seal()
    with pytest.raises(UsageError, match="no threshold from healthy brains"):
        anomaly([str(study.data / study.cases[0])], out=tmp_path, model=run.folder, device="cpu")


def volume_of(before, after, drift, trip=0.01):
    believed = np.stack([before, after], axis=1).astype(np.float32)
    empty = {"slices": list(range(len(before))), "healed": None, "score": None, "rivals": {}}
    return HealedVolume(**empty, before=np.array(before), believed=believed, drift=np.array(drift), round_trip=trip)


def test_guards_warn_of_what_cannot_be_trusted(recalibrated):
    run = recalibrated(called_diseased=0.1)
    run.seal()
    healer = load_healer(run, device="cpu", precision=None)
    drift, limit = healer.calibration.drift, healer.calibration.round_trip_limit
    guards, warnings = guards_of(volume_of([0.1, 0.2, 0.9], [0.8, 0.9, 0.9], [9, 9, drift], limit / 2), healer)
    assert (
        warnings == [] and guards["p_healthy"]["rose"] and guards["drift"]["within"] and guards["round_trip"]["within"]
    )
    assert guards["p_healthy"]["slices"] == 2 and guards["p_healthy"]["before"] == pytest.approx(0.15)
    assert any("did not rise" in w for w in guards_of(volume_of([0.3, 0.2], [0.2, 0.1], [1, 1]), healer)[1])
    assert any("look healthy changed" in w for w in guards_of(volume_of([0.9], [0.9], [3 * drift]), healer)[1])
    assert any("scale 0" in w for w in guards_of(volume_of([0.9], [0.9], [0], 2 * limit), healer)[1])
    other = replace(healer, healing=healer.healing.but(scale=1.0))
    guards, warnings = guards_of(volume_of([0.1], [0.9], [1]), other)
    assert "no floor" in warnings[0] and guards["round_trip"]["within"] is None


def test_a_classifier_that_knows_places_only_is_warned_of(recalibrated):
    run = recalibrated(called_diseased=0.6)
    run.seal()
    _, warnings = guards_of(volume_of([0.9], [0.9], [0]), load_healer(run, device="cpu", precision=None))
    assert ["60% of healthy slices diseased" in warning for warning in warnings] == [True]


def test_a_scan_that_changed_everywhere_is_warned_of(recalibrated, study, tmp_path):
    run = recalibrated()
    facts = json.loads((run.folder / CALIBRATION).read_text())
    facts["floor"]["score"] = [score / 3 for score in facts["floor"]["score"]]
    (run.folder / CALIBRATION).write_text(json.dumps(facts))
    run.seal()
    anomaly([str(study.data / study.cases[0])], out=tmp_path, model=run.folder, device="cpu")
    found = report_of(next(path.parent for path in tmp_path.glob("*/case.json")))
    assert found["level"] > 1.5 and any("times as much as healthy brains" in each for each in found["warnings"])
    assert report_of(study.out / study.cases[0])["level"] >= 1


def test_a_scale_that_runs_away_is_named(study, tmp_path):
    with pytest.raises(UsageError, match=r"ran out of all numbers. Fix: lower --scale"):
        study.one(tmp_path, scale=1e38, threshold="otsu")


def test_the_calibration_says_what_it_was_measured_on(study):
    facts = json.loads((study.model / CALIBRATION).read_text())
    assert facts["source"] == "slices without lesion of validation cases (1)"  # these phantoms are all diseased
    assert facts["threshold"] > 0 and facts["drift"] > 0 and facts["round_trip"]["limit"] > facts["round_trip"]["error"]
    assert facts["classifier"]["balanced_accuracy"] == 0.9  # of the times that healing passes: 90 is deeper
    assert [each["t"] for each in facts["classifier"]["by_time"]] == [10, 90]
    assert set(facts["rivals"]) == set(RIVALS) and f"  {CALIBRATION}" in (study.model / "SHA256SUMS").read_text()


def test_a_change_in_network_units_comes_back_in_those_of_the_scan(study):
    import torch

    from medseg_diff.data.transforms import Preparation, prepare_case, with_change

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
    assert wanted <= set(measured["metrics"]) and set(measured["baselines"]) == set(RIVALS)
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
    with pytest.raises(UsageError, match=rf"1 of 2 cases have no complete anomaly map: {study.cases[1]}"):
        medseg_diff.evaluate(tmp_path, study.table, split="test")


def test_a_montage_is_drawn(study, tmp_path):
    from medseg_diff.reporting.anomaly import anomaly_montage

    anomaly_montage(study.out, study.table, tmp_path / "montage.png")
    assert (tmp_path / "montage.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "montage.png").stat().st_size > 50_000


def test_a_sweep_recommends_the_cheapest_of_the_best(study, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg_diff.tasks.apply.sweep.SLICES", 4)
    (folder,) = study.one(tmp_path, sweep=True)
    with (folder / "sweep.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    settings = {(row["depth"], row["steps"], row["scale"]) for row in rows}
    assert len(settings) == len(rows) == 27 and (20, 2, 5) in settings
    best = max(row["auroc"] for row in rows)
    cheapest = min(row["calls"] for row in rows if row["auroc"] >= best - 0.005)
    words = dict(word.split("=") for word in (folder / "recommended.txt").read_text().split())
    (chosen,) = [row for row in rows if all(row[key.split(".")[1]] == float(words[key]) for key in words)]
    assert chosen["calls"] == cheapest and chosen["auroc"] >= best - 0.005
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / study.cases[0]).exists()  # no maps
