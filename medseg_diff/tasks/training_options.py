"""What the verbs that train share: the recipe, the run folder, and the folds; options, as in `tasks/options.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from medseg_diff.errors import UsageError
from medseg_diff.tasks.keywords import option
from medseg_diff.tasks.options import Shard, share_of_all


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a training learns by, and the run folder that it goes into."""

    panel: ClassVar[str] = "Training"
    overrides: Sequence[str] = option(
        (), "Settings laid over the recipe, such as training.steps=1000.", words="KEY=VALUE"
    )
    config: str | None = option(
        None, "Recipe: its name (see `info`) or file.", usual="the verb's own", metavar="NAME|FILE", complete="recipes"
    )
    out: Path | None = option(
        None, "Run folder.", usual="runs/TIME-RECIPE", names=("-o", "--out"), metavar="FOLDER", panel="Result"
    )
    resume: Literal["auto", "must"] | None = option(
        None,
        "Go on with the unfinished run in --out, or the newest of this recipe and data; auto: else begin one.",
    )
    init_from: str | None = option(
        None,
        "A run whose weights to begin with; channels and regions may differ, the network not.",
        metavar="RUN",
        complete="runs",
    )
    resample_to: str | None = option(
        None, "Read the other channels of every case onto this one's grid.", metavar="CHANNEL", panel="Source"
    )
    runs: Path = option(Path("runs"), "Folder of runs, cache and MLflow store.", metavar="FOLDER", panel="Result")
    mlflow: bool = option(True, "Mirror the run in MLflow.", panel="Result")
    parent: str | None = option(None, "Name of a study whose runs stand together in MLflow.", names=())


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Several trainings of one recipe, and which of them a call does."""

    panel: ClassVar[str] = "Training"
    folds: int | None = option(
        None, "So many trainings, each without another part of the patients; --out is their study.", min=2
    )
    shard: Shard = option(
        (1, 1), "Every N-th fold, starting with the K-th.", usual="1/1", parse=share_of_all, metavar="K/N"
    )

    def check(self) -> None:
        """Raises: UsageError for a share of one training."""
        if self.folds is None and self.shard != (1, 1):
            raise UsageError("--shard needs --folds", fix="leave it out, or add --folds")
