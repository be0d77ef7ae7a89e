"""What may not leave: header texts, paths, user and host names, and, with pseudonyms, the names of cases and patients."""

import csv
import gzip
import json
import platform
import shutil
import socket
import sqlite3
import stat

import nibabel
import pytest

from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.case_folder import Identity
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.pseudonyms import without_names
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.evaluate import evaluate
from medseg_diff.tasks.train.segmentation import train_seg
from tests.works import WhileSampling

SECRET = "Zx9secret"  # begins everything that may not be found again
SHORT = (
    "network={kind: unet, width: 8, multipliers: [1, 1], blocks: 1, attention: [], groups: 4}",
    "view.size=[16,16]",
    "training={steps: 2, batch: 2, precision: fp32, validate_every: 1, save_every: 1, warm_up_steps: 0}",
    "validation={slices: 2, members: 1, trajectories: 1, calibration_slices: 2}",
    "sampling={steps: 1, members: 2}",
)
# The local store says where its files lie, as the README tells.
PLACES = ("artifact_location", "artifact_uri")


def contents(path):
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def texts_of(database):
    """Every text of an SQLite file, apart from the columns that say where artifacts lie."""
    connection = sqlite3.connect(database)
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        cursor = connection.execute(f'SELECT * FROM "{table}"')
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield from (str(value) for name, value in zip(names, row, strict=True) if name not in PLACES)
    connection.close()


@pytest.fixture
def marked(two_cases, tmp_path, monkeypatch):
    """The two cases in a folder, of a user, on a host and with headers that all hold the secret; returns the table."""
    folder = shutil.copytree(two_cases.parent, tmp_path / f"{SECRET}_folder" / "study")  # that name tells tables apart
    for path in folder.glob("*/*.nii.gz"):
        image = nibabel.load(path)
        image.header["descrip"] = f"{SECRET}_descrip".encode()
        image.header["db_name"] = f"{SECRET}_db".encode()
        image.header["intent_name"] = f"{SECRET}_int".encode()
        image.header["aux_file"] = f"{SECRET}_aux".encode()
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{SECRET}_extension".encode()))
        loaded = nibabel.Nifti1Image(
            image.get_fdata(dtype="float32").astype(image.get_data_dtype()), None, image.header
        )
        nibabel.save(loaded, path)
        assert contents(path).count(SECRET.encode()) == 5
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, f"{SECRET}_user")
    monkeypatch.setenv("HOME", str(tmp_path / f"{SECRET}_home"))
    for owner, name in ((socket, "gethostname"), (socket, "getfqdn"), (platform, "node")):
        monkeypatch.setattr(owner, name, lambda *_: f"{SECRET}_host")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder / two_cases.name


