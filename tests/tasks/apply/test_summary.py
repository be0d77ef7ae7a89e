"""One table of a folder's cases: what is in it, and that neither order nor shards nor a bad case change it."""

import csv
import json
import os
import shutil

import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_map
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.apply.summary import rows_of, summarised, write_summary

CHANNELS = ("t1", "t1ce", "t2", "flair")
CASES = ("phantom_0000", "phantom_0001", "phantom_0002")


@pytest.fixture(scope="module")
def thin(phantoms, tmp_path_factory):
    """The table of three phantoms of six slices each."""
    folder = tmp_path_factory.mktemp("thin")
    for case in CASES:
        for channel in CHANNELS:
            volume = read_map(phantoms.parent / case / f"{channel}.nii.gz")
            write_volume(folder / case / f"{channel}.nii.gz", volume.voxels[:, :, 14:20], volume.affine)
    rows = [",".join((case, *(f"{case}/{channel}.nii.gz" for channel in CHANNELS))) for case in CASES]
    (folder / "cases.csv").write_text("\n".join([",".join(("case", *CHANNELS)), *rows]) + "\n")
    return folder / "cases.csv"


@pytest.fixture(scope="module")
def segmented(steep, thin, tmp_path_factory):
    """f(out, ...): the three cases segmented as quickly as it gets; and a folder where they are."""

    def again(out, **options):
        options = {"data": thin, "model": steep.folder, "device": "cpu", "members": 2, "steps": 1} | options
        return segment(out=out, **options)

    again.out = tmp_path_factory.mktemp("segmented") / "out"
    again(again.out)
    return again


def table_of(out):
    with (out / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


def test_a_row_says_what_case_json_says(segmented):
    rows = table_of(segmented.out)
    assert [row["case"] for row in rows] == list(CASES)
    assert list(rows[0])[:4] == ["case", "task", "model", "whole_tumour_volume_ml"]
    for row in rows:
        report = report_of(segmented.out / row["case"])
        assert (row["task"], row["model"]) == ("segment", "tiny")
        assert float(row["whole_tumour_volume_ml"]) == report["volume_ml"]["whole_tumour"]["mask"] > 0
        assert row["whole_tumour_low_ml"] == row["whole_tumour_lesion_probability"] == ""  # of one run nothing is known
        assert float(row["whole_tumour_agreement"]) == report["agreement"]["whole_tumour"]
        review = report["slices_to_review"]["whole_tumour"]
        assert row["whole_tumour_review_slices"] == " ".join(str(each["slice"]) for each in review) != ""
        assert row["whole_tumour_review_axis"] == "2"
        assert float(row["typicality"]) == report["typicality"]["score"]
        assert (row["warnings"], row["promises_apply"]) == (str(len(report["warnings"])), str(report["promises_apply"]))
    assert "score" not in rows[0]


def test_what_a_study_promises_has_its_columns(tmp_path):
    volume = {"mask": 3.5, "low": 2.0, "high": 5.25, "level": 0.95}
    facts = {"task": "segment", "regions": {"whole": [1, 2], "core": [1]}, "volume_ml": {"whole": volume, "core": {}}}
    facts |= {"lesion_presence": {"whole": {"probability": 0.97}}, "promises_apply": True, "warnings": ["a", "b"]}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "case.json").write_text(json.dumps(facts))
    write_summary(tmp_path)
    (row,) = table_of(tmp_path)
    assert [row[f"whole_{key}"] for key in ("volume_ml", "low_ml", "high_ml", "level")] == [
        "3.5",
        "2.0",
        "5.25",
        "0.95",
    ]
    assert (row["whole_lesion_probability"], row["core_volume_ml"], row["warnings"]) == ("0.97", "", "2")
    assert list(row).index("whole_volume_ml") < list(row).index("core_volume_ml")


def test_anomaly_maps_have_theirs(untrained_anomaly, thin, tmp_path):
    options = {"data": thin, "model": untrained_anomaly.folder, "device": "cpu", "threshold": 0.5}
    folders = anomaly(out=tmp_path / "out", **options)
    rows = table_of(tmp_path / "out")
    assert list(rows[0])[3:] == [
        *("marked_ml", "lesions", "score", "threshold", "p_healthy_before", "p_healthy_after"),
        *("typicality", "typicality_threshold", "warnings"),
    ]
    for row, folder in zip(rows, folders, strict=True):
        report = report_of(folder)
        assert (row["case"], row["task"], row["threshold"]) == (folder.name, "anomaly", "0.5")
        assert [float(row[key]) for key in ("marked_ml", "lesions", "score")] == [
            report[key] for key in ("volume_ml", "lesions", "score")
        ]
        asked = report["quality_checks"]["p_healthy"]
        for name in ("before", "after"):
            assert row[f"p_healthy_{name}"] == ("" if asked[name] is None else str(asked[name]))


