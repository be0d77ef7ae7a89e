"""What a verb wrote is read back as it was written, on one grid; anything else is refused."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.results import holds_result, read_result, task_of_results
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.errors import ImageError, ManifestError, UsageError
from tests.made import BRAIN, LPS, SHAPE, TUMOUR, Study, ball

CORE = ball((12, 11, 8), 1.5)
REGIONS = {"whole": [1, 2, 4], "core": [1, 4]}


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def opened(study, name="a"):
    return read_result(study.predictions / name, name)


def case_of(study):
    return read_manifest(study.table).cases[0]


def test_each_region_of_a_mask_is_where_its_labels_are(study):
    labels = np.where(CORE, 1, 2) * TUMOUR
    study.add("a").predict("a", labels, regions=REGIONS)
    result = opened(study)
    assert result.task == "segment" and list(result.regions) == ["whole", "core"]
    assert np.array_equal(result.mask("whole"), TUMOUR) and np.array_equal(result.mask("core"), CORE)
    labels = np.where(CORE, 4, 2) * TUMOUR
    assert np.array_equal(result.marked(labels, "core"), CORE) and result.map("probability", "core") is None


def test_regions_that_do_not_nest_share_the_mask_and_have_maps_of_their_own(study):
    rim = TUMOUR & ~CORE
    study.add("a").predict("a", np.where(CORE, 1, 2) * TUMOUR, regions={"rim": [2], "core": [1, 4]})
    folder = study.predictions / "a"
    for region, mask in (("rim", rim), ("core", CORE)):
        write_volume(folder / f"probability_{region}.nii.gz", (mask * 0.7).astype(np.float32), LPS)
        write_volume(folder / "members" / f"00_{region}.nii.gz", mask.astype(np.float32), LPS)
    result = opened(study)
    for region, mask in (("rim", rim), ("core", CORE)):
        assert np.array_equal(result.mask(region), mask)
        assert np.array_equal(result.map("probability", region) > 0.5, mask)
        assert [np.array_equal(member > 0.5, mask) for member in result.members(region)] == [True]
    write_volume(folder / "probability_core.nii.gz", np.float32(CORE), 2 * LPS)
    with pytest.raises(ImageError, match=r"\[a/probability\] probability_core.nii.gz: not on the grid of the other"):
        result.map("probability", "core")


def test_a_mask_of_an_earlier_version_is_not_taken_for_labels(study):
    study.add("a").predict("a")
    facts = study.predictions / "a" / "case.json"
    known = json.loads(facts.read_text())
    del known["mask_labels"]
    facts.write_text(json.dumps(known | {"schema": 2, "nested": True}))
    with pytest.raises(UsageError, match=r"does not name its regions and the labels of its mask.*--overwrite"):
        opened(study)


def test_an_anomaly_map_has_its_mask_its_baselines_and_its_healthy_channels(study):
    study.add("a").score("a", TUMOUR * 7.0, diseased=[4], baselines={"flair": (CORE * 2.0, 1.0)})
    write_volume(study.predictions / "a" / "healthy_flair.nii.gz", (BRAIN * 100.0).astype(np.float32), LPS)
    result = opened(study)
    assert result.task == task_of_results(study.predictions) == "anomaly"
    assert np.array_equal(result.mask("anomaly"), TUMOUR) and result.main.voxels.max() == 7.0
    ((name, baseline),) = result.baselines()
    assert name == "flair" and np.array_equal(baseline > 1, CORE)
    assert result.map("healthy_flair").max() == 100.0
    assert np.array_equal(result.marked(np.where(CORE, 4, 2) * TUMOUR, "anomaly"), CORE)
    study.score("a", TUMOUR * 7.0)
    assert np.array_equal(opened(study).marked(np.where(CORE, 4, 2) * TUMOUR, "anomaly"), TUMOUR)


def test_what_this_version_does_not_know_is_refused(study):
    study.add("a").predict("a")
    for facts in ({"task": "synthesise"}, {"task": "segment", "schema": 99}, {"task": "segment", "schema": "two"}):
        (study.predictions / "a" / "case.json").write_text(json.dumps(facts | {"regions": {"whole": [1]}}))
        with pytest.raises(UsageError, match="unknown to this version"):
            opened(study)
    (study.predictions / "a" / "case.json").unlink()
    with pytest.raises(UsageError, match=r"has no case.json"):
        opened(study)


def test_a_result_is_of_one_verb_and_holds_all_that_it_lists(study):
    study.add("a").predict("a").score("b", TUMOUR * 1.0)
    one, two = study.predictions / "a", study.predictions / "b"
    assert holds_result(one, "segment") and not holds_result(one, "anomaly")
    assert holds_result(two, "anomaly") and not holds_result(two, "segment")
    known = json.loads((one / "case.json").read_text())
    (one / "case.json").write_text(
        json.dumps(known | {"outputs": {"mask.nii.gz": "0", "variance_between.nii.gz": "0"}})
    )
    assert not holds_result(one, "segment")
    assert not holds_result(study.predictions / "c", "segment")


def test_a_scan_on_another_grid_is_resampled_only_where_the_result_was(study):
    coarse = np.diag([-4.0, -4.0, 6.0, 1.0])
    coarse[:3, 3] = [-1.0, -1.0, 1.5]  # the middle of eight voxels
    study.add("a").predict("a")
    case = case_of(study)
    halved = tuple(slice(None, size // 2 * 2, 2) for size in SHAPE)
    write_volume(case.paths["seg"], TUMOUR[halved].astype(np.uint8), coarse)
    with pytest.raises(ImageError, match=r"\[a/seg\].*not on the grid of the result"):
        opened(study).references(case)
    facts = study.predictions / "a" / "case.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"resample_to": "flair"}))
    result = opened(study)
    assert result.references(case)["seg"].shape == SHAPE
    assert np.array_equal(result.brain(case, ["flair"]), BRAIN)
    write_volume(case.paths["flair"], np.random.default_rng(0).random((12, 11, 8), np.float32), coarse)
    with pytest.raises(ImageError, match=r"\[a/flair\].*not on the grid of the result"):  # the scan is another one
        result.image(case, "flair")
    with pytest.raises(ManifestError, match="has no t1"):
        result.image(case, "t1")


def test_a_channel_of_a_4d_file_is_read_onto_the_grid_too(study):
    study.add("a").predict("a", TUMOUR.astype(int))
    case, path = case_of(study), study.folder / "a" / "stack.nii.gz"
    flair = opened(study).image(case, "flair")
    nibabel.save(nibabel.Nifti1Image(np.stack([flair * 2, flair], axis=-1), LPS), path)
    stacked = replace(case, images={}, stack=path, stack_channels=("t1", "flair"))
    assert np.array_equal(opened(study).image(stacked, "flair"), flair)
