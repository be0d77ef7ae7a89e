"""`segment --adaptive` and `--screen`: less is drawn, case.json says what, and what is drawn keeps every byte."""

import json
import logging
import shutil

import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_map
from medseg_diff.errors import ConfigError, UsageError
from medseg_diff.files import read_json, write_json
from medseg_diff.recipes.calibration import SegmentationCalibration, read_calibration
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.apply.segmentation_system import open_system
from medseg_diff.tasks.apply.summary import rows_of, saved
from medseg_diff.tasks.options import Compute, EnsembleOptions

CHANNELS = ("t1", "t1ce", "t2", "flair")
CASES = ("phantom_0000", "phantom_0001")
SLICES = 6


@pytest.fixture(scope="module")
def thin(phantoms, tmp_path_factory):
    """The table of two phantoms of six slices each."""
    folder = tmp_path_factory.mktemp("thin")
    for case in CASES:
        for channel in CHANNELS:
            volume = read_map(phantoms.parent / case / f"{channel}.nii.gz")
            write_volume(folder / case / f"{channel}.nii.gz", volume.voxels[:, :, 14:20], volume.affine)
    rows = [",".join((case, *(f"{case}/{channel}.nii.gz" for channel in CHANNELS))) for case in CASES]
    (folder / "cases.csv").write_text("\n".join([",".join(("case", *CHANNELS)), *rows]) + "\n")
    return folder / "cases.csv"


def run_with(steep, folder, screening, **changes):
    """A copy of the run whose calibration says that of screening."""
    shutil.copytree(steep.folder, folder)
    run = Run(folder)
    write_json(run.calibration_file, read_json(run.calibration_file) | {"screening": screening} | changes)
    run.seal()
    return run


def screening_at(threshold):
    return {
        "threshold": threshold,
        "missed": 0.005,
        "allowed": 0.01,
        "left_out": 0.4,
        "slices": 90,
        "patients": 3,
    }


@pytest.fixture(scope="module")
def segmented(steep, thin):
    """f(out, ...): the two cases with eight members of one step each."""

    def call(out, **options):
        defaults = {"data": thin, "model": steep.folder, "device": "cpu", "members": 8, "steps": 1}
        segment(out=out, **defaults | options)
        return out

    return call


@pytest.fixture(scope="module")
def plain(segmented, tmp_path_factory):
    """All eight members."""
    return segmented(tmp_path_factory.mktemp("plain") / "out")


def images_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def reports_of(out):
    return [json.loads((out / case / "case.json").read_text()) for case in CASES]


def test_what_never_settles_is_what_it_would_have_been(segmented, plain, tmp_path):
    out = segmented(tmp_path / "out", adaptive=True, tolerance=1e-9)
    assert images_in(out) == images_in(plain)
    for report, other in zip(reports_of(out), reports_of(plain), strict=True):
        assert report["members"] == report["members_drawn"] == 8 and report["tolerance"] == 1e-9
        assert report["stopped"]["why"] == "all drawn"
        assert [look["members"] for look in report["stopped"]["looks"]] == [4, 6, 8]
        assert other["members_drawn"] == 8 and other["stopped"] is other["tolerance"] is None
        assert report["volume_ml"] == other["volume_ml"] and report["agreement"] == other["agreement"]


def test_what_settles_is_an_ensemble_of_the_members_drawn(segmented, tmp_path, caplog, monkeypatch):
    """Maps, surfaces of thresholds, volumes of members, agreement and files are those of four."""
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    with caplog.at_level(logging.INFO, "medseg_diff"):
        out = segmented(tmp_path / "out", adaptive=True, tolerance=0.99, save_members=True)
    assert "1 step × 4 to 8 members" in caplog.text and "drew 8 of 16 members: 50% saved" in caplog.text
    four = segmented(tmp_path / "four", members=4, save_members=True)
    assert images_in(out) == images_in(four) and f"{CASES[0]}/member_masks/03.nii.gz" in images_in(out)
    for report, other in zip(reports_of(out), reports_of(four), strict=True):
        assert (report["members"], report["members_drawn"], report["stopped"]["why"]) == (8, 4, "settled")
        (look,) = report["stopped"]["looks"]
        assert look["members"] == 4 and 0.01 <= look["dice"]["whole_tumour"] <= 1
        assert report["volume_ml"] == other["volume_ml"] and report["agreement"] == other["agreement"]
        assert (
            report["network_passes"] == 1 + 2 + 2 and other["network_passes"] == 1 + 3
        )  # rounds of 2 and 2; 8 at once
    rows = rows_of(out / case for case in CASES)
    assert [(row["members_drawn"], row["members"]) for row in rows] == [(4, 8)] * 2
    assert saved(rows) == ["drew 8 of 16 members: 50% saved"]


