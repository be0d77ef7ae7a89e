"""What `tune` measured of a model: tuned.json in its folder, with the steps and members that `segment` then draws.

It is not among the run's SHA256SUMS, which would be two files to change at once, but holds its own digest and those of
the weights and the recipe that it was measured with.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from medseg_diff.errors import CheckpointError, MedsegError
from medseg_diff.files import read_json, write_json
from medseg_diff.settings import Settings, parse_settings
from medseg_diff.studies import FoundModel, study_of

TUNED, SCHEMA = "tuned.json", 1
METRICS = {"dice": 1, "ged2": -1, "ece_band": -1}  # 1: the higher the better
AGAIN = "run `medseg-diff tune` again, or remove the file"


class Allowed(Settings):
    """How much worse than the best of all settings the chosen one may be in each metric."""

    dice: float = Field(ge=0, le=1)
    ged2: float = Field(ge=0, le=1)
    ece_band: float = Field(ge=0, le=1)


class MeasuredSetting(Settings):
    """One setting: `members` are of each model, `seconds` the median of a case, sampling alone; `values` by region and
    metric, means over the cases; `lost` by metric, against the best, of the region that loses most. None where
    undefined. `unpromised`: in words, why what the model promises would not hold of such samples."""

    steps: int = Field(ge=1)
    members: int = Field(ge=1)
    seconds: float = Field(ge=0)
    values: dict[str, dict[str, float | None]]
    lost: dict[str, float | None] = Field(default_factory=dict)
    unpromised: str = ""

    @property
    def cost(self) -> int:
        """Network evaluations of a slice (a tile), and a model."""
        return self.steps * self.members

    def mean(self, metric: str) -> float | None:
        """Over the regions; None where it is undefined in one of them."""
        known = [values[metric] for values in self.values.values()]
        numbers = [value for value in known if value is not None]
        return sum(numbers) / len(numbers) if numbers and len(numbers) == len(known) else None

    def is_within(self, allowed: Allowed) -> bool:
        """Whether it loses no more than that, of what is defined at all."""
        limits = {name: getattr(allowed, name) for name in self.lost}
        return all((lost := self.lost[name]) is not None and lost <= limit for name, limit in limits.items())


class TunedOn(Settings):
    """The cases, and how many of their patients some run of the model has learned from; None where that cannot be told.
    `digest` is of their rows in the table and of their files."""

    table: str
    digest: str
    split: str
    resample_to: str | None = None
    cases: int = Field(ge=1)
    patients: int = Field(ge=1)
    trained_on: int | None = None


class Tuned(Settings):
    """`weights` are the digests of the runs' best weights. `steps` and `members` are the chosen ones, None where no
    setting is within what is allowed."""

    weights: tuple[str, ...]
    recipe_sha256: str
    data: TunedOn
    seed: int
    network_batch: int
    device: str
    precision: str
    versions: dict[str, str]
    allowed: Allowed
    table: tuple[MeasuredSetting, ...] = ()
    steps: int | None = None
    members: int | None = None

    def measured_like(self, other: "Tuned") -> bool:
        """Whether a setting measured for the one holds for the other, whatever they allow and whichever they tried."""
        asked = {"allowed", "table", "steps", "members"}
        return self.model_dump(exclude=asked) == other.model_dump(exclude=asked)

    @property
    def chosen(self) -> MeasuredSetting | None:
        return self.of(self.steps or 0, self.members or 0)

    def of(self, steps: int, members: int) -> MeasuredSetting | None:
        """A setting of the table."""
        return next((row for row in self.table if (row.steps, row.members) == (steps, members)), None)

    @property
    def sha256(self) -> str:
        """Digest of all that it says."""
        return _digest(self.model_dump(mode="json"))

    def was_measured_with(self, weights: Sequence[str], recipe_sha256: str) -> bool:
        return (self.weights, self.recipe_sha256) == (tuple(weights), recipe_sha256)


def with_losses(table: Sequence[MeasuredSetting]) -> list[MeasuredSetting]:
    """The same rows with what each loses against the best of those that keep what is promised, of the region that loses
    most; without the metrics that are defined nowhere."""

    def best(name: str, region: str) -> float | None:
        known = [row.values[region][name] for row in table if not row.unpromised]
        numbers = [value for value in known if value is not None]
        return (max if METRICS[name] > 0 else min)(numbers, default=None)

    goals = {name: {region: best(name, region) for region in table[0].values} for name in METRICS}

    def lost(row: MeasuredSetting, name: str) -> float | None:
        pairs = [(goal, row.values[region][name]) for region, goal in goals[name].items() if goal is not None]
        losses = [METRICS[name] * (goal - own) for goal, own in pairs if own is not None]
        return round(max(losses), 6) + 0.0 if len(losses) == len(pairs) else None

    defined = [name for name, goal in goals.items() if any(value is not None for value in goal.values())]
    return [row.but(lost={name: lost(row, name) for name in defined}) for row in table]


def cheapest(table: Sequence[MeasuredSetting], allowed: Allowed, *, promised: bool = True) -> MeasuredSetting | None:
    """The row with the fewest network evaluations that loses no more than is allowed and, where that is wanted, keeps
    what is promised; of several that which loses least. None where there is none."""
    good = [row for row in table if row.is_within(allowed) and not (promised and row.unpromised)]
    return min(good, key=lambda row: (row.cost, *row.lost.values(), row.steps), default=None)


def nearest(table: Sequence[MeasuredSetting], allowed: Allowed) -> MeasuredSetting | None:
    """The row whose losses are the smallest multiple of what is allowed; None where each lacks a number."""

    def multiple(row: MeasuredSetting) -> float:
        return max((row.lost[name] or 0.0) / max(getattr(allowed, name), 1e-6) for name in row.lost)

    known = [row for row in table if not row.unpromised and None not in row.lost.values()]
    return min(known, key=lambda row: (multiple(row), row.cost), default=None)


def folder_of(found: FoundModel) -> Path:
    """Where a model's tuned.json lies: in its run, or its study."""
    run, *others = found.runs
    study = study_of(run) if others else None
    return study.folder if study else run.folder


def write_tuned(folder: Path, tuned: Tuned) -> None:
    """Whole or not at all. Raises: EnvironmentFault."""
    write_json(folder / TUNED, {"schema": SCHEMA, "sha256": tuned.sha256, **tuned.model_dump(mode="json")})


def read_tuned(folder: Path) -> Tuned | None:
    """What was measured of the model in this folder; None where nothing was.

    Raises: CheckpointError where the file is not what was written.
    """
    path, file = folder / TUNED, f"{folder.name}/{TUNED}"
    if not path.is_file():
        return None
    try:
        data = read_json(path)
    except (OSError, ValueError):
        raise CheckpointError("is not readable JSON", fix=AGAIN, file=file) from None
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise CheckpointError(f"is not of schema {SCHEMA}", fix=AGAIN, file=file)
    if data.pop("sha256", None) != _digest(data):
        raise CheckpointError("has changed since it was measured: its digest differs", fix=AGAIN, file=file)
    try:
        return parse_settings(Tuned, data, source=file)
    except MedsegError:
        raise CheckpointError("was written by another version of medseg-diff", fix=AGAIN, file=file) from None


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
