"""Every bad table: exit code 2 (3 for a file that it names) and one line with the place and the remedy; nothing printable
as a command, a formula or a path out of the folder gets through."""

import os

import nibabel
import numpy as np
import pytest

VOXELS = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
A, B = (nibabel.Nifti1Image(voxels, np.eye(4)) for voxels in (VOXELS, VOXELS[::-1]))
HEAD = "case,t1\n"

BAD = {
    # the file
    "empty": ("", "empty"),
    "blank lines": ("\n\n \n", "empty"),
    "header only": (HEAD, "has no cases"),
    "no case column": ("name_of,t1\na,a.nii\n", "no column `case`"),
    "latin-1": ("case,t1\nM\xfcller,a.nii\n".encode("latin-1"), "line 2: not UTF-8"),
    "cut UTF-16": ("case,t1\na,a.nii\n".encode("utf-16")[:-1], "not UTF-16"),
    "UTF-16 without its mark": ("case,t1\na,a.nii\n".encode("utf-16-le"), "null bytes"),
    "UTF-32": ("case,t1\na,a.nii\n".encode("utf-32"), "null bytes"),
    "null bytes": (b"case,t1\na,a\0.nii\n", "null bytes"),
    "workbook": (b"PK\x03\x04" + bytes(100), "Excel workbook"),
    "old workbook": (b"\xd0\xcf\x11\xe0" + bytes(100), "Excel workbook"),
    "packed": (b"\x1f\x8b\x08\0" + bytes(100), "is compressed"),
    "web page": ("<!DOCTYPE html><html></html>", "web page"),
    "binary": (bytes(range(128, 256)) * 5, "not UTF-8"),
    # quotes, separators, columns
    "open quote": ('case,t1\n"a,a.nii\n', "not readable as CSV"),
    "quote inside": ('case,t1\na,"a".nii\n', "not readable as CSV"),
    "short row": ("case,t1,t2\na,a.nii\n", "line 2: 2 cells where the header has 3"),
    "long row": (HEAD + "a,a.nii,b.nii\n", "line 2: 3 cells where the header has 2"),
    "mixed separators": ("case;t1\na,a.nii\n", "line 2: 1 cells"),
    "two columns of one name": ("case,t1,T1\na,a.nii,b.nii\n", "`t1` appears twice"),
    "two case columns": ("case,case,t1\na,b,a.nii\n", "`case` appears twice"),
    "nameless column": ("case,,t1\na,x,a.nii\n", "a column has no name"),
    "formula as column": ("case,=cmd(),t1\na,x,a.nii\n", "is not plain text"),
    "escape as column": ("case,\x1b[2Jx,t1\na,x,a.nii\n", "is not plain text"),
    "endless column name": (f"case,{'x' * 5000},t1\na,x,a.nii\n", "is not plain text"),
    "path as channel": ("case,../../x\na,a.nii\n", "is not plain text"),
    "mistyped split": ("case,splitt,t1\na,train,a.nii\n", "column `splitt` is unknown; perhaps `split` is meant"),
    "mistyped patient": ("case,patients,t1\na,p,a.nii\n", "column `patients` is unknown; perhaps `patient` is meant"),
    "too many columns": ("case," + ",".join(f"c{n}" for n in range(600)) + "\n", "more than 500 columns"),
    "endless field": (HEAD + "a," + "x" * 1_000_000 + "\n", "line 2: not readable as CSV (field larger"),
    "long cell": (HEAD + "a," + "x" * 10_000 + ".nii\n", "line 2, column t1: a cell with 10,004 characters"),
    "endless row": (HEAD + "," * 2_000_000 + "\n", "line 2 is too long"),
    # names
    "no name": (HEAD + ",a.nii\n", "'' is not a valid case name"),
    "path as name": (HEAD + "../a,a.nii\n", "is not a valid case name"),
    "dots": (HEAD + "..,a.nii\n", "is not a valid case name"),
    "hidden": (HEAD + ".a,a.nii\n", "is not a valid case name"),
    "trailing dot": (HEAD + "a.,a.nii\n", "is not a valid case name"),
    "option": (HEAD + "-rf,a.nii\n", "is not a valid case name"),
    "slash": (HEAD + "a/b,a.nii\n", "is not a valid case name"),
    "backslash": (HEAD + "a\\b,a.nii\n", "is not a valid case name"),
    "formula": (HEAD + "=HYPERLINK(1),a.nii\n", "is not a valid case name"),
    "script": (HEAD + "<script>x</script>,a.nii\n", "is not a valid case name"),
    "escape": (HEAD + "a\x1b[31m,a.nii\n", "is not a valid case name"),
    "bell": (HEAD + "a\x07,a.nii\n", "is not a valid case name"),
    "right to left": (HEAD + "a\u202egnp,a.nii\n", "is not a valid case name"),
    "zero width": (HEAD + "a\u200b,a.nii\n", "is not a valid case name"),
    "space inside": (HEAD + "a b,a.nii\n", "is not a valid case name"),
    "too long": (HEAD + "a" * 65 + ",a.nii\n", "is not a valid case name"),
    "too many bytes": (HEAD + "\u4e00" * 60 + ",a.nii\n", "is not a valid case name"),
    "device": (HEAD + "CON,a.nii\n", "reserved device name on Windows"),
    "device with a dot": (HEAD + "aux.1,a.nii\n", "reserved device name on Windows"),
    "twice": (HEAD + "a,a.nii\na,b.nii\n", "line 3, column case: a is in line 2 too"),
    "upper and lower": (HEAD + "case1,a.nii\nCASE1,b.nii\n", "line 3, column case: CASE1 and case1 of line 2"),
    "full width": (HEAD + "a1,a.nii\n\uff411,b.nii\n", "column case: \uff411 and a1 of line 2"),
    "formula as patient": ("case,patient,t1\na,=1+1,a.nii\n", "is not a valid patient name"),
    "script as patient": ("case,patient,t1\na,<b>x,a.nii\n", "is not a valid patient name"),
    "escape as patient": ("case,patient,t1\na,x\x1b[2J,a.nii\n", "is not a valid patient name"),
    "endless patient": (f"case,patient,t1\na,{'x' * 100},a.nii\n", "is not a valid patient name"),
    "formula as covariate": ("case,site,t1\na,=cmd|' /C calc'!A0,a.nii\n", "is not plain text"),
    "escape as covariate": ("case,site,t1\na,x\x1b]0;x,a.nii\n", "is not plain text"),
    # values
    "unknown split": ("case,split,t1\na,training,a.nii\n", "column split: 'training' is not known"),
    "half a split": ("case,split,t1\na,train,a.nii\nb,,b.nii\n", "line 3, column split: is empty"),
    "unknown label": ("case,label,t1\na,sick,a.nii\n", "column label: 'sick' is not known"),
    "age in words": ("case,age_years,t1\na,sixty,a.nii\n", "'sixty' is not a number"),
    "age not a number": ("case,age_years,t1\na,nan,a.nii\n", "'nan' is not a number"),
    "age infinite": ("case,age_years,t1\na,1e999,a.nii\n", "'1e999' is not a number"),
    "age below zero": ("case,age_years,t1\na,-5,a.nii\n", "-5 years is impossible"),
    "age of a tree": ("case,age_years,t1\na,6500,a.nii\n", "6500 years is impossible"),
    "volume below zero": ("case,brain_ml,t1\na,-1,a.nii\n", "-1 ml is impossible"),
    "comma as decimal sign": ("case;age_years;t1\na;63,5;a.nii\n", "'63,5' is not a number"),
    "leakage by split": ("case,patient,split,t1\na,p,train,a.nii\nb,p,test,b.nii\n", "this is leakage"),
    "leakage by case": ("case,patient,split,t1\na,P1,train,a.nii\nb,p1,test,b.nii\n", "this is leakage"),
    "leakage by file": (HEAD + "a,a.nii\nb,a.nii\n", "line 3, column t1: a.nii is already used in line 2"),
    "leakage by dots": (HEAD + "a,a.nii\nb,./x/../a.nii\n", "already used in line 2"),
    "one file for two channels": ("case,t1,t2\na,a.nii,a.nii\n", "already used in line 2, column t1"),
    "image as mask": ("case,t1,seg\na,a.nii,a.nii\n", "already used in line 2, column t1"),
    "no image": ("case,t1,seg\na,,a.nii\n", "case a names no image"),
    # paths
    "parent": (HEAD + "a,../a.nii\n", "points outside the data folder"),
    "far parent": (HEAD + "a,x/../../../../../etc/passwd\n", "points outside the data folder"),
    "absolute": (HEAD + "a,/etc/passwd\n", "the path is absolute"),
    "device file": (HEAD + "a,/dev/zero\n", "the path is absolute"),
    "escape in a path": (HEAD + "a,a\x1b[2J.nii\n", "control characters"),
    "right to left in a path": (HEAD + "a,a\u202e.nii\n", "control characters"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_bad_table_is_refused(refused, table, how):
    text, said = BAD[how]
    data = table(text, a__nii=A, b__nii=B)
    refused(2, "validate", "--data", data, names="cases.csv: ", says=said)


MISSING = {
    "gone": "gone.nii",
    "backslashes": "sub\\a.nii",
    "drive": "C:\\data\\a.nii",
    "address": "http://example.org/a.nii",
    "home": "~/a.nii",
    "variable": "$HOME/a.nii",
    "star": "*.nii",
    "upper case": "A.NII",
    "Not available": "NA",
}


@pytest.mark.parametrize("how", MISSING)
def test_a_file_that_is_not_there_is_exit_3(refused, table, how):
    data = table(f"case,t1\na,{MISSING[how]}\n", a__nii=A)
    refused(3, "validate", "--data", data, names="[a/t1] ", says="no such file (line 2 of cases.csv)")


@pytest.mark.parametrize("verb", ["validate", "train-seg", "train-anomaly"])
def test_no_table(refused, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, said in (("gone.csv", "no such table"), ("folder.csv", "is not a file"), ("pipe.csv", "is not a file")):
        refused(2, verb, "--data", tmp_path / name, names=f"{name}: ", says=said)


def test_links_out_of_the_folder(refused, table, tmp_path_factory, tmp_path):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "a.nii").write_bytes(A.to_bytes())
    (tmp_path / "a.nii").symlink_to(outside / "a.nii")
    (tmp_path / "sub").symlink_to(outside)
    for cell in ("a.nii", "sub/a.nii"):
        refused(2, "validate", "--data", table(f"case,t1\na,{cell}\n"), says="points outside the data folder")


def test_the_other_half_of_a_pair_may_not_be_a_link_outwards(refused, table, tmp_path_factory, tmp_path):
    outside = tmp_path_factory.mktemp("outside") / "a.img"
    pair = nibabel.Nifti1Pair(VOXELS, np.eye(4))
    pair.to_filename(outside.with_suffix(".hdr"))
    (tmp_path / "a.hdr").write_bytes(outside.with_suffix(".hdr").read_bytes())
    (tmp_path / "a.img").symlink_to(outside)
    refused(2, "validate", "--data", table("case,t1\na,a.hdr\n"), says="points outside the data folder")


def test_a_slice_of_a_folder_may_not_be_a_link_outwards(refused, table, tmp_path_factory, tmp_path):
    outside = tmp_path_factory.mktemp("outside") / "1.dcm"
    outside.write_bytes(bytes(128) + b"DICM")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").symlink_to(outside)
    refused(2, "validate", "--data", table("case,t1\na,series\n"), says="points outside the data folder")


def test_a_second_name_of_one_file_is_that_file(refused, table, tmp_path):
    data = table("case,t1\na,a.nii\nb,b.nii\n", a__nii=A)
    os.link(tmp_path / "a.nii", tmp_path / "b.nii")
    refused(2, "validate", "--data", data, says="b.nii is already used in line 2, column t1")


GOOD = {
    "byte order mark": "\ufeffcase,t1\na,a.nii\n".encode(),
    "CRLF": b"case,t1\r\na,a.nii\r\n",
    "CR": b"case,t1\ra,a.nii\r",
    "semicolons": b"case;t1\na;a.nii\n",
    "tabs": b"case\tt1\na\ta.nii\n",
    "UTF-16": "case,t1\na,a.nii\n".encode("utf-16"),
    "spaces and quotes": b' Case , "T1"\n a ,"a.nii"\n',
    "letters of the world": "case,t1\nM\xfcller_\u5c71,a.nii\n".encode(),
    "no line end": b"case,t1\na,a.nii",
}


@pytest.mark.parametrize("how", GOOD)
def test_what_editors_write_is_read(call, table, how):
    code, out, err = call("validate", "--data", table(GOOD[how], a__nii=A))
    assert (code, err) == (0, "") and "\n1 case, no problems" in out


def test_names_that_look_alike_to_a_number_stay_apart(call, table):
    third = nibabel.Nifti1Image(VOXELS**2, np.eye(4))
    data = table("case,t1\n001,a.nii\n1,b.nii\nNA,c.nii\n", a__nii=A, b__nii=B, c__nii=third)
    code, out, _ = call("validate", "--data", data)
    assert code == 0 and out.startswith("3 cases")


def test_a_thousand_faults_are_twenty_lines_and_a_count(call, table):
    code, _, err = call("validate", "--data", table(HEAD + "?,a.nii\n" * 50_000, a__nii=A))
    lines = err.splitlines()
    assert (
        code == 2 and len(lines) == 21 and lines[-1].startswith("error: and ") and lines[-1].endswith(" more problems.")
    )
