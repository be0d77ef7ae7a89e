"""The table of cases: what is read, what is refused and where the message points."""

import logging
from pathlib import Path

import pytest

from medseg_diff.data.tables.manifest import draw_splits, read_manifest, scan_manifest, split_by_patient, write_manifest
from medseg_diff.errors import ExitCode, ImageError, ManifestError, MedsegError, Problems


@pytest.fixture
def table(tmp_path):
    """Write a table and the images that it is to find."""

    def write(text: str | bytes, *images: str) -> Path:
        for name in images:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        path = tmp_path / "cases.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def lines_of(path: Path, **options) -> list[str]:
    with pytest.raises(MedsegError) as caught:
        read_manifest(path, **options)
    return caught.value.lines


def test_a_healthy_channel_is_the_twin_of_its_channel_and_no_channel(table):
    text = "case,flair,healthy_flair,healthy_days,seg\n001,a.nii,b.nii,7,c.nii\n"
    manifest = read_manifest(table(text, "a.nii", "b.nii", "c.nii"))
    (case,) = manifest.cases
    assert (case.channels, case.twins["flair"].name, case.covariates) == (("flair",), "b.nii", {"healthy_days": 7.0})
    assert manifest.rows()[0]["healthy_flair"] == "b.nii"


def test_a_row_becomes_a_case(table):
    header = "case,patient,split,t1,flair,seg,seg_1,seg_2,label,age_years,sex"
    text = f"{header}\n001,p,train,a.nii,b.nii,c.nii,d.nii,e.nii,diseased,63.5,F\n"
    manifest = read_manifest(table(text, *(f"{letter}.nii" for letter in "abcde")))
    (case,) = manifest.cases
    assert (case.name, case.patient, case.split, case.label) == ("001", "p", "train", "diseased")
    assert {channel: path.name for channel, path in case.images.items()} == {"t1": "a.nii", "flair": "b.nii"}
    assert all(path.is_absolute() for path in case.paths.values())
    assert [path.name for path in (case.seg, *case.raters)] == ["c.nii", "d.nii", "e.nii"]
    assert case.covariates == {"age_years": 63.5, "sex": "F"}
    assert manifest.of("train") == (case,) and manifest.of("test") == ()
    assert manifest.channels == ("t1", "flair")


@pytest.mark.parametrize(
    "content",
    [
        b"case,t1\n1,a.nii\n",
        b"\xef\xbb\xbfcase,t1\r\n1,a.nii\r\n",
        b"case;t1\r\n1;a.nii\r\n\r\n",
        b"case\tt1\n1\ta.nii\n",
        "case,t1\n1,a.nii\n".encode("utf-16"),
        b' Case , "T1"\n1,"a.nii"\n',
        b"case,t1,\n1,a.nii,\n",
    ],
)
def test_whatever_editor_wrote_it(table, content):
    (case,) = read_manifest(table(content, "a.nii")).cases
    assert case.name == "1" and case.images["t1"].name == "a.nii"


def test_text_stays_text(table):
    cases = read_manifest(table("case,t1,site\n001,a.nii,NA\n1,b.nii,7\nNA,c.nii,\n", "a.nii", "b.nii", "c.nii")).cases
    assert [case.name for case in cases] == ["001", "1", "NA"]
    assert [dict(case.covariates) for case in cases] == [{"site": "NA"}, {"site": "7"}, {}]


