"""The running training's line to MLflow: fed from a thread, so that a store which fails or hangs delays nothing."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from medseg_diff.run import Point, Run, TrajectoryPicture
from medseg_diff.tracking.about import TRAJECTORY
from medseg_diff.tracking.names import grouped, rounded
from medseg_diff.tracking.store import LOCAL, address, ticket_of
from medseg_diff.tracking.sync import complete, describe, entry_of, files_to_show, send_measured
from medseg_diff.tracking.system import SystemLoad

log = logging.getLogger("medseg_diff")

PATIENCE_SECONDS = 4.0  # for one answer of a server, when the training is over; mlflow itself gives up after 2
LOCAL_PATIENCE_SECONDS = 60.0  # a database on this machine is slow at worst
BREATH_SECONDS = 0.02
REST_SECONDS = 30.0  # a store that failed is not asked again before


class Mirror:
    """A watcher that tells MLflow. Every call returns at once; the first failure is said once and the rest is dropped."""

    def __init__(self, store: Path, *, parent: str | None = None) -> None:
        """`store` is the folder of runs; MLFLOW_TRACKING_URI, where set, wins over the database in it. `parent` is the
        name of a study: its runs hang below one."""
        self._store, self._parent = store, parent
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._broken_at: float | None = None
        self._asked: float | None = None  # since when the store owes an answer
        self._patience = LOCAL_PATIENCE_SECONDS if address(store).startswith(LOCAL) else PATIENCE_SECONDS

    def begin(self, run: Run) -> None:
        """The run's folder keeps a ticket (mlflow.json), so that a later Mirror of it, or `runs sync`, goes on with the
        same run in MLflow."""
        self._run, self._load = run, SystemLoad()
        ticket_of(run.folder, parent=self._parent)
        self._jobs.put(_import_mlflow)
        self._jobs.put(self._open)
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        points = [Point(step, grouped(name), rounded(value)) for name, value in numbers.items()]
        if load := self._load.read(step):
            self._run.log(step, load, file=self._run.system_file)
            points += [Point(step, name, rounded(value)) for name, value in load.items()]
        now = int(time.time() * 1000)
        self._jobs.put(lambda: self._entry.points(points, at_ms=now))

    def trajectory(self, picture: TrajectoryPicture) -> None:
        """One step of its series, which MLflow shows with a slider; the newest stands in the description too."""
        self._jobs.put(lambda: self._entry.picture(picture.path, key=picture.series, step=picture.step))
        self._jobs.put(lambda: self._entry.preview(picture.path, TRAJECTORY))
        self._jobs.put(lambda: describe(self._run, self._entry))

    def end(self, run: Run, *, finished: bool, weights: Sequence[Path]) -> None:
        """Send what is left, waiting a few seconds at most for any one answer."""
        for path in (*files_to_show(run), *weights) if finished else ():
            self._jobs.put(partial(self._send, path))
        self._jobs.put(lambda: send_measured(run, self._entry))
        self._jobs.put(lambda: self._entry.end("FINISHED" if finished else "FAILED"))
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
        return f" (later: medseg-diff runs sync {self._run.name})"

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._broken_at is not None and job != self._make_up:
                continue
            self._asked = None if job is _import_mlflow else time.monotonic()
            try:
                job()
            except Exception as error:  # a mirror may fail in any way its libraries know, and must not stop a training
                self._broken_at = time.monotonic()
                log.warning("MLflow is not reachable (%s); continuing without it%s", type(error).__name__, self._remedy)
            self._asked = None

    def _make_up(self) -> None:
        """A store that failed long ago may be there again: then the folder tells it everything."""
        if self._broken_at is None or time.monotonic() - self._broken_at < REST_SECONDS:
            return
        complete(self._run, self._store)
        log.info("MLflow is reachable again and complete")

    def _open(self) -> None:
        self._entry = entry_of(self._run, self._store)
        self._send(self._run.recipe_file)
        describe(self._run, self._entry)

    def _send(self, path: Path) -> None:
        self._entry.file(path)


def _import_mlflow() -> None:
    """Seconds of loading that say nothing about the store."""
    import mlflow.tracking  # noqa: F401
