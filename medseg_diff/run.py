"""A run is a folder that explains itself: recipe, environment, metrics, weights with checksums, and whether it ended."""

import csv
import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medseg_diff import __version__
from medseg_diff.errors import CheckpointError, EnvironmentFault, UsageError
from medseg_diff.files import sha256_of, write_json, write_text

FORMAT = 1
REPORTED = ("torch", "monai", "lightning-fabric", "nibabel", "numpy", "safetensors", "pydantic")
METRIC_COLUMNS = ("step", "name", "value")


@dataclass(frozen=True)
class Run:
    """One run's folder. `task` is what its recipe is for: segment, anomaly, synthesise."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def weights(self, which: str) -> Path:
        return self.folder / "weights" / f"{which}.safetensors"

    @property
    def facts(self) -> dict[str, Any]:
        """What the run says of itself. Raises: CheckpointError where the folder is no run."""
        try:
            facts = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise CheckpointError(
                "is not a run folder", fix="name a folder that train-seg wrote", file=self.name
            ) from None
        found = facts.get("format") if isinstance(facts, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"was written in format {found}, this is {FORMAT}",
                fix="use the version of medseg-diff that wrote it",
                file=self.name,
            )
        return dict(facts)

    def note(self, **facts: Any) -> None:
        """Add to what the run says of itself."""
        known = self.facts if (self.folder / "run.json").exists() else {"format": FORMAT}
        write_json(self.folder / "run.json", known | facts)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append numbers to metrics.csv, a line each."""
        try:
            with self.metrics_file.open("a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if file.tell() == 0:
                    writer.writerow(METRIC_COLUMNS)
                writer.writerows([step, name, f"{value:.6g}"] for name, value in numbers.items())
        except OSError as error:
            raise EnvironmentFault(
                f"cannot be written ({error.strerror})", fix="free disk space", file="metrics.csv"
            ) from error

    def seal(self) -> None:
        """Write SHA256SUMS over recipe and weights, in the format of sha256sum."""
        paths = [self.recipe_file, *sorted((self.folder / "weights").glob("*.safetensors"))]
        lines = [f"{sha256_of(path)}  {path.relative_to(self.folder).as_posix()}" for path in paths]
        write_text(self.folder / "SHA256SUMS", "\n".join(lines) + "\n")

    def verify(self, path: Path) -> str:
        """The file's SHA-256, after comparing it with SHA256SUMS.

        Raises: CheckpointError where it is missing or its bytes have changed.
        """
        name = path.relative_to(self.folder).as_posix()
        if not path.is_file():
            raise CheckpointError(
                "is missing", fix="train again, or copy the whole run folder", file=f"{self.name}/{name}"
            )
        digest = sha256_of(path)
        try:
            lines = (self.folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        except OSError:
            raise CheckpointError(
                "has no SHA256SUMS", fix="copy the whole run folder; an unfinished run has none", file=self.name
            ) from None
        if f"{digest}  {name}" not in lines:
            raise CheckpointError(
                "differs from its checksum", fix="copy the run folder again", file=f"{self.name}/{name}"
            )
        return digest


def create_run(folder: Path, *, task: str, recipe: str, settings: str, overwrite: bool = False) -> Run:
    """A new run folder with its recipe and environment.

    Raises: UsageError where the folder already holds something.
    """
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{folder.name} already exists", fix="choose another --out, or remove it")
    run = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").mkdir(exist_ok=True)
    run.metrics_file.unlink(missing_ok=True)
    write_text(run.recipe_file, settings)
    write_json(folder / "environment.json", environment())
    write_json(folder / "run.json", {"format": FORMAT, "task": task, "recipe": recipe, "finished": False})
    return run


def find_run(model: Path | None, *, task: str, runs: Path) -> Run:
    """The run to use: the folder that was named, else the newest finished one of this task below `runs`.

    Raises: CheckpointError where the folder is no run of this task; UsageError where none was named and none is there.
    """
    if model is not None:
        run = Run(model)
        if run.facts.get("task") != task:
            raise CheckpointError(
                f"is a run for `{run.facts.get('task')}`, not `{task}`", fix="name another --model", file=run.name
            )
        return run
    found = [run for run in finished_runs(runs) if run.facts.get("task") == task]
    if not found:
        raise UsageError(
            f"no finished run for `{task}` below {runs.name}/",
            fix="train one (medseg-diff train-seg --data cases.csv) or name it with --model",
        )
    return max(found, key=lambda run: run.facts.get("ended", 0))


def finished_runs(runs: Path) -> Iterable[Run]:
    """Every finished run below a folder."""
    for path in sorted(runs.glob("*/run.json")):
        run = Run(path.parent)
        try:
            if run.facts.get("finished"):
                yield run
        except CheckpointError:
            continue  # another program's run.json


def new_name(recipe: str) -> str:
    """A name for a run folder: when and what."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe}"


def environment() -> dict[str, Any]:
    """Versions and machine, without any name of host, user or path."""
    versions = {}
    for package in REPORTED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "medseg_diff": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": versions,
    }