def test_subject_is_read_as_case_and_said(table, caplog):
    with caplog.at_level(logging.INFO):
        assert read_manifest(table("subject,t1\ns1,a.nii\n", "a.nii")).cases[0].name == "s1"
    assert "`subject` is read as `case`" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("t1\na.nii\n", "no column `case`"),
        ("case,t1,t1\n1,a.nii,b.nii\n", "`t1` appears twice"),
        ("case,t1\n", "no cases"),
        ("case,t1\n1\n", "line 2: 1 cells where the header has 2"),
        ("case,t1\n1,a.nii,x\n", "line 2: 3 cells"),
        ("case,t1\n../1,a.nii\n", "line 2, column case: '../1' is not a valid case name"),
        ("case,t1\n=1+1,a.nii\n", "is not a valid case name"),
        ("case,t1\n-rf,a.nii\n", "is not a valid case name"),
        ("case,t1\n..,a.nii\n", "is not a valid case name"),
        ("case,t1\n<b>,a.nii\n", "is not a valid case name"),
        ("case,t1\n" + "x" * 65 + ",a.nii\n", "is not a valid case name"),
        ("case,t1\nx\x1b[31m,a.nii\n", r"'x\x1b[31m' is not a valid case name"),
        ("case,t1\n1,a.nii\n1,b.nii\n", "line 3, column case: 1 is in line 2 too"),
        ("case,t1\n1,a.nii\n2,a.nii\n", "line 3, column t1: a.nii is already used in line 2"),
        ("case,t1,t2\n1,a.nii,./a.nii\n", "line 2, column t2: a.nii is already used in line 2, column t1"),
        ("case,t1,split\n1,a.nii,training\n", "column split: 'training' is not known. Fix: use train, val, test"),
        ("case,t1,split\n1,a.nii,train\n2,b.nii,\n", "line 3, column split: is empty"),
        ("case,t1,label\n1,a.nii,ill\n", "column label: 'ill'"),
        (
            "case,patient,t1,split\n1,p,a.nii,train\n2,p,b.nii,test\n",
            "patient p is in test here and in train in line 2",
        ),
        ("case,t1\n1,/etc/passwd\n", "the path is absolute"),
        ("case,t1\n1,../a.nii\n", "points outside the data folder"),
        ("case,t1,age_years\n1,a.nii,old\n", "line 2, column age_years: 'old' is not a number"),
        ("case,t1,age_years\n1,a.nii,nan\n", "'nan' is not a number"),
        ("case,seg\n1,a.nii\n", "case 1 names no image"),
        ('case,t1\n1,"a.nii\n', "not readable as CSV"),
        (b"case,t1\nM\xfcller,a.nii\n", "line 2: not UTF-8"),
        (b"PK\x03\x04rest", "Excel workbook"),
        (b"case,t1\n1,a\0.nii\n", "null bytes"),
    ],
)
def test_faults_of_the_table_are_named_with_line_and_column(table, text, expected):
    path = table(text, "a.nii", "b.nii")
    with pytest.raises(MedsegError) as caught:
        read_manifest(path)
    assert caught.value.exit_code == ExitCode.USAGE
    message = "\n".join(caught.value.lines)
    assert expected in message and "cases.csv" in message and "Fix:" in message
    assert str(path.parent) not in message


def test_every_problem_is_found_at_once_and_the_table_comes_first(table):
    path = table("case,t1,split\n1,missing.nii,train\n1,a.nii,maybe\n2,b.nii,val\n", "a.nii", "b.nii")
    with pytest.raises(Problems) as caught:
        read_manifest(path)
    assert [type(problem) for problem in caught.value.problems] == [ManifestError, ManifestError, ImageError]
    manifest, problems = scan_manifest(path)
    assert [case.name for case in manifest.cases] == ["2"] and len(problems) == 3


def test_a_missing_image_is_an_image_fault(table):
    with pytest.raises(ImageError) as caught:
        read_manifest(table("case,t1\n1,gone.nii\n"))
    assert caught.value.exit_code == ExitCode.IMAGE
    assert caught.value.line.startswith("[1/t1] gone.nii: no such file (line 2 of cases.csv)")


