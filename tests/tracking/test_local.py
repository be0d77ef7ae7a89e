"""A folder of runs that was copied is a store of its own: nothing of it is written or read where it came from."""

import shutil
import sqlite3

import pytest

from medseg_diff.tracking import attach_evaluation, complete
from medseg_diff.tracking.local import settle
from medseg_diff.tracking.registry import fetch, register
from medseg_diff.tracking.store import make_client, read_ticket


@pytest.fixture
def copied(runs, make_run, tmp_path):
    """A run that MLflow knows and that is registered, in a copy of the folder of runs."""
    run = make_run("copied")
    register(run, runs, name="copied")
    copy = tmp_path / "elsewhere" / "runs"
    shutil.copytree(runs, copy)
    return type(run)(copy / run.name), copy


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_copy_keeps_its_files_beside_itself(copied, runs, evaluated):
    run, copy = copied
    before = files_below(runs)
    assert attach_evaluation(run, *evaluated(0.7), store=copy)
    client, run_id = make_client(copy), read_ticket(run.folder).run_id
    assert client.get_run(run_id).info.artifact_uri == f"{(copy / 'mlflow').as_uri()}/{run_id}/artifacts"
    assert (copy / "mlflow" / run_id / "artifacts" / "evaluations" / "cases-test" / "metrics.json").is_file()
    assert complete(run, copy).run_id == run_id
    assert fetch("models:/copied/1", copy).folder.is_relative_to(copy)
    assert files_below(runs) == before
    assert make_client(runs).get_run(run_id).data.metrics.get("test/dice") is None


def test_a_store_that_stays_is_left_alone(runs, make_run, tmp_path):
    complete(make_run("stays"), runs)
    database = (runs / "mlflow.db").read_bytes()
    assert not settle(runs) and (runs / "mlflow.db").read_bytes() == database
    (tmp_path / "link").symlink_to(runs)
    assert not settle(tmp_path / "link")  # the same folder by another path


def test_folders_that_somebody_else_chose_are_left_alone(copied):
    _, copy = copied
    with sqlite3.connect(copy / "mlflow.db") as opened:
        opened.execute("INSERT INTO experiments VALUES (99, 'own', 'file:///somewhere/own', 'active', 0, 0, 'default')")
    assert settle(copy)
    with sqlite3.connect(copy / "mlflow.db") as opened:
        places = {place for (place,) in opened.execute("SELECT artifact_location FROM experiments")}
    assert {"file:///somewhere/own", (copy / "mlflow").as_uri()} <= places


def test_what_is_no_database_yet_is_none_to_settle(tmp_path):
    assert not settle(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert not settle(tmp_path)
    sqlite3.connect(tmp_path / "mlflow.db").executescript("CREATE TABLE other (a)")
    assert not settle(tmp_path)
