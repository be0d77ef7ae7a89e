"""The MLflow store: where it is, and one run in it, found again or opened."""

import logging
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.errors import EnvironmentFault
from medseg_diff.files import read_json, write_json
from medseg_diff.tracking.entry import Entry
from medseg_diff.tracking.local import DATABASE, files_of, settle

KEY, TICKET = "medseg_diff.key", "mlflow.json"
OF_EXPERIMENTS = {"mlflow.experimentKind": "custom_model_development"}  # else the pages for prompts come first
LOCAL = "sqlite:///"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


class Ticket(NamedTuple):
    """Who a run folder is in MLflow: its own random key, and the id that MLflow gave it, once known."""

    key: str
    run_id: str | None = None
    parent: str | None = None


def address(store: Path) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, where set, else the database in the folder of runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{LOCAL}{(store / DATABASE).absolute()}"


def make_client(store: Path) -> Any:
    """A client of the store, with short waits; the local database is made where there is none."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for library in ("mlflow", "alembic"):  # they set their own levels when imported
        logging.getLogger(library).setLevel(logging.WARNING)
    if address(store).startswith(LOCAL):
        store.mkdir(parents=True, exist_ok=True)
        if settle(store):
            logging.getLogger("medseg_diff").info("%s: MLflow now uses the files beside it", store.name)
        _forget_places()
    return MlflowClient(tracking_uri=address(store))


def _forget_places() -> None:
    """MLflow remembers in its process where a run's files lie, by the run's id: of a copy that would be the original."""
    from mlflow.tracking._tracking_service import utils

    getattr(utils, "_artifact_repos_cache", {}).clear()


@contextmanager
def answering() -> Iterator[None]:
    """Turn what mlflow and its transports raise into a fault of ours; our own errors pass. Raises: EnvironmentFault."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, ConnectionError, sqlite3.Error) as error:
        raise EnvironmentFault(
            f"MLflow does not answer ({type(error).__name__})",
            fix="start the server, or unset MLFLOW_TRACKING_URI to use the store under runs/",
        ) from error


def ticket_of(folder: Path, *, parent: str | None = None) -> Ticket:
    """The ticket in a run folder; a new one is written where there is none, or where the parent is news."""
    found = read_ticket(folder)
    ticket = found._replace(parent=found.parent or parent) if found else Ticket(uuid.uuid4().hex, parent=parent)
    if ticket != found:
        write_ticket(folder, ticket)
    return ticket


def read_ticket(folder: Path) -> Ticket | None:
    """The ticket in a run folder, or None where MLflow was never told of it."""
    try:
        found = read_json(folder / TICKET)
        return Ticket(str(found["key"]), found.get("run_id"), found.get("parent"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_ticket(folder: Path, ticket: Ticket) -> None:
    """Keep what MLflow answered. Raises: EnvironmentFault."""
    write_json(folder / TICKET, ticket._asdict())


class Name(NamedTuple):
    """What a run is called in MLflow, where, and by which words it is found; `parent` is the id of the run that it hangs
    below."""

    experiment: str
    name: str
    tags: Mapping[str, str]
    parent: str | None = None
    started_ms: int | None = None


def experiment_of(task: str) -> str:
    """MLFLOW_EXPERIMENT_NAME, where set, else one for each task that no other program's is called like."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"medseg-diff/{task}"


def open_entry(client: Any, store: Path, named: Name, ticket: Ticket) -> Entry:
    """The run of this ticket: by its id, else by its key, else a new one; its tags as they are now."""
    number = _experiment(client, store, named.experiment)
    there = _by_id(client, ticket.run_id) or _by_key(client, number, ticket.key)
    if there:
        client.update_run(there, status="RUNNING")
        entry = Entry(client, there, known=True)
        entry.tags(named.tags)
        return entry
    labels = dict(named.tags) | {KEY: ticket.key}
    labels |= {"mlflow.parentRunId": named.parent} if named.parent else {}
    made = client.create_run(number, start_time=named.started_ms, run_name=named.name, tags=labels)
    return Entry(client, made.info.run_id, known=False)


def group(client: Any, store: Path, experiment: str, name: str) -> str:
    """The id of a run that others hang below, known by its name; it holds nothing itself, so it is finished at once."""
    number = _experiment(client, store, experiment)
    there = _by_key(client, number, name)
    if there:
        return there
    made = str(client.create_run(number, run_name=name, tags={KEY: name}).info.run_id)
    client.set_terminated(made, "FINISHED")
    return made


def _experiment(client: Any, store: Path, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    local = {"artifact_location": files_of(store)} if address(store).startswith(LOCAL) else {}
    return str(client.create_experiment(name, tags=OF_EXPERIMENTS, **local))


def _by_id(client: Any, run_id: str | None) -> str | None:
    """The id itself where the store knows it; another store may have been chosen since."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run_id if found.info.lifecycle_stage == "active" else None


def _by_key(client: Any, experiment: str, key: str) -> str | None:
    found = client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else None
