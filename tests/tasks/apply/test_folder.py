"""Results of one name: never another patient's, never on top of a user's file, and each file as it was written."""

import gzip
import hashlib
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest

from medseg_diff.data import digests
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_map
from medseg_diff.data.results import holds_result
from medseg_diff.data.tables.manifest import Case
from medseg_diff.errors import ImageError, MedsegError, UsageError
from medseg_diff.files import write_text
from medseg_diff.tasks.apply.anomaly import anomaly
from medseg_diff.tasks.apply.case_folder import Identity, is_complete, source_of
from medseg_diff.tasks.apply.folder import Results
from medseg_diff.tasks.apply.segment import segment
from tests.works import WhileSampling

CHANNELS = ("t1", "t1ce", "t2", "flair")


class Verb:
    """One of the two verbs on one scan, as quick as it gets."""

    def __init__(self, name, model, place):
        self.name, self.model, self.first, self.second = name, model, place / "in/A/mr", place / "in/B/mr"
        self.out, self.folder = place / "out", place / "out" / "mr"
        self.mask, self.map = ("mask", "probability") if name == "segment" else ("anomaly_mask", "anomaly")
        self.below = "members/00.nii.gz" if name == "segment" else "baselines/blur.nii.gz"

    def __call__(self, volume, out=None, **options):
        """The folder of the results, some of them in a folder below."""
        if self.name == "segment":
            task, options = segment, {"members": 1, "steps": 1, "save_members": True} | options
        else:
            task, options = anomaly, {"threshold": 0.5, "baselines": True} | options
        (folder,) = task([str(volume)], out=out or self.out, model=self.model, device="cpu", **options)
        return folder


@pytest.fixture(scope="module", params=["segment", "anomaly"])
def done(request, trained, untrained_anomaly, phantoms, tmp_path_factory):
    """Two patients' scans of one name, six slices each, in/A/mr and in/B/mr; and the results of the first in out/mr."""
    model = (trained if request.param == "segment" else untrained_anomaly).folder
    verb = Verb(request.param, model, tmp_path_factory.mktemp(request.param))
    for folder, phantom in ((verb.first, "phantom_0000"), (verb.second, "phantom_0001")):
        for channel in CHANNELS:
            volume = read_map(phantoms.parent / phantom / f"{channel}.nii.gz")
            write_volume(folder / f"{channel}.nii.gz", volume.voxels[:, :, 14:20], volume.affine)
    verb(verb.first)
    return verb


@pytest.fixture
def verb(done, tmp_path):
    """The same in a place of its own, where the first scan is done."""
    for name in ("in", "out"):
        shutil.copytree(done.out.parent / name, tmp_path / name)
    return Verb(done.name, done.model, tmp_path)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("medseg_diff"), "propagate", True)
    caplog.set_level(logging.INFO, "medseg_diff")
    return caplog