def test_order_and_shards_do_not_change_its_bytes(segmented, thin, tmp_path):
    expected = (segmented.out / "summary.csv").read_bytes()
    for number in (2, 1):
        segmented(tmp_path / "shards", shard=(number, 2))
    header, *lines = thin.read_text().splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([header, *lines[::-1]]) + "\n")
    segmented(tmp_path / "turned", data=turned, data_root=thin.parent)
    for name in ("shards", "turned"):
        assert (tmp_path / name / "summary.csv").read_bytes() == expected
        assert not [path for path in (tmp_path / name).iterdir() if path.name.startswith(".")]


def test_several_processes_at_once_leave_a_whole_one(segmented, tmp_path):
    """Each adds a case and writes the table, as two calls with --shard that end together do."""
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                shutil.copytree(segmented.out / CASES[0], tmp_path / "out" / f"case_{number}")
                write_summary(tmp_path / "out")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    assert [row["case"] for row in table_of(tmp_path / "out")] == [f"case_{number}" for number in range(8)]


def test_a_call_that_does_nothing_changes_nothing(segmented):
    before = (segmented.out / "summary.csv").stat().st_mtime_ns
    segmented(segmented.out)
    assert (segmented.out / "summary.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("keep_going", [True, False])
def test_cases_done_before_an_error_are_in_it(segmented, thin, tmp_path, keep_going):
    shutil.copytree(thin.parent, tmp_path / "in")
    (tmp_path / "in" / CASES[1] / "t1.nii.gz").write_bytes(b"")
    with pytest.raises(ImageError):
        segmented(tmp_path / "out", data=tmp_path / "in" / "cases.csv", keep_going=keep_going)
    expected = (CASES[0], CASES[2]) if keep_going else CASES[:1]
    assert [row["case"] for row in table_of(tmp_path / "out")] == list(expected)


def test_pseudonyms_stand_in_it_too(segmented, tmp_path):
    segmented(tmp_path / "out", pseudonymise=True, pseudonym_key=tmp_path / "key")
    text = (tmp_path / "out" / "summary.csv").read_text()
    assert text.count("\ncase_") == 3 and "phantom" not in text


def test_a_persons_table_of_that_name_is_left_alone(segmented, tmp_path):
    mine = "case,t1\nme,me.nii\n"
    (tmp_path / "summary.csv").write_text(mine)
    with pytest.raises(UsageError, match=r"summary\.csv: is not the table of results .* Fix: move it elsewhere"):
        segmented(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]
    assert (tmp_path / "summary.csv").read_text() == mine
    (tmp_path / "summary.csv").unlink()
    (tmp_path / "elsewhere").write_bytes((segmented.out / "summary.csv").read_bytes())
    (tmp_path / "summary.csv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is not the table"):
        segmented(tmp_path)


@pytest.mark.parametrize("name", ["summary.csv", "Summary.CSV", "failures.csv"])
def test_no_case_is_called_as_a_table_of_the_results(segmented, thin, tmp_path, name):
    shutil.copytree(thin.parent / CASES[0], tmp_path / name)
    with pytest.raises(UsageError, match=r"like a table of the results\. Fix: rename the case"):
        segmented(tmp_path / "out", data=None, volumes=[str(tmp_path / name)])


def test_folders_that_are_no_results_are_left_out(segmented, tmp_path):
    shutil.copytree(segmented.out / CASES[0], tmp_path / "good")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    for name, facts in {"foreign": {"task": "other"}, "broken": {"task": "segment", "regions": 3}, "none": []}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "case.json").write_text(json.dumps(facts))
    (tmp_path / "empty").mkdir()
    assert [row["case"] for row in rows_of(tmp_path.iterdir())] == ["good"]


def test_where_there_is_no_case_there_is_no_table(segmented, tmp_path):
    with summarised(tmp_path / "gone"):
        pass
    assert not (tmp_path / "gone").exists()
    (tmp_path / "summary.csv").write_bytes((segmented.out / "summary.csv").read_bytes())
    write_summary(tmp_path)
    assert list(tmp_path.iterdir()) == []
