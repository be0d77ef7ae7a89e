"""A run is a folder that explains itself: recipe, environment, metrics, weights with checksums, and whether it ended."""

import csv
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from medseg_diff import __version__
from medseg_diff.errors import CheckpointError, EnvironmentFault, UsageError
from medseg_diff.files import flush, read_json, sha256_of, write_json, write_text
from medseg_diff.locking import LOCK

FORMAT = 1
REPORTED = ("torch", "monai", "lightning-fabric", "nibabel", "numpy", "safetensors", "pydantic")
NO_RUNS, DEEPEST = ("cache", "mlflow"), 3  # folders below runs/ that are something else; how far runs may be nested
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
    def calibration_file(self) -> Path:
        return self.folder / "calibration.json"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def checkpoints(self, phase: str) -> Path:
        return self.folder / "checkpoints" / phase

    def weights(self, which: str) -> Path:
        return self.folder / "weights" / f"{which}.safetensors"

    @property
    def facts(self) -> dict[str, Any]:
        """What the run says of itself. Raises: CheckpointError where the folder is no run."""
        try:
            facts = read_json(self.folder / "run.json")
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
        odd = [name for name in ("task", "recipe") if not isinstance(facts.get(name), str)]
        if odd:
            raise CheckpointError(
                f"has a run.json without `{odd[0]}`", fix="copy the whole run folder again", file=self.name
            )
        return dict(facts)

    @property
    def state(self) -> Literal["finished", "running", "stopped"]:
        """Running while the process that its lock names is alive on this machine. Raises: CheckpointError."""
        if self.facts.get("finished"):
            return "finished"
        try:
            os.kill(int((self.folder / LOCK).read_text()), 0)  # asks only whether it is there
        except PermissionError:
            return "running"  # another user's
        except (OSError, ValueError, OverflowError):
            return "stopped"
        return "running"

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

    def metrics_size(self) -> int:
        """Bytes of metrics.csv, all of them on the disk."""
        if not self.metrics_file.exists():
            return 0
        flush(self.metrics_file)
        return self.metrics_file.stat().st_size

    def cut_metrics(self, size: int) -> None:
        """Back to the first `size` bytes of metrics.csv. Raises: CheckpointError where it has fewer."""
        found = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        if found < size:
            raise CheckpointError(
                "is shorter than the checkpoint says",
                fix="copy the whole run folder again",
                file=f"{self.name}/metrics.csv",
            )
        if found:
            os.truncate(self.metrics_file, size)

    def seal(self) -> None:
        """Write SHA256SUMS over recipe, weights and calibration, in the format of sha256sum."""
        measured = [path for path in (self.calibration_file,) if path.is_file()]
        paths = [self.recipe_file, *sorted((self.folder / "weights").glob("*.safetensors")), *measured]
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
        except (OSError, ValueError):
            raise CheckpointError(
                "has no SHA256SUMS", fix="copy the whole run folder; an unfinished run has none", file=self.name
            ) from None
        if f"{digest}  {name}" not in lines:
            raise CheckpointError(
                "differs from its checksum", fix="copy the run folder again", file=f"{self.name}/{name}"
            )
        return digest


def create_run(
    folder: Path,
    *,
    task: str,
    recipe: str,
    settings: str,
    overwrite: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """A new run folder with its recipe and environment, and `facts` in its run.json.

    Raises: UsageError where the folder already holds something; EnvironmentFault where it cannot be written.
    """
    if folder.exists() and not overwrite and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK}):
        raise UsageError(
            f"{folder.name} already exists", fix="choose another --out, go on with --resume auto, or remove it"
        )
    run = Run(folder)
    write_text(run.recipe_file, settings)
    (folder / "weights").mkdir(exist_ok=True)
    run.metrics_file.unlink(missing_ok=True)
    write_json(folder / "environment.json", environment())
    known = {"format": FORMAT, "task": task, "recipe": recipe, "finished": False}
    write_json(folder / "run.json", known | dict(facts or {}))
    return run


def find_run(model: Path | None, *, task: str, runs: Path) -> Run:
    """The run to use: the one that was named (`locate`), else the newest finished one of this task below `runs`.

    Raises: CheckpointError where that is no run of this task; UsageError where none was named and none is there.
    """
    if model is not None:
        run = locate(model, runs)
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


def locate(named: Path, runs: Path) -> Run:
    """A run by its folder, by its name below `runs` (a path where runs are nested), or by the beginning of one name only.

    Raises: CheckpointError where there is none, UsageError where the beginning fits several.
    """
    if (named / "run.json").is_file():
        return Run(named)
    known = {run.folder.relative_to(runs).as_posix(): run for run in all_runs(runs)}
    if named.as_posix() in known:
        return known[named.as_posix()]
    fitting = [name for name, run in known.items() if named.as_posix() in (run.name, name[: len(named.as_posix())])]
    if len(fitting) > 1:
        raise UsageError(
            f"`{named.as_posix()}` may be {', '.join(fitting[:5])}{' …' if len(fitting) > 5 else ''}",
            fix="write more of it",
        )
    return known[fitting[0]] if fitting else Run(named)


def all_runs(runs: Path) -> Iterator[Run]:
    """Every run below a folder, also those of studies in folders of their own; names in order."""
    folders = [(runs, 0)]
    while folders:
        folder, depth = folders.pop()
        inside = sorted(path for path in folder.glob("*/") if not path.name.startswith(".") and not path.is_symlink())
        for path in reversed(inside):
            if depth < DEEPEST and path.name not in NO_RUNS and not (path / "run.json").is_file():
                folders.append((path, depth + 1))
        for path in inside:
            run = Run(path)
            with suppress(CheckpointError):  # another program's run.json
                if (path / "run.json").is_file() and run.facts:
                    yield run


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
