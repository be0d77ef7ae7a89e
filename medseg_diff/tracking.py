"""What a run tells MLflow. Local files are the truth; MLflow is a mirror, fed from a thread, that may fail."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("medseg_diff")

PATIENCE_SECONDS = 20.0
LONGEST_PARAMETER = 500
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class Mirror:
    """One MLflow run. Every call returns at once; the first failure is said once and the rest is dropped."""

    def __init__(
        self, store: Path, *, experiment: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> None:
        """`store` is the folder of runs; MLFLOW_TRACKING_URI, where set, wins over the database in it."""
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._broken = False
        self._client: Any = None
        self._run: str = ""
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(store / 'mlflow.db').absolute()}"
        self._jobs.put(lambda: self._open(uri, store, experiment, name, dict(parameters), dict(tags)))
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one step."""
        kept, now = dict(numbers), int(time.time() * 1000)

        def send() -> None:
            from mlflow.entities import Metric

            self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in kept.items()])

        self._jobs.put(send)

    def dataset(self, name: str, digest: str) -> None:
        """Which table of cases was used."""

        def send() -> None:
            from mlflow.entities import Dataset, DatasetInput

            dataset = Dataset(name=name, digest=digest[:36], source_type="manifest", source=name)
            self._client.log_inputs(self._run, [DatasetInput(dataset=dataset, tags=[])])

        self._jobs.put(send)

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file of the run folder, as an artifact."""
        self._jobs.put(lambda: self._client.log_artifact(self._run, str(path), folder))

    def close(self, *, finished: bool) -> None:
        """Send what is left, for a few seconds at most."""
        self._jobs.put(lambda: self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED"))
        self._jobs.put(None)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            log.warning("MLflow did not answer in time; the run folder holds everything")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._broken:
                continue
            try:
                job()
            except Exception as error:  # a mirror may fail in any way its libraries know, and must not stop a training
                self._broken = True
                log.warning("MLflow is not reachable (%s); going on without it", type(error).__name__)

    def _open(
        self, uri: str, store: Path, experiment: str, name: str, parameters: dict[str, Any], tags: dict[str, str]
    ) -> None:
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for library in ("mlflow", "alembic"):  # they set their own levels when imported
            logging.getLogger(library).setLevel(logging.WARNING)

        store.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        local = {"artifact_location": (store / "mlflow").absolute().as_uri()} if uri.startswith("sqlite") else {}
        number = found.experiment_id if found else self._client.create_experiment(experiment, **local)
        self._run = self._client.create_run(number, run_name=name, tags=tags).info.run_id
        listed = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in flat(parameters).items()]
        self._client.log_batch(self._run, params=listed)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out