def contents(folder):
    """{relative name: bytes} of every file; case.json tells the time, so it is left out."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "case.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def report_of(folder):
    return json.loads((folder / "case.json").read_text())


def test_case_json_names_its_inputs_and_its_outputs(verb):
    report, written = report_of(verb.folder), contents(verb.folder)
    assert (report["task"], report["schema"], report["source"]) == (verb.name, 3, "A/mr")
    assert report["outputs"] == {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    assert {f"{verb.mask}.nii.gz", verb.below} <= set(report["outputs"])
    assert set(report["inputs"]) == set(report["channels"])
    for channel, known in report["inputs"].items():
        file = (verb.first / f"{channel}.nii.gz").read_bytes()
        assert known["file_sha256"] == hashlib.sha256(file).hexdigest() and len(known["voxels_sha256"]) == 64


def test_another_patients_scan_of_the_same_name_is_refused(verb, tmp_path):
    before = stamps(verb.out)
    with pytest.raises(UsageError, match=r"\[mr\] case.json: was made from the images of A/mr, not of B/mr") as caught:
        verb(verb.second)
    assert caught.value.exit_code == 2 and "Fix: use another --out, or --overwrite" in caught.value.line
    assert stamps(verb.out) == before
    expected = contents(verb(verb.second, tmp_path / "other"))
    assert contents(verb.folder) != expected
    verb(verb.second, overwrite=True)
    assert contents(verb.folder) == expected and report_of(verb.folder)["source"] == "B/mr"


def test_a_scan_that_was_replaced_is_another(verb):
    shutil.copy(verb.second / "flair.nii.gz", verb.first / "flair.nii.gz")
    with pytest.raises(UsageError, match=r"\[mr\] case.json: was made from other images than A/mr holds now"):
        verb(verb.first)


def test_one_that_was_only_saved_anew_is_the_same(verb):
    before = stamps(verb.out)
    flair = verb.first / "flair.nii.gz"
    flair.write_bytes(gzip.compress(gzip.decompress(flair.read_bytes()), mtime=1))
    t2 = read_map(verb.first / "t2.nii.gz")
    write_volume(verb.first / "t2.nii", t2.voxels, t2.affine)
    (verb.first / "t2.nii.gz").unlink()
    verb(verb.first)
    assert stamps(verb.out) == before


def test_a_complete_case_is_not_decoded(verb, monkeypatch):
    monkeypatch.setattr(digests, "read_case", lambda *_, **__: pytest.fail("decoded"))
    verb(verb.first)


def test_with_keep_going_another_patients_scan_is_listed(phantoms, trained, tmp_path):
    shutil.copytree(phantoms.parent, tmp_path / "in")
    rows = phantoms.read_text().splitlines()[:3]
    (tmp_path / "in" / "cases.csv").write_text("\n".join(rows) + "\n")
    options = {"data": tmp_path / "in" / "cases.csv", "out": tmp_path / "out", "model": trained.folder}
    options |= {"device": "cpu", "members": 1, "steps": 1, "keep_going": True}
    first, second = segment(**options)
    assert report_of(first)["source"] == "phantom_0000"  # of the folders above a table nothing is told
    shutil.copy(tmp_path / "in/phantom_0002/t1.nii.gz", tmp_path / "in/phantom_0000/t1.nii.gz")
    shutil.rmtree(second)
    with pytest.raises(UsageError, match="other images than phantom_0000 holds now"):
        segment(**options)
    assert (second / "case.json").is_file()
    assert "phantom_0000,OtherScan,2," in (tmp_path / "out" / "failures.csv").read_text()


def test_results_on_two_grids_do_not_mix(verb):
    with pytest.raises(UsageError, match="was made with resample_to None, not flair"):
        verb(verb.first, resample_to="flair")


@pytest.mark.parametrize("how", ["damaged", "missing", "below"])
def test_what_is_not_as_it_was_written_is_written_again(verb, said, how):
    expected = contents(verb.folder)
    name = verb.below if how == "below" else f"{verb.mask}.nii.gz"
    if how == "missing":
        (verb.folder / name).unlink()
    else:
        (verb.folder / name).write_bytes(expected[name][:-1])
    verb(verb.first)
    assert contents(verb.folder) == expected
    found = [record.getMessage() for record in said.records if record.getMessage().startswith(f"[mr] {name}")]
    assert found == [f"[mr] {name} is missing or has changed: redoing the case"]


STRANGERS = (
    "mask_manual.nii.gz",
    "notes.txt",
    "members/mine.nii.gz",
    "baselines/mine.nii.gz",
    "healthy_mine.nii.gz",
    "healed_mine.nii.gz",
)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_users_file_is_never_touched(verb, name):
    write_text(verb.folder / name, "mine")
    verb(verb.first)  # it is complete
    with pytest.raises(
        UsageError, match=rf"\[mr\] holds {name}, which no case.json lists. Fix: move it elsewhere"
    ) as caught:
        verb(verb.first, overwrite=True)
    assert caught.value.exit_code == 2
    (verb.folder / f"{verb.map}.nii.gz").unlink()  # now it is not complete
    before = stamps(verb.folder)
    with pytest.raises(UsageError, match=f"holds {name}"):
        verb(verb.first)
    (verb.first / "flair.nii.gz").write_bytes(b"")
    with pytest.raises(MedsegError):
        verb(verb.first, overwrite=True)
    assert stamps(verb.folder) == before and (verb.folder / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["mask.nii.gz", "anomaly.nii.gz", "scan.nii", "case.json"])
def test_nor_in_a_folder_without_results(verb, tmp_path, name):
    content = '{"id": 7}' if name == "case.json" else "mine"
    write_text(tmp_path / "own" / "mr" / name, content)
    with pytest.raises(UsageError) as caught:
        verb(verb.first, tmp_path / "own", overwrite=True)
    assert caught.value.exit_code == 2 and f"holds {name}" in caught.value.line
    assert (tmp_path / "own" / "mr" / name).read_text() == content
    assert [path.name for path in (tmp_path / "own").rglob("*")] == ["mr", name]


def test_a_scan_that_cannot_be_read_costs_no_older_result(verb):
    before = stamps(verb.folder)
    (verb.first / "flair.nii.gz").write_bytes(b"")
    with pytest.raises(ImageError):
        verb(verb.first, overwrite=True)
    assert stamps(verb.folder) == before
    assert sorted(path.name for path in verb.out.iterdir()) == ["mr", "summary.csv"]


@pytest.mark.parametrize("link", ["", "members", "baselines", "mask.nii.gz"])
def test_nothing_is_deleted_or_written_through_a_link(verb, tmp_path, link):
    place, target = verb.folder / link, tmp_path / "elsewhere"
    if place.exists():
        shutil.move(place, target)
    else:
        write_text(target / "00.nii.gz", "mine")
    place.symlink_to(target)
    before = {path: path.read_bytes() for path in (target, *target.rglob("*")) if path.is_file()}
    with pytest.raises(UsageError, match="link") as caught:
        verb(verb.first, overwrite=True)
    assert caught.value.exit_code == 2 and place.is_symlink() and before
    assert {path: path.read_bytes() for path in (target, *target.rglob("*")) if path.is_file()} == before


def test_a_result_of_an_earlier_version_is_done_again(verb):
    expected, known = contents(verb.folder), report_of(verb.folder)
    for key in ("schema", "inputs", "outputs", "source"):
        del known[key]
    shutil.rmtree(verb.folder / "member_masks", ignore_errors=True)  # there were none then
    for path in verb.folder.glob("mask_labels.*"):
        path.unlink()
    (verb.folder / "case.json").write_text(json.dumps(known))
    then = {"healthy": "healed", "variance_between": "spread", "variance_within": "ambiguity"}
    for now, before in then.items():  # as it was called then
        for path in verb.folder.glob(f"{now}*"):
            path.rename(path.with_name(path.name.replace(now, before)))
    write_text(verb.folder / "mask_manual.nii.gz", "mine")
    with pytest.raises(UsageError, match=r"holds mask_manual.nii.gz"):
        verb(verb.first)
    (verb.folder / "mask_manual.nii.gz").unlink()
    verb(verb.first)
    assert contents(verb.folder) == expected and report_of(verb.folder)["schema"] == 3


@pytest.mark.parametrize("change", [{"inputs": 3}, {"outputs": ["a"]}, {"channels": "t2"}])
def test_a_case_json_that_makes_no_sense_is_no_complete_case(tmp_path, change):
    results, case = Results(tmp_path, "segment", Identity({})), Case("a", patient="a")
    results.work_through("", [case], work_of("mask.nii.gz"))
    known = report_of(tmp_path / "a")
    assert is_complete(tmp_path / "a", case, Identity({}), None)
    (tmp_path / "a" / "case.json").write_text(json.dumps(known | change))
    assert not is_complete(tmp_path / "a", case, Identity({}), None)


def work_of(*names, then=lambda folder: None):
    """What a verb does with a case that has no image: these files, and `then`."""

    def work(case, folder):
        for name in names:
            write_text(folder / name, name)
        then(folder)
        return {"channels": [], "inputs": {}}

    return WhileSampling(work)


def test_a_file_that_comes_while_the_case_is_worked_on_is_kept_too(tmp_path):
    results, cases = Results(tmp_path, "segment", Identity({}), overwrite=True), [Case("a", patient="a")]
    results.work_through("", cases, work_of("mask.nii.gz"))
    before = stamps(tmp_path / "a")
    late = work_of("mask.nii.gz", then=lambda folder: write_text(tmp_path / "a" / "mine.txt", "mine"))
    with pytest.raises(UsageError, match=r"holds mine\.txt"):
        results.work_through("", cases, late)
    assert before.items() <= stamps(tmp_path / "a").items()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("a", "case.json", "mask.nii.gz", "mine.txt", "summary.csv")
    ]


def killed(work):
    """`work` in a process of its own, which kills itself."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_an_attempt_that_was_killed_is_done_again(tmp_path):
    results, cases = Results(tmp_path, "segment", Identity({})), [Case("a", patient="a")]
    die = work_of("mask.nii.gz", "members/00.nii.gz", then=lambda folder: os.kill(os.getpid(), signal.SIGKILL))
    killed(lambda: results.work_through("", cases, die))
    assert list(tmp_path.glob("a/**/*")) == [] and list(tmp_path.rglob("00.nii.gz"))
    results.work_through("", cases, work_of("mask.nii.gz"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "case.json", "mask.nii.gz", "summary.csv"]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_kill_while_one_result_takes_anothers_place(tmp_path, monkeypatch, step, overwrite):
    """At every call that moves a folder: the case is the old one, the new one, or not there."""
    cases, renames = [Case("a", patient="a")], []
    again = Results(tmp_path, "segment", Identity({}), overwrite=True)
    again.work_through("", cases, work_of("mask.nii.gz", "old.nii.gz"))

    def rename(self, target, whole=Path.rename):
        renames.append(target)
        if len(renames) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        found = whole(self, target)
        if len(renames) == step - 1 == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        killed(lambda: again.work_through("", cases, work_of("mask.nii.gz", "new.nii.gz")))
    names = sorted(path.name for path in tmp_path.glob("a/*"))
    assert (
        names
        == {1: ["case.json", "mask.nii.gz", "old.nii.gz"], 2: [], 3: ["case.json", "mask.nii.gz", "new.nii.gz"]}[step]
    )
    Results(tmp_path, "segment", Identity({}), overwrite=overwrite).work_through(
        "", cases, work_of("mask.nii.gz", "new.nii.gz")
    )
    last = "old.nii.gz" if step == 1 and not overwrite else "new.nii.gz"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "case.json", "mask.nii.gz", last, "summary.csv"]


