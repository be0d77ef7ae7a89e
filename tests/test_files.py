"""A file is whole or absent."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from medseg_diff.errors import EnvironmentFault
from medseg_diff.files import check_room, clean, sha256_of, whole_file, write_bytes, write_json, write_table, write_text

FULL = Path("/dev/full")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_is_there_when_done_and_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "grün\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "grün\n".encode()
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert (tmp_path / "a.txt").read_text() == "old"
        raise RuntimeError
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_the_temporary_name_keeps_the_suffixes_and_is_hidden(tmp_path):
    with whole_file(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.startswith(".") and temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
        temporary.touch()


def test_what_cannot_be_written_is_the_environments_fault(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match=r"^b.txt: cannot be written") as caught:
        write_text(tmp_path / "file" / "b.txt", "x")
    assert str(tmp_path) not in caught.value.line and caught.value.exit_code == 5


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full to stand for a full disk")
def test_a_full_disk_is_the_environments_fault(tmp_path):
    with pytest.raises(EnvironmentFault, match="No space left"), whole_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        FULL.write_bytes(b"x")
    assert names(tmp_path) == []


def test_json_is_strict_and_readable(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, "ü"]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": [\n    1,\n    "ü"\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"b": float("nan")})
    assert names(tmp_path) == ["a.json"]


def test_a_table_quotes_what_needs_it_and_leaves_none_empty(tmp_path):
    write_table(tmp_path / "a.csv", ["x", "y"], [[1, None], ["a,b", 0.5]])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n1,\n"a,b",0.5\n'


def test_the_digest_is_sha256(tmp_path):
    write_bytes(tmp_path / "a", b"abc" * 10**6)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "weights").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = (f".{ended.pid}.best.safetensors", f"weights/.{ended.pid}.a", f".{os.getpid()}.b", ".tmpkzol8A")
    kept = {".lock", ".hidden", "run.json", "weights/a", ".12", f".{os.getppid()}.another_writes"}
    for name in (*stale, *kept):
        (tmp_path / name).write_text("x")
    clean(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_with_a_name_only_what_was_to_become_that_is_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in ("a", "b.a"):
        (tmp_path / f".{ended.pid}.{name}" / "new").mkdir(parents=True)
    (tmp_path / f".{os.getppid()}.a").mkdir()
    clean(tmp_path, "a")
    assert names(tmp_path) == sorted([f".{ended.pid}.b.a", f".{os.getppid()}.a"])


def test_the_room_on_a_disk_is_asked_for(tmp_path):
    check_room(tmp_path, 1)
    with pytest.raises(EnvironmentFault, match=r"GB are free where this run needs about 1000000000.00") as caught:
        check_room(tmp_path, 10**18)
    assert caught.value.exit_code == 5 and str(tmp_path) not in caught.value.line