def test_when_to_stop_is_the_cases_own(segmented, plain, tmp_path):
    """Some tolerance that tells the two cases apart: neither order nor shards nor members at once change a byte."""
    looks = [
        report["stopped"]["looks"] for report in reports_of(segmented(tmp_path / "a", adaptive=True, tolerance=1e-9))
    ]
    off = [max(1 - look[0]["dice"]["whole_tumour"], look[0]["uncertainty"]["whole_tumour"]) for look in looks]
    assert off[0] != off[1]
    tolerance = sum(off) / 2
    out = segmented(tmp_path / "out", adaptive=True, tolerance=tolerance)
    drawn = [report["members_drawn"] for report in reports_of(out)]
    assert min(drawn) == 4 < max(drawn)
    for number in (2, 1):
        segmented(tmp_path / "shards", adaptive=True, tolerance=tolerance, shard=(number, 2), members_at_once=number)
    assert images_in(tmp_path / "shards") == images_in(out)


def test_adaptive_results_do_not_mix_with_others(segmented, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "out")
    with pytest.raises(UsageError, match=r"was made with tolerance None, not 0\.05"):
        segmented(tmp_path / "out", adaptive=True)
    segmented(tmp_path / "out", adaptive=False)  # as the recipe has it: complete


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tolerance": 0.1}, "--tolerance says when adaptive ensembles stop"),
        ({"tolerance": 0.1, "adaptive": False}, "--tolerance says when adaptive ensembles stop"),
        ({"tolerance": 0.0, "adaptive": True}, "tolerance 0 is out of range"),
        ({"tolerance": float("nan"), "adaptive": True}, "tolerance nan is out of range"),
        ({"screen": True, "start_from": "masks"}, "--screen looks at the scan alone"),
    ],
)
def test_words_that_do_not_go_together(segmented, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        segmented(tmp_path / "out", **options)


def test_of_several_models_the_first_says_how_many_each_draws(steep, trained, thin, tmp_path):
    from medseg_diff.data.reading import read_case
    from medseg_diff.data.tables.manifest import read_manifest
    from medseg_diff.data.transforms import prepare_case
    from medseg_diff.tasks.apply.segmentation_volume import sample_volume

    case = read_manifest(thin).cases[0]
    prepared = prepare_case(read_case(case, CHANNELS), load_recipe("quick/phantom", task="segment").preparation)

    def drawn(**options):
        found = FoundModel("both", (Run(steep.folder), Run(trained.folder)))
        ensemble = EnsembleOptions(steps=1, **options)
        return sample_volume("case", prepared, open_system(found, ensemble=ensemble, compute=Compute(device="cpu")))

    whole, all_drawn = drawn(members=8), drawn(members=8, adaptive=True, tolerance=1e-9)
    assert np.array_equal(whole.ensemble.mean, all_drawn.ensemble.mean)
    assert np.array_equal(whole.ensemble.variance_of_models, all_drawn.ensemble.variance_of_models)
    some = drawn(members=8, adaptive=True, tolerance=0.99)
    assert (some.ensemble.members, some.facts["members_drawn"], some.facts["stopped"]["why"]) == (8, 8, "settled")
    assert len(some.ensemble.voxels) == 8 and int(some.ensemble.votes.max()) <= 8
    assert some.facts["network_passes"] < whole.facts["network_passes"]
    alone = FoundModel("one", (Run(trained.folder),))
    ensemble = EnsembleOptions(steps=1, members=8)
    members = sample_volume("case", prepared, open_system(alone, ensemble=ensemble, compute=Compute(device="cpu")))
    assert not np.allclose(some.ensemble.mean, members.ensemble.mean, atol=1e-3)  # both have a say


def test_slices_that_look_empty_are_not_sampled(steep, segmented, plain, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    none, every = (run_with(steep, tmp_path / name, screening_at(at)) for name, at in (("none", 0.0), ("every", 1.1)))
    with caplog.at_level(logging.INFO, "medseg_diff"):
        out = segmented(tmp_path / "out", model=none.folder, screen=True)
    assert "on 3 patients this left out 40% of the slices and 0.50% of the lesions' voxels; so few" in caplog.text
    assert "skipped 0 of 12 slices after one look: 0% saved" in caplog.text
    for case in CASES:
        assert images_in(out / case) == images_in(plain / case)
    out = segmented(tmp_path / "left", model=every.folder, screen=True, adaptive=True)
    for report in reports_of(out):
        assert report["screening"] == screening_at(1.1) and report["network_passes"] == 1  # the prior's
        assert report["slices"] == {"with_brain": SLICES, "screened": SLICES} and report["members_drawn"] == 4
        assert report["stopped"]["looks"][0]["dice"] == {"whole_tumour": 1.0}
    for case in CASES:
        assert read_map(out / case / "variance_between.nii.gz").voxels.max() < 1e-6  # all say the same
        assert read_map(out / case / "probability.nii.gz").voxels.max() > 0
    rows = rows_of(out / case for case in CASES)
    assert [(row["slices_screened"], row["slices_with_brain"]) for row in rows] == [(6, 6)] * 2
    with pytest.raises(UsageError, match="was made with screening"):
        segmented(tmp_path / "left", model=every.folder, adaptive=True)


def test_a_recipe_that_screens_does_not_start_from_masks_either(steep, segmented, tmp_path):
    own = run_with(steep, tmp_path / "own", screening_at(0.1))
    recipe = own.recipe_file.read_text()
    own.recipe_file.write_text(recipe.replace("  screen: false\n", "  screen: true\n"))
    own.seal()
    masks = segmented(tmp_path / "masks", model=steep.folder)
    with pytest.raises(UsageError, match=r"the recipe screens: .* Fix: add --no-screen"):
        segmented(tmp_path / "out", model=own.folder, start_from=masks)


def test_without_a_measured_threshold_screening_is_refused(steep, trained, segmented, tmp_path):
    without = run_with(steep, tmp_path / "without", None)
    with pytest.raises(UsageError, match=r"without did not measure what screening misses. Fix: leave --screen out"):
        segmented(tmp_path / "out", model=without.folder, screen=True)
    own = run_with(steep, tmp_path / "own", screening_at(0.1), separate=False)
    with pytest.raises(UsageError, match="on patients that it was trained on"):
        segmented(tmp_path / "out", model=own.folder, screen=True)
    study = FoundModel("study", (Run(steep.folder), Run(trained.folder)))
    with pytest.raises(UsageError, match="study is a study, and its folds did not measure screening"):
        open_system(study, ensemble=EnsembleOptions(screen=True), compute=Compute(device="cpu"))


def test_a_calibration_of_before_is_read_and_screens_nothing(steep, segmented, plain, tmp_path):
    shutil.copytree(steep.folder, tmp_path / "old")
    run = Run(tmp_path / "old")
    known = read_json(run.calibration_file)
    del known["screening"]
    write_json(run.calibration_file, known)
    run.seal()
    assert read_calibration(run, SegmentationCalibration).screening is None
    out = segmented(tmp_path / "out", model=run.folder)
    assert images_in(out) == images_in(plain)


def test_patches_are_not_screened():
    recipe = load_recipe("quick/mask_logits_3d", task="segment")
    with pytest.raises(UsageError, match="a volume in patches is sampled as a whole"):
        recipe.plan(screen=True)
    with pytest.raises(ConfigError, match=r"sampling\.screen is for slices"):
        load_recipe("quick/mask_logits_3d", task="segment", overrides=("sampling.screen=true",))
    unmeasured = ("sampling.screen=true", "validation.calibration_slices=0")
    with pytest.raises(ConfigError, match=r"sampling\.screen needs a threshold"):
        load_recipe("quick/mask_logits", task="segment", overrides=unmeasured)


def test_a_recipe_may_say_so(steep, segmented, tmp_path):
    run = run_with(steep, tmp_path / "run", screening_at(1.1))
    recipe = load_recipe(str(run.recipe_file), task="segment")
    text = run.recipe_file.read_text()
    assert "adaptive: false" in text and "screen: false" in text and not recipe.sampling.adaptive
    run.recipe_file.write_text(
        text.replace("adaptive: false", "adaptive: true").replace("screen: false", "screen: true")
    )
    run.seal()
    (report, _) = reports_of(segmented(tmp_path / "out", model=run.folder))
    assert report["slices"]["screened"] == SLICES and report["members_drawn"] == 4
    (report, _) = reports_of(segmented(tmp_path / "no", model=run.folder, adaptive=False, screen=False))
    assert report["slices"] is None and report["members_drawn"] == 8
