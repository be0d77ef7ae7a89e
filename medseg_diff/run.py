"""A run is a folder that explains itself: recipe, environment, metrics, weights with checksums, and whether it ended."""

import itertools
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medseg_diff import __version__
from medseg_diff.checkout import commit
from medseg_diff.errors import CheckpointError, UsageError, unwritable
from medseg_diff.files import flush, read_json, sha256_of, write_json, write_text
from medseg_diff.locking import LOCK, holder

FORMAT = 1
REPORTED = ("torch", "monai", "lightning-fabric", "nibabel", "numpy", "safetensors", "pydantic")
TRAJECTORIES = "trajectories"


class TrajectoryPicture(NamedTuple):
    """A denoising trajectory: its file, `trajectories/SERIES` and the step that it was drawn at."""

    path: Path
    series: str
    step: int


PICTURE = re.compile(r"([^.].*)-(\d{1,12})\.png")  # of a trajectory; a name with a dot in front is not yet written
SUMS, SUMS_LINE = "SHA256SUMS", re.compile(r"([0-9a-f]{64})  (?!/)(\S+)")
LAST_MOMENT = 4e10  # seconds since 1970; beyond it no calendar need go
METRIC_HEADER = "step,name,value\n"
METRIC_LINE = re.compile(r"(\d{1,12}),([\w./: -]+),(-?\d+\.?\d*(?:e[-+]\d{1,2})?)\r?\n")


class Point(NamedTuple):
    """One number of one step."""

    step: int
    name: str
    value: float


