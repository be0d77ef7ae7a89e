"""`validate` reads everything, stops at nothing, and needs no torch."""

import json
import subprocess
import sys
import tracemalloc

import nibabel
import numpy as np
import pytest

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.errors import ExitCode, ManifestError, UsageError
from medseg_diff.tasks.validate import validate
from tests.scans import SCANS, with_scans


@pytest.fixture
def data(tmp_path):
    """Four small sound cases of two channels and a mask."""
    rng = np.random.default_rng(0)
    lines = ["case,t1,t2,seg"]
    for case in "abcd":
        for channel in ("t1", "t2"):
            write_volume(tmp_path / f"{case}_{channel}.nii.gz", rng.random((6, 7, 8), dtype=np.float32), np.eye(4))
        write_volume(tmp_path / f"{case}_seg.nii.gz", (rng.random((6, 7, 8)) > 0.5).astype(np.uint8), np.eye(4))
        lines.append(f"{case},{case}_t1.nii.gz,{case}_t2.nii.gz,{case}_seg.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    return tmp_path / "cases.csv"


def test_sound_cases_have_nothing_to_report(data):
    report = validate(data)
    assert (report.cases, report.problems, report.warnings, report.exit_code) == (4, (), (), ExitCode.OK)
    known = report.as_dict()
    assert known["table"] == {
        "cases": 4,
        "patients": 4,
        "splits": {"no split": 4},
        "channels": {"t1": 4, "t2": 4},
        "references": 4,
        "grids": {"1×1×1 mm, RAS": {"cases": 4, "smallest": [6, 7, 8], "largest": [6, 7, 8]}},
        "labels": known["table"]["labels"],
    }
    assert known["table"]["labels"]["1"]["cases"] == 4
    first = known["per_case"][0]
    marked = np.asarray(nibabel.load(data.parent / "a_seg.nii.gz").dataobj).sum()
    assert first["case"] == "a" and first["labels_ml"] == {"1": round(marked / 1000, 3)}
    assert (first["shape"], first["spacing_mm"], first["orientation"]) == ((6, 7, 8), [1.0, 1.0, 1.0], "RAS")
    assert json.loads(json.dumps(known))["per_case"][3]["case"] == "d"
    assert report.lines[:3] == [
        "4 cases of 4 patients: no split",
        "  channels  t1, t2, seg",
        "  grid      1×1×1 mm, RAS: 4 cases, 6×7×8 voxels",
    ]


def test_any_number_of_workers_reports_the_same_in_the_same_order(data):
    (data.parent / "b_t1.nii.gz").write_bytes(b"nothing")
    (data.parent / "d_seg.nii.gz").write_bytes(b"nothing")
    (data.parent / "c_t2.nii.gz").write_bytes((data.parent / "a_t2.nii.gz").read_bytes())
    alone = validate(data, workers=1).as_dict()
    assert [problem["case"] for problem in alone["problems"]] == ["c", "b", "d"]
    assert all(validate(data, workers=workers).as_dict() == alone for workers in (2, 3, 9))
    with pytest.raises(UsageError, match="0 workers"):
        validate(data, workers=0)


def test_channels_on_several_grids_with_resample_to(data):
    rng = np.random.default_rng(1)
    shifted = np.eye(4) + np.array([[0, 0, 0, 0.5]] + [[0] * 4] * 3)
    write_volume(data.parent / "b_t2.nii.gz", rng.random((6, 7, 9), dtype=np.float32), shifted)
    (problem,) = validate(data).problems
    assert problem.case == "b" and "--resample-to t1" in problem.fix
    report = validate(data, resample_to="t1")
    assert report.problems == () and "[b] t2: resampled onto the grid of t1" in report.warnings[0]
    assert all("t9" in problem.line for problem in validate(data, resample_to="t9").problems)


def test_ctrl_c_ends_it(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["case,t1"]
    for number in range(40):
        write_volume(tmp_path / f"{number}.nii", rng.random((64, 64, 64), dtype=np.float32), np.eye(4))
        lines.append(f"{number},{number}.nii")
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    code = (
        "import os, signal, sys; from medseg_diff import cli; from medseg_diff.tasks import validate as verb\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the shell of a job in the background has it ignored
        "read, count = verb.read_case, []\n"
        "def interrupted(*words, **options):\n"
        "    count.append(1)\n"
        "    if len(count) == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return read(*words, **options)\n"
        "verb.read_case = interrupted\n"
        f"sys.argv = ['medseg-diff', 'validate', '--workers', '2', '--data', {str(tmp_path / 'cases.csv')!r}]\n"
        "try: cli.main()\n"
        "finally: print(len(count))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "" and int(done.stdout) < 20


def test_every_problem_of_every_case_is_listed(data):
    folder = data.parent
    (folder / "a_t1.nii.gz").write_bytes((folder / "a_t1.nii.gz").read_bytes()[:-4])
    (folder / "a_seg.nii.gz").write_bytes(b"nothing")
    write_volume(folder / "b_t2.nii.gz", np.random.default_rng(1).random((6, 7, 9), dtype=np.float32), np.eye(4))
    (folder / "c_t1.nii.gz").unlink()
    write_volume(
        folder / "d_t2.nii.gz",
        np.random.default_rng(1).random((6, 7, 8), dtype=np.float32)[::-1],
        np.diag([-1, 1, 1, 1.0]) + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3),
    )
    data.write_text(data.read_text() + "\nd,a_t1.nii.gz,,\n")
    report = validate(data)
    assert report.exit_code == ExitCode.USAGE
    places = [(problem["case"], problem["channel"], problem["exit_code"]) for problem in report.as_dict()["problems"]]
    assert places == [(None, None, 2), (None, None, 2), ("c", "t1", 3), ("a", "t1", 3), ("a", "seg", 3), ("b", "t2", 3)]
    assert report.warnings == ("[d] t2: reoriented from LAS to RAS, like t1",)
    assert json.loads(json.dumps(report.as_dict()))["cases"] == 3
    assert all(problem.fix for problem in report.problems)


def test_channels_that_a_recipe_needs(data):
    assert validate(data, channels=["t2"]).problems == ()
    report = validate(data, channels=["t1", "flair"])
    assert [problem.line for problem in report.problems][:1] == [
        "[a] has no flair (its channels: t1, t2). Fix: add them."
    ]
    assert len(report.problems) == 4 and report.exit_code == ExitCode.USAGE


def test_no_table_at_all(tmp_path):
    with pytest.raises(ManifestError, match="no such table"):
        validate(tmp_path / "gone.csv")


def test_it_imports_neither_torch_nor_monai_nor_pandas(data):
    code = (
        "import sys; from medseg_diff.tasks.validate import validate; "
        f"assert not validate({str(data)!r}).problems; "
        "heavy = {'torch', 'monai', 'pandas', 'SimpleITK', 'skimage', 'mlflow'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_does_not_grow_with_the_cases(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["case,t1"]
    for number in range(24):
        write_volume(tmp_path / f"{number}.nii", rng.random((32, 32, 32), dtype=np.float32), np.eye(4))
        lines.append(f"{number},{number}.nii")
    peaks = []
    for count in (4, 24):
        (tmp_path / "cases.csv").write_text("\n".join(lines[: count + 1]))
        tracemalloc.start()
        assert validate(tmp_path / "cases.csv", workers=1).cases == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**17  # one volume alone has 2**17 bytes


@with_scans("brats")
def test_the_real_scans_are_sound_and_of_two_conventions():
    report = validate(SCANS / "brats/cases.csv")
    assert (report.cases, report.problems) == (3, ())
    assert len(report.warnings) == 2
    assert "label of the enhancing tumour differs: 3 in 2 cases" in report.warnings[0]
    assert "type of the masks differs: floats in 2 cases" in report.warnings[1]
    assert [sorted(each.labels_ml) for each in report.facts] == [[1, 2, 3], [1, 2, 4], [1, 2, 3]]
    assert all(each.orientation == "LPS" and each.constant_background for each in report.facts)


def test_columns_that_some_cases_lack_and_names_that_mislead_are_said(data):
    lines = data.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    cells[2][2] = cells[4][3] = ""  # t2 of b, seg of d
    data.write_text("\n".join(map(",".join, cells)))
    report = validate(data)
    said = ("cases.csv: no t2 for 1 of 4 cases: b", "cases.csv: no seg for 1 of 4 cases: d")
    assert (report.warnings, report.exit_code) == (said, ExitCode.OK)
    data.write_text("\n".join(["case,t1,T1gd,mask", *lines[1:]]))
    assert [text for text in validate(data).warnings if "column" in text] == [
        "cases.csv: column `t1gd` is read as a separate channel: recipes call it `t1ce`",
        "cases.csv: column `mask` is read as a channel: if it is the reference, call it `seg`",
    ]


def test_a_reference_that_marks_nearly_all_is_doubted(data):
    mask = np.ones((6, 7, 8), np.uint8)
    mask[3, 3, 3] = 0
    write_volume(data.parent / "a_seg.nii.gz", mask, np.eye(4))
    said = ("[a] seg marks 100% of the volume: is the background marked instead of the lesion?",)
    assert validate(data).warnings == said