def test_nothing_of_headers_paths_user_or_host_is_found_again(marked, untrained_anomaly, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, runs = tmp_path / "results", tmp_path / "runs"
    run = train_seg(marked, config="quick/phantom", overrides=SHORT, device="cpu", runs=runs)
    segment(data=marked, out=out / "s", model=run.folder, device="cpu", runs=runs, save_members=True)
    evaluate(out / "s", marked, runs=runs)
    anomaly(
        data=marked,
        out=out / "a",
        model=untrained_anomaly.folder,
        device="cpu",
        threshold=0.5,
        baselines=True,
        runs=runs,
    )
    evaluate(out / "a", marked, runs=runs, mlflow=False)
    found = [path for folder in (out, runs) for path in folder.rglob("*") if path.is_file()]
    databases = [path for path in found if path.name == "mlflow.db"]
    texts = list(texts_of(databases[0]))
    assert len(found) > 60 and len(databases) == 1 and len(texts) > 200
    for path in set(found) - set(databases):
        assert SECRET not in path.as_posix().removeprefix(str(tmp_path)), path
        for forbidden in (SECRET, str(tmp_path)):
            assert forbidden.encode() not in contents(path), path
    assert not [text for text in texts if SECRET in text or str(tmp_path) in text]


def test_pseudonyms_stand_for_names_and_change_no_voxel(call, shaken, two_cases, tmp_path):
    folder = shutil.copytree(two_cases.parent, tmp_path / "in")
    for number, name in enumerate(("Anna_Muster", "Bert_Muster")):
        (folder / f"phantom_000{number}").rename(folder / name)
    text = two_cases.read_text().replace("phantom_0000", "Anna_Muster").replace("phantom_0001", "Bert_Muster")
    (folder / "cases.csv").write_text(text)
    options = {"data": folder / "cases.csv", "model": shaken, "device": "cpu"}
    plain = segment(out=tmp_path / "plain", **options)
    words = ("--data", folder / "cases.csv", "--model", shaken, "--device", "cpu", "--runs", tmp_path / "runs")
    code, _, _ = call("segment", *words, "--out", tmp_path / "out", "--pseudonymise")
    key = tmp_path / "runs" / "pseudonym.key"
    assert code == 0 and stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_text().strip()) == 64
    options |= {"runs": tmp_path / "runs", "pseudonymise": True}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    found = segment(out=tmp_path / "out", **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before  # complete: skipped
    for own, shown in zip(plain, found, strict=True):
        assert shown.name.startswith("case_") and len(shown.name) == 15 and int(shown.name[5:], 16) >= 0
        assert json.loads((shown / "case.json").read_text())["case"] == shown.name
        for path in own.glob("*.nii.gz"):
            assert (shown / path.name).read_bytes() == path.read_bytes()  # the noise is still the case's own
    for path in (tmp_path / "out").rglob("*"):
        assert "Muster" not in path.name and (path.is_dir() or b"Muster" not in contents(path))
    other = segment(out=tmp_path / "out", pseudonym_key=tmp_path / "another.key", **options)
    assert not {path.name for path in other} & {path.name for path in found}


def test_anomaly_takes_pseudonyms_too(untrained_anomaly, tmp_path):
    options = {"model": untrained_anomaly.folder, "device": "cpu", "threshold": 0.5, "runs": tmp_path / "runs"}
    case = str(untrained_anomaly.table.parent / "phantom_0001")
    (found,) = anomaly([case], out=tmp_path / "out", pseudonymise=True, **options)
    assert found.name.startswith("case_") and json.loads((found / "case.json").read_text())["case"] == found.name
    for path in (tmp_path / "out").rglob("*"):
        assert "phantom" not in path.name and (path.is_dir() or b"phantom_0001" not in contents(path))


def test_a_pseudonym_is_not_undone_by_the_list_of_failures(shaken, two_cases, tmp_path):
    folder = tmp_path / "in" / "Anna_Muster"
    shutil.copytree(two_cases.parent / "phantom_0000", folder)
    (folder / "flair.nii.gz").rename(folder / "Muster_flair.nii.gz")
    (folder / "Muster_flair.nii.gz").write_bytes(b"")
    rows = [
        {
            "case": "Anna_Muster",
            "patient": "Muster",
            **{name: f"Anna_Muster/{name}.nii.gz" for name in ("t1", "t1ce", "t2")},
        }
    ]
    rows[0]["flair"] = "Anna_Muster/Muster_flair.nii.gz"
    with (tmp_path / "in" / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ImageError):
        segment(
            data=tmp_path / "in" / "cases.csv",
            out=tmp_path / "out",
            model=shaken,
            device="cpu",
            keep_going=True,
            pseudonymise=True,
            pseudonym_key=tmp_path / "key",
        )
    text = (tmp_path / "out" / "failures.csv").read_text()
    assert "Muster" not in text and "\ncase_" in text and ",ImageError,3,flair: " in text


@pytest.mark.parametrize("task", [segment, anomaly])
def test_a_key_among_the_results_is_refused(request, task, shaken, two_cases, tmp_path):
    model = shaken if task is segment else request.getfixturevalue("untrained_anomaly").folder
    options = {"data": two_cases, "out": tmp_path / "out", "model": model, "device": "cpu"}
    options |= {} if task is segment else {"threshold": 0.5}
    with pytest.raises(UsageError, match="among the results"):
        task(pseudonymise=True, pseudonym_key=tmp_path / "out" / "deep" / "key", **options)
    with pytest.raises(UsageError, match="without --pseudonymise"):
        task(pseudonym_key=tmp_path / "key", **options)
    assert list(tmp_path.iterdir()) == []


def test_two_cases_of_one_pseudonym_are_refused(tmp_path):
    cases = [Case(name, patient=name) for name in ("a", "b")]
    results = Results(tmp_path, "segment", Identity({}), called=lambda name: "case_0000000000")
    with pytest.raises(UsageError, match="get the same name"):
        results.work_through("", cases, WhileSampling(lambda *_: pytest.fail("one would be lost")))


def test_a_file_of_a_dicom_series_is_not_named_either(tmp_path):
    (tmp_path / "t1").mkdir()
    for name in ("DOE_JANE_0042.dcm", "DOE_JANE report.pdf"):
        (tmp_path / "t1" / name).touch()
    case = Case("a", "a", images={"t1": tmp_path / "t1"})
    said = "3 of its 24 DICOM files cannot be read, such as DOE_JANE_0042.dcm"
    assert without_names(said, case, "case_1") == "3 of its 24 DICOM files cannot be read, such as FILE"
    said = "2 non-DICOM files are left out, such as DOE_JANE report.pdf"
    assert without_names(said, case, "case_1") == "2 non-DICOM files are left out, such as FILE"
    assert without_names(said, case, "a") == said  # where names stand, theirs do too