@dataclass(frozen=True)
class Run:
    """One run's folder. `task` is what its recipe is for: segment, anomaly, synthesise."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.absolute().name  # also of `.`

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def system_file(self) -> Path:
        return self.folder / "system.csv"

    @property
    def calibration_file(self) -> Path:
        return self.folder / "calibration.json"

    @property
    def typicality_file(self) -> Path:
        return self.folder / "typicality.json"

    @property
    def covariates_file(self) -> Path:
        return self.folder / "covariates.json"

    @property
    def figures(self) -> Path:
        return self.folder / "figures"

    def trajectory(self, series: str, step: int) -> TrajectoryPicture:
        """The denoising trajectory of a step."""
        return TrajectoryPicture(
            self.figures / TRAJECTORIES / f"{series}-{step:07d}.png", f"{TRAJECTORIES}/{series}", step
        )

    @property
    def trajectories(self) -> list[TrajectoryPicture]:
        """Every denoising trajectory that there is."""
        drawn = [PICTURE.fullmatch(path.name) for path in sorted((self.figures / TRAJECTORIES).glob("*-*.png"))]
        return [self.trajectory(found[1], int(found[2])) for found in drawn if found]

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
                "is not a run folder", fix="name one of those that `medseg-diff runs list` shows", file=self.name
            ) from None
        found = facts.get("format") if isinstance(facts, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"was written in format {found}, this version reads {FORMAT}",
                fix="use the version of medseg-diff that wrote it",
                file=self.name,
            )
        odd = [name for name in ("task", "recipe") if not isinstance(facts.get(name), str)]
        if odd:
            raise CheckpointError(
                f"has a run.json without `{odd[0]}`", fix="copy the whole run folder again", file=self.name
            )
        return dict(facts)

    def moment(self, name: str) -> float | None:
        """A time that run.json tells, `started` or `ended`, in seconds since 1970; None where it tells none."""
        told = self.facts.get(name)
        return float(told) if isinstance(told, int | float) and 0 < told < LAST_MOMENT else None

    @property
    def state(self) -> Literal["finished", "running", "stopped"]:
        """Running while the process that its lock names is alive on this machine. Raises: CheckpointError."""
        if self.facts.get("finished"):
            return "finished"
        process = holder(self.folder)
        if process is None:
            return "stopped"
        try:
            os.kill(process, 0)  # asks only whether it is there
        except PermissionError:
            return "running"  # another user's
        except (OSError, OverflowError):
            return "stopped"
        return "running"

    def note(self, **facts: Any) -> None:
        """Add to what the run says of itself."""
        known = self.facts if (self.folder / "run.json").exists() else {"format": FORMAT}
        write_json(self.folder / "run.json", known | facts)

    def log(self, step: int, numbers: Mapping[str, float], *, file: Path | None = None) -> None:
        """Append numbers to metrics.csv, or another file of its kind, a line each."""
        lines = [f"{step},{name},{value:.6g}\n" for name, value in numbers.items()]
        path = file or self.metrics_file
        try:
            with path.open("a", encoding="utf-8", newline="") as opened:
                opened.writelines(lines if opened.tell() else [METRIC_HEADER, *lines])
        except OSError as error:
            raise unwritable(error, path.name, fix="free disk space") from error

    def numbers(self, *, file: Path | None = None, last_bytes: int | None = None) -> Iterator[Point]:
        """What metrics.csv, or another file of its kind, holds (of its last bytes), without lines that are damaged or that a
        crash cut short."""
        path = file or self.metrics_file
        if not path.is_file():
            return
        with path.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - last_bytes) if last_bytes else 0)
            for line in opened:
                if found := METRIC_LINE.fullmatch(line.decode("utf-8", "replace")):
                    yield Point(int(found[1]), found[2], float(found[3]))

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
                "is shorter than its checkpoint records",
                fix="copy the whole run folder again",
                file=f"{self.name}/metrics.csv",
            )
        if found:
            os.truncate(self.metrics_file, size)

    def seal(self) -> None:
        """Write SHA256SUMS over recipe, weights and what was measured, in the format of sha256sum."""
        paths = [self.recipe_file, *sorted((self.folder / "weights").glob("*.safetensors")), *self._measured()]
        lines = [f"{sha256_of(path)}  {path.relative_to(self.folder).as_posix()}" for path in paths]
        write_text(self.folder / SUMS, "\n".join(lines) + "\n")

    def verified(self, *needed: Path) -> dict[Path, str]:
        """The SHA-256 of every file that SHA256SUMS lists; those `needed`, and what was measured, have to be among them.

        Raises: CheckpointError where a file is missing or differs, or where SHA256SUMS does or is not the run's own.
        """
        listed, found = self._listed(), {}
        for path in dict.fromkeys([*listed, *needed, *self._measured()]):
            found[path] = sha256_of(path) if path.is_file() else ""
            if found[path] != listed.get(path):
                said = "differs from its checksum" if found[path] else "is missing"
                name = f"{self.name}/{path.relative_to(self.folder).as_posix()}"
                raise CheckpointError(said, fix="copy the run folder again, or train again", file=name)
        return found

    def _measured(self) -> list[Path]:
        measured = (self.calibration_file, self.typicality_file, self.covariates_file)
        return [path for path in measured if path.is_file()]

    def _listed(self) -> dict[Path, str]:
        """What SHA256SUMS says; no name leads out of the folder. Raises: CheckpointError."""
        try:
            lines = (self.folder / SUMS).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            raise CheckpointError(
                f"has no {SUMS}", fix="copy the whole run folder; an unfinished run has none", file=self.name
            ) from None
        entries = [SUMS_LINE.fullmatch(line) for line in lines]
        if not all(entry and ".." not in Path(entry[2]).parts for entry in entries):
            raise CheckpointError(f"has an invalid {SUMS}", fix="copy the run folder again", file=self.name)
        return {self.folder / entry[2]: entry[1] for entry in entries if entry}


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
            f"{folder.name} already exists", fix="choose another --out, continue it with --resume auto, or remove it"
        )
    run = Run(folder)
    known = {"format": FORMAT, "task": task, "recipe": recipe, "finished": False}
    write_json(folder / "run.json", known | dict(facts or {}))  # first: by it a run killed while it is made is known
    write_text(run.recipe_file, settings)
    (folder / "weights").mkdir(exist_ok=True)
    run.metrics_file.unlink(missing_ok=True)
    write_json(folder / "environment.json", environment())
    return run


def new_name(recipe: str) -> str:
    """A name for a run folder: when and what."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{recipe}"


def new_folder(runs: Path, recipe: str) -> Path:
    """A folder below `runs` that was not there: of two that begin in the same second each has its own. Raises:
    EnvironmentFault where it cannot be made."""
    name, numbers = new_name(recipe), itertools.count(2)
    folder = runs / name
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = runs / f"{name}-{next(numbers)}"
        except OSError as error:
            raise unwritable(error, folder.name) from error
        else:
            return folder


def environment() -> dict[str, Any]:
    """Versions and machine, without any name of host, user or path; in a checkout also the commit."""
    versions = {}
    for package in REPORTED:
        versions[package] = "absent"
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "medseg_diff": __version__,
        **commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": versions,
    }
