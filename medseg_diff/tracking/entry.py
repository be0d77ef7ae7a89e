"""One run in MLflow, told every number, picture and file once however often it is said."""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.run import Point

PREVIEWS, PREVIEW_SIZE = "previews", (520, 700)
PICTURES, NOTE, NOTED = "images", "mlflow.note.content", "medseg_diff.description"
LONGEST_PARAMETER, LONGEST_TAG = 500, 5000
POINTS_AT_ONCE, PARAMETERS_AT_ONCE = 1000, 100  # MLflow's limits for one batch


class Sent(NamedTuple):
    """What MLflow was told of a step."""

    value: float
    at_ms: int


class Entry:
    """One run in MLflow. What stands there already, by key and step, is not sent again."""

    def __init__(self, client: Any, run_id: str, *, known: bool) -> None:
        self.client, self.run_id = client, run_id
        self._known = known  # only a run that was there before can hold what we are about to send
        self._points: dict[str, dict[int, Sent]] = {}
        self._pictures: set[tuple[str, int]] | None = None

    def points(self, points: Iterable[Point], *, at_ms: int | None = None) -> int:
        """Send the numbers that are new; returns how many they were. A step that was gone back to and measured again has
        its new number, which is then the one that counts."""
        from mlflow.entities import Metric

        now = at_ms or int(time.time() * 1000)
        fresh = []
        for point in points:
            before = self._points_of(point.name).get(point.step)
            if before is None or before.value != point.value:
                at = now if before is None else max(now, before.at_ms + 1)  # MLflow takes the newest of a step
                fresh.append(Metric(point.name, point.value, at, point.step))
        for start in range(0, len(fresh), POINTS_AT_ONCE):
            batch = fresh[start : start + POINTS_AT_ONCE]
            self.client.log_batch(self.run_id, metrics=batch)
            for sent in batch:
                self._points[sent.key][sent.step] = Sent(sent.value, sent.timestamp)
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
        listed = {name: str(value)[:LONGEST_PARAMETER] for name, value in parameters.items()}
        fresh = [Param(name, value) for name, value in listed.items() if name not in there]
        for start in range(0, len(fresh), PARAMETERS_AT_ONCE):
            self.client.log_batch(self.run_id, params=fresh[start : start + PARAMETERS_AT_ONCE])

    def tags(self, tags: Mapping[str, str]) -> None:
        """Words to find the run by; sent where they differ from what stands there."""
        from mlflow.entities import RunTag

        there = self.client.get_run(self.run_id).data.tags
        fresh = [RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items() if there.get(name) != value]
        if fresh:
            self.client.log_batch(self.run_id, tags=fresh)

    def describe(self, text: str) -> None:
        """The description at the top of the run's page; one that a person has written or changed there stays."""
        there = self.client.get_run(self.run_id).data.tags
        standing = there.get(NOTE)
        if standing in (None, "", text) or _digest(standing) == there.get(NOTED):
            self.tags({NOTE: text, NOTED: _digest(text)})

    def dataset(self, name: str, digest: str, *, cases: int | None = None) -> None:
        """Which table of cases was used."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = None if cases is None else json.dumps({"num_rows": cases})
        dataset = Dataset(name=name, digest=digest[:12], source_type="manifest", source=name, profile=profile)
        used = DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", "training")])
        self.client.log_inputs(self.run_id, [used])

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file as an artifact, in the place of one of the same name."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def preview(self, path: Path, name: str) -> None:
        """A small copy of a PNG, for the description: there a wide one pushes everything else off the page."""
        from PIL import Image

        with tempfile.TemporaryDirectory() as temporary, Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail(PREVIEW_SIZE)
            small.save(Path(temporary) / name)
            self.file(Path(temporary) / name, PREVIEWS)

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

    def _points_of(self, name: str) -> dict[int, Sent]:
        """By step, the newest of each that MLflow holds."""
        if name not in self._points:
            history = self.client.get_metric_history(self.run_id, name) if self._known else []
            listed = sorted(history, key=lambda metric: metric.timestamp)
            self._points[name] = {metric.step: Sent(metric.value, metric.timestamp) for metric in listed}
        return self._points[name]

    def _listed_pictures(self) -> Iterable[tuple[str, int]]:
        for file in self.client.list_artifacts(self.run_id, PICTURES):
            found = re.match(r"(.+)[+%]step[+%](\d+)[+%]timestamp", Path(file.path).name)
            if found:
                yield found[1].replace("~", "/"), int(found[2])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
