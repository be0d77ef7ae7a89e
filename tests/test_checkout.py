"""A checkout knows its commit; a package that is installed inside somebody else's repository claims none."""

import shutil
import subprocess
from pathlib import Path

import pytest

from medseg_diff import checkout

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def repository(folder):
    """A repository with a package and a project file, committed."""
    (folder / "medseg_diff").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / "medseg_diff" / "checkout.py").write_text("a = 1\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder / "medseg_diff" / "checkout.py"


def test_the_commit_and_whether_anything_was_changed_since(tmp_path, monkeypatch):
    file = repository(tmp_path)
    monkeypatch.setattr(checkout, "__file__", str(file))
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    ask = checkout.commit.__wrapped__
    assert ask() == {"commit": head.strip(), "commit_changed": False}
    file.write_text("a = 2\n")
    assert ask() == {"commit": head.strip(), "commit_changed": True}
    monkeypatch.setenv("PATH", "")
    assert ask() == {}


def test_an_installed_package_claims_nothing_of_the_repository_around_it(tmp_path, monkeypatch):
    repository(tmp_path)
    installed = tmp_path / ".venv" / "lib" / "medseg_diff" / "checkout.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(checkout, "__file__", str(Path(installed)))
    assert checkout.commit.__wrapped__() == {}
