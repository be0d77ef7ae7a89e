"""The MLflow store: one run in it, found again or opened, told every number and picture once however often it is said."""

import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.errors import EnvironmentFault
from medseg_diff.files import read_json, write_json
from medseg_diff.run import Point
from medseg_diff.settings import flat

KEY, PICTURES, TICKET = "medseg_diff.key", "images", "mlflow.json"
LONGEST_PARAMETER = 500
POINTS_AT_ONCE = 1000  # MLflow's limit for one batch
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
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{LOCAL}{(store / 'mlflow.db').absolute()}"


def make_client(store: Path) -> Any:
    """A client of the store, with short waits; the local database is made where there is none."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for library in ("mlflow", "alembic"):  # they set their own levels when imported
        logging.getLogger(library).setLevel(logging.WARNING)
    if address(store).startswith(LOCAL):
        store.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=address(store))


@contextmanager
def answering() -> Iterator[None]:
    """Turn what mlflow and its transports raise into a fault of ours; our own errors pass. Raises: EnvironmentFault."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, ConnectionError) as error:
        raise EnvironmentFault(
            f"MLflow does not answer ({type(error).__name__})",
            fix="start the server, or unset MLFLOW_TRACKING_URI to use the store below runs/",
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


class Entry:
    """One run in MLflow. What stands there already, by key and step, is not sent again."""

    def __init__(self, client: Any, run_id: str, *, known: bool) -> None:
        self.client, self.run_id = client, run_id
        self._known = known  # only a run that was there before can hold what we are about to send
        self._steps: dict[str, set[int]] = {}
        self._pictures: set[tuple[str, int]] | None = None

    def points(self, points: Iterable[Point], *, at_ms: int | None = None) -> int:
        """Send the numbers that are new; returns how many they were."""
        from mlflow.entities import Metric

        now = at_ms or int(time.time() * 1000)
        fresh = [point for point in points if point.step not in self._steps_of(point.name)]
        for start in range(0, len(fresh), POINTS_AT_ONCE):
            batch = fresh[start : start + POINTS_AT_ONCE]
            self.client.log_batch(self.run_id, metrics=[Metric(p.name, p.value, now, p.step) for p in batch])
            for point in batch:
                self._steps[point.name].add(point.step)
        return len(fresh)

    def latest(self, numbers: Mapping[str, float | None]) -> None:
        """Numbers without a step, of which the newest counts; sent where they differ from what stands there."""
        from mlflow.entities import Metric

        there = self.client.get_run(self.run_id).data.metrics
        now = int(time.time() * 1000)
        fresh = {name: float(value) for name, value in numbers.items() if value is not None}
        listed = [Metric(name, value, now, 0) for name, value in fresh.items() if there.get(name) != value]
        if listed:
            self.client.log_batch(self.run_id, metrics=listed)

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """Settings under dotted names. MLflow never changes one: those that stand there stay."""
        from mlflow.entities import Param

        there = self.client.get_run(self.run_id).data.params if self._known else {}
        listed = {name: str(value)[:LONGEST_PARAMETER] for name, value in flat(parameters).items()}
        fresh = [Param(name, value) for name, value in listed.items() if name not in there]
        for start in range(0, len(fresh), 100):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, params=fresh[start : start + 100])

    def dataset(self, name: str, digest: str) -> None:
        """Which table of cases was used."""
        from mlflow.entities import Dataset, DatasetInput

        dataset = Dataset(name=name, digest=digest[:36], source_type="manifest", source=name)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset=dataset, tags=[])])

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file as an artifact, in the place of one of the same name."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def picture(self, path: Path, *, key: str, step: int) -> bool:
        """A PNG as one step of a series, which the page shows with a slider; returns whether it was new."""
        from PIL import Image

        if self._pictures is None:
            self._pictures = set(self._listed_pictures()) if self._known else set()
        if (key, step) in self._pictures:
            return False
        with Image.open(path) as image:
            self.client.log_image(self.run_id, image.convert("RGB"), key=key, step=step)
        self._pictures.add((key, step))
        return True

    def table(self, rows: Mapping[str, list[Any]], name: str) -> None:
        """A table of columns of one length, as the artifact `name` (.json), in the place of an older one."""
        there = [file.path for file in self.client.list_artifacts(self.run_id)]
        if name in there:  # log_table would append
            lines = [list(line) for line in zip(*rows.values(), strict=True)]
            self.client.log_dict(self.run_id, {"columns": list(rows), "data": lines}, name)
        else:
            self.client.log_table(self.run_id, dict(rows), name)

    def end(self, status: str, *, at_ms: int | None = None) -> None:
        """FINISHED, FAILED, KILLED or RUNNING."""
        self.client.set_terminated(self.run_id, status, at_ms)

    def _steps_of(self, name: str) -> set[int]:
        if name not in self._steps:
            history = self.client.get_metric_history(self.run_id, name) if self._known else []
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]

    def _listed_pictures(self) -> Iterable[tuple[str, int]]:
        for file in self.client.list_artifacts(self.run_id, PICTURES):
            found = re.match(r"(.+)[+%]step[+%](\d+)[+%]timestamp", Path(file.path).name)
            if found:
                yield found[1].replace("~", "/"), int(found[2])


def open_entry(
    client: Any,
    store: Path,
    *,
    experiment: str,
    name: str,
    ticket: Ticket,
    tags: Mapping[str, str],
    started_ms: int | None = None,
) -> Entry:
    """The run of this ticket: by its id, else by its key, else a new one (below its parent, where it has one)."""
    number = _experiment(client, store, experiment)
    there = _by_id(client, ticket.run_id) or _by_key(client, number, ticket.key)
    if there:
        client.update_run(there, status="RUNNING")
        return Entry(client, there, known=True)
    labels = dict(tags) | {KEY: ticket.key}
    if ticket.parent:
        labels["mlflow.parentRunId"] = _parent(client, number, ticket.parent)
    made = client.create_run(number, start_time=started_ms, run_name=name, tags=labels)
    return Entry(client, made.info.run_id, known=False)


def _experiment(client: Any, store: Path, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    local = {"artifact_location": (store / "mlflow").absolute().as_uri()} if address(store).startswith(LOCAL) else {}
    return str(client.create_experiment(name, **local))


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


def _parent(client: Any, experiment: str, name: str) -> str:
    """The run that a study's runs hang below; it holds nothing itself, so it is finished at once."""
    there = _by_key(client, experiment, name)
    if there:
        return there
    made = str(client.create_run(experiment, run_name=name, tags={KEY: name}).info.run_id)
    client.set_terminated(made, "FINISHED")
    return made
