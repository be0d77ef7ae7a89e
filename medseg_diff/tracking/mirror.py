"""The running training's line to MLflow: fed from a thread, so that a store which fails or hangs delays nothing."""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg_diff.run import Run
from medseg_diff.tracking.store import (
    LOCAL,
    Entry,
    Point,
    Ticket,
    address,
    make_client,
    open_entry,
    ticket_of,
    write_ticket,
)
from medseg_diff.tracking.sync import complete, strip_key

log = logging.getLogger("medseg_diff")

PATIENCE_SECONDS = 4.0  # for one answer of a server, when the training is over; mlflow itself gives up after 2
LOCAL_PATIENCE_SECONDS = 60.0  # a database on this machine is slow at worst
BREATH_SECONDS = 0.02
REST_SECONDS = 30.0  # a store that failed is not asked again before


class Mirror:
    """One MLflow run. Every call returns at once; the first failure is said once and the rest is dropped."""

    def __init__(
        self,
        store: Path,
        *,
        experiment: str,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        folder: Path | None = None,
        run_id: str | None = None,
        parent: str | None = None,
    ) -> None:
        """`store` is the folder of runs; MLFLOW_TRACKING_URI, where set, wins over the database in it.

        `folder`, the run's own, keeps a ticket (mlflow.json), so that a later Mirror of it, or `runs sync`, goes on with
        the same MLflow run. `run_id` names that run directly. `parent` is the name of a study: its runs hang below one.
        """
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._store, self._name, self._folder = store, name, folder
        self._broken_at: float | None = None
        self._asked: float | None = None  # since when the store owes an answer
        self._patience = LOCAL_PATIENCE_SECONDS if address(store).startswith(LOCAL) else PATIENCE_SECONDS
        self._entry: Entry | None = None
        ticket = ticket_of(folder, parent=parent) if folder else Ticket(uuid.uuid4().hex, parent=parent)
        ticket = ticket._replace(run_id=run_id or ticket.run_id)
        self._jobs.put(_import_mlflow)
        self._jobs.put(lambda: self._open(store, experiment, ticket, dict(parameters), dict(tags)))
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once the store has answered."""
        return self._entry.run_id if self._entry else None

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one step."""
        points, now = [Point(step, name, value) for name, value in numbers.items()], int(time.time() * 1000)
        self._tell(lambda entry: entry.points(points, at_ms=now))

    def dataset(self, name: str, digest: str) -> None:
        """Which table of cases was used."""
        self._tell(lambda entry: entry.dataset(name, digest))

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file of the run folder, as an artifact."""
        self._tell(lambda entry: entry.file(path, folder))

    def strip(self, path: Path) -> None:
        """A film strip, named by `strip_path`, as one step of its series, which MLflow shows with a slider."""
        key, step = strip_key(path)
        self._tell(lambda entry: entry.picture(path, key=key, step=step))

    def close(self, *, finished: bool) -> None:
        """Send what is left, waiting a few seconds at most for any one answer."""
        self._tell(lambda entry: entry.end("FINISHED" if finished else "FAILED"))
        self._jobs.put(self._make_up)
        self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(BREATH_SECONDS)
            asked = self._asked
            if asked is not None and time.monotonic() - asked > self._patience:
                log.warning("MLflow did not answer in time; the run folder holds everything%s", self._remedy)
                return

    @property
    def _remedy(self) -> str:
        return f" (later: medseg-diff runs sync {self._name})" if self._folder else ""

    def _tell(self, job: Callable[[Entry], object]) -> None:
        def send() -> None:
            assert self._entry is not None, "a mirror is opened before it is told anything"
            job(self._entry)

        self._jobs.put(send)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._broken_at is not None and job != self._make_up:
                continue
            self._asked = None if job is _import_mlflow else time.monotonic()
            try:
                job()
            except Exception as error:  # a mirror may fail in any way its libraries know, and must not stop a training
                self._broken_at = time.monotonic()
                log.warning("MLflow is not reachable (%s); going on without it%s", type(error).__name__, self._remedy)
            self._asked = None

    def _make_up(self) -> None:
        """A store that failed long ago may be there again: then the folder tells it everything."""
        if self._broken_at is None or self._folder is None or time.monotonic() - self._broken_at < REST_SECONDS:
            return
        complete(Run(self._folder), self._store)
        log.info("MLflow is there again and complete")

    def _open(
        self, store: Path, experiment: str, ticket: Ticket, parameters: dict[str, Any], tags: dict[str, str]
    ) -> None:
        self._entry = open_entry(
            make_client(store), store, experiment=experiment, name=self._name, ticket=ticket, tags=tags
        )
        if self._folder:
            write_ticket(self._folder, ticket._replace(run_id=self._entry.run_id))
        self._entry.parameters(parameters)


def _import_mlflow() -> None:
    """Seconds of loading that say nothing about the store."""
    import mlflow.tracking  # noqa: F401