def test_links_may_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "outside.nii").write_bytes(b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii").symlink_to(tmp_path / "outside.nii")
    (tmp_path / "data" / "cases.csv").write_text("case,t1\n1,a.nii\n")
    assert "points outside" in lines_of(tmp_path / "data" / "cases.csv")[0]


def test_data_root_names_another_root_and_takes_absolute_paths_below_it(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "lists").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.nii").write_bytes(b"x")
    path = tmp_path / "lists" / "cases.csv"
    path.write_text(f"case,t1\n1,a.nii\n2,{tmp_path}/images/b.nii\n")
    manifest = read_manifest(path, data_root=tmp_path / "images")
    assert [case.images["t1"] for case in manifest.cases] == [
        tmp_path / "images" / "a.nii",
        tmp_path / "images" / "b.nii",
    ]
    path.write_text(f"case,t1\n1,{tmp_path}/lists/cases.csv\n")
    assert "points outside" in lines_of(path, data_root=tmp_path / "images")[0]


def test_the_digest_is_of_the_rows_not_of_the_place(tmp_path):
    digests = []
    for folder, split in (("one", "train"), ("two", "train"), ("three", "val")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii").write_bytes(b"x")
        (tmp_path / folder / "cases.csv").write_text(f"case,t1,split\n1,a.nii,{split}\n")
        digests.append(read_manifest(tmp_path / folder / "cases.csv").digest())
    assert digests[0] == digests[1] != digests[2]


def test_written_rows_are_read_back(table, tmp_path):
    text = "case,patient,split,t1,seg,label,age_years\n1,p,train,a.nii,b.nii,healthy,63.125\n2,q,val,c.nii,,,\n"
    manifest = read_manifest(table(text, "a.nii", "b.nii", "c.nii"))
    write_manifest(tmp_path / "again.csv", manifest.rows())
    again = read_manifest(tmp_path / "again.csv")
    assert again.cases == manifest.cases and again.digest() == manifest.digest()


def test_one_patient_in_five_is_held_out_whole(table):
    rows = [(f"{patient}_{visit}", patient) for patient in range(10) for visit in range(2)]
    text = "case,patient,t1\n" + "".join(f"{case},{patient},{case}.nii\n" for case, patient in rows)
    manifest = read_manifest(table(text, *(f"{case}.nii" for case, _ in rows)))
    split = split_by_patient(manifest, seed=0)
    assert split is not None
    held_out = {case.patient for case in split.of("val")}
    assert len(held_out) == 2 and len(split.of("val")) == 4 and len(split.of("train")) == 16
    assert {case.patient for case in split.of("train")}.isdisjoint(held_out)
    assert split_by_patient(manifest, seed=0) == split
    assert any({case.patient for case in split_by_patient(manifest, seed=s).of("val")} != held_out for s in range(1, 6))


def test_fewer_than_four_patients_are_not_split():
    assert draw_splits(dict.fromkeys("abc", ""), {"val": 0.2}, seed=0) is None
    assert draw_splits(dict.fromkeys("abcd", ""), {"val": 0.2}, seed=0) is not None


def test_splits_ignore_the_order_of_rows_and_share_the_groups():
    patients = {f"h{n}": "healthy" for n in range(6)} | {f"d{n}": "diseased" for n in range(14)}
    splits = draw_splits(patients, {"test": 0.2, "val": 0.1}, seed=3)
    assert splits == draw_splits(dict(reversed(patients.items())), {"test": 0.2, "val": 0.1}, seed=3)
    counts = {split: sorted(p[0] for p in splits if splits[p] == split) for split in ("train", "val", "test")}
    assert [len(counts[split]) for split in ("train", "val", "test")] == [14, 2, 4]
    assert set(counts["test"]) == {"h", "d"}


NAMED_BY_THE_DATASET = '{"modality": {"0": "FLAIR", "1": "T1w"}}'


def test_a_4d_file_is_a_case_whose_channels_are_named(table, tmp_path):
    text = 'case,stack,stack_channels,seg,t1\na,a.nii,"FLAIR,t1gd",s.nii,\nb,,,,b.nii\n'
    manifest = read_manifest(table(text, "a.nii", "s.nii", "b.nii"))
    first, second = manifest.cases
    assert (first.stack, first.stack_channels, first.images) == (tmp_path / "a.nii", ("flair", "t1ce"), {})
    assert first.channels == ("flair", "t1ce") and second.channels == ("t1",) and second.stack is None
    assert manifest.channels == ("flair", "t1ce", "t1")
    write_manifest(tmp_path / "again.csv", manifest.rows())
    again = read_manifest(tmp_path / "again.csv")
    assert again.cases == manifest.cases and again.digest() == manifest.digest()
    other = read_manifest(table(text.replace("FLAIR,t1gd", "t1gd,FLAIR")))
    assert other.digest() != manifest.digest()


def test_a_dataset_json_names_the_volumes_where_the_table_does_not(table, tmp_path):
    path = table("case,stack\na,imagesTr/a.nii\n", "imagesTr/a.nii")
    (tmp_path / "dataset.json").write_text(NAMED_BY_THE_DATASET)
    assert read_manifest(path).cases[0].stack_channels == ("flair", "t1")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("case,stack\na,a.nii\n", "its channels are only numbered, and no dataset.json says which is which"),
        ('case,stack,stack_channels\na,a.nii,"t1,flair,t1w"\n', "names a channel twice"),
        ('case,stack,stack_channels\na,a.nii,"t1,"\n', "a channel cannot be called ''"),
        ("case,stack,stack_channels,t1\na,a.nii,t1,b.nii\n", "is given together with t1"),
        ("case,stack,stack_channels,t1\na,,flair,b.nii\n", "names volumes, but no file"),
        ("case,stack_channels,t1\na,flair,b.nii\n", "names volumes, but no file"),
        ("case,stacks\na,a.nii\n", "column `stacks` is unknown; perhaps `stack` is meant"),
        ("case,stack,stack_channels\na,../a.nii,t1\n", "points outside the data folder"),
    ],
)
def test_faults_of_a_4d_file_in_a_table(table, text, found):
    lines = lines_of(table(text, "a.nii", "b.nii"))
    assert any(found in line for line in lines) and all("cases.csv" in line for line in lines)


def test_a_table_is_called_by_its_folder_but_not_by_whose_home_that_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "homes" / "anna"))
    for folder, name in (("brats", "brats/cases"), ("homes/anna", "cases"), ("homes/bert", "cases"),
                         ("homes/anna/ukb", "ukb/cases")):  # fmt: skip
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "a.nii").touch()
        (place / "cases.csv").write_text("case,t1\na,a.nii\n")
        assert read_manifest(place / "cases.csv").name == name
        monkeypatch.chdir(place)
        assert read_manifest(Path("cases.csv")).name == name