def test_pseudonymised_results_hold_no_source(verb, tmp_path):
    first, second = (path.rename(path.with_name("Muster")) for path in (verb.first, verb.second))
    options = {"out": tmp_path / "shown", "pseudonymise": True, "pseudonym_key": tmp_path / "key"}
    folder = verb(first, **options)
    text = (folder / "case.json").read_text()
    assert "source" not in json.loads(text) and "Muster" not in text and "A/" not in text
    with pytest.raises(UsageError, match=rf"\[{folder.name}\] case.json: was made from other images\. Fix: "):
        verb(second, **options)


def test_nothing_is_told_of_what_lies_above_a_home_or_a_table(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    for folder, said in (("anna/study/mr", "study/mr"), ("anna/mr", "mr"), ("study/A/mr", "A/mr")):
        for path in (tmp_path / folder / "t1.nii", tmp_path / folder):  # a file; a DICOM series
            assert source_of(Case("mr", patient="mr", images={"t1": path}), None) == said
    case = Case("mr", patient="mr", images={"t1": tmp_path / "study/A/mr/t1.nii"})
    assert source_of(case, tmp_path / "study" / "A") == "mr"
    assert source_of(case, tmp_path / "study/A/mr") == "t1.nii"


def test_a_result_of_anomaly_is_no_segmentation(verb):
    assert [task for task in ("segment", "anomaly") if holds_result(verb.folder, task)] == [verb.name]
    if verb.name == "anomaly":
        shutil.copy(verb.folder / "anomaly_mask.nii.gz", verb.folder / "mask.nii.gz")
        assert not holds_result(verb.folder, "segment")


def test_a_case_that_lacks_a_file_of_its_list_is_not_segmented(tmp_path):
    results = Results(tmp_path, "segment", Identity({}))
    results.work_through("", [Case("a", patient="a")], work_of("mask.nii.gz", "probability.nii.gz"))
    assert holds_result(tmp_path / "a", "segment")
    (tmp_path / "a" / "probability.nii.gz").unlink()
    assert not holds_result(tmp_path / "a", "segment")
