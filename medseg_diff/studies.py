"""Studies: a folder of runs of one recipe, each trained without another part of the patients, that stand for one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.errors import CheckpointError
from medseg_diff.files import read_facts, sha256_of, write_json
from medseg_diff.run import Run
from medseg_diff.runs import find_run

STUDY = "study.json"


@dataclass(frozen=True)
class FoldStudy:
    """A folder of runs of one recipe, `fold_1` …, each trained without another part of the patients, and `out_of_fold`: what
    the run that never saw a patient says of that patient. It is used as one model."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.absolute().name  # also of `.`

    @property
    def facts(self) -> dict[str, Any]:
        """What study.json says: task, recipe, folds, digests of recipe and data. Raises: CheckpointError."""
        facts = read_facts(self.folder / STUDY)
        if not isinstance(facts.get("folds"), int) or not isinstance(facts.get("task"), str):
            raise CheckpointError("is not a study of folds", fix="copy the whole folder again", file=self.name)
        return facts

    @property
    def there(self) -> bool:
        return (self.folder / STUDY).is_file()

    def run(self, fold: int) -> Run:
        """The run of fold 1, 2 …"""
        return Run(self.folder / f"fold_{fold}")

    @property
    def out_of_fold(self) -> Path:
        return self.folder / "out_of_fold"

    def begin(self, **facts: Any) -> None:
        """Write study.json, or find it as it would be written. Raises: CheckpointError where it is another study's."""
        known = read_facts(self.folder / STUDY)
        odd = [name for name, value in facts.items() if known and known.get(name) != value]
        if odd:
            raise CheckpointError(
                f"was started with another {odd[0].removesuffix('_sha256').removesuffix('_digest')}",
                fix="continue with what it was started with, or choose another --out",
                file=self.name,
            )
        if not known:
            write_json(self.folder / STUDY, {"schema": 1, **facts})

    @property
    def whole(self) -> Run:
        """The study's own folder, where its calibration lies as in a run's."""
        return Run(self.folder)

    def finish(self) -> None:
        """All folds are trained and predicted: say so, with the digest of the calibration where there is one."""
        file = self.whole.calibration_file
        digest = sha256_of(file) if file.is_file() else None
        write_json(self.folder / STUDY, self.facts | {"finished": True, "calibration_sha256": digest})

    def calibrated(self) -> Run | None:
        """Where the calibration lies, whole as it was written; None where there is none. Raises: CheckpointError."""
        file, wanted = self.whole.calibration_file, self.facts.get("calibration_sha256")
        if wanted is None:
            return None
        if not file.is_file() or sha256_of(file) != wanted:
            said = "differs from its checksum" if file.is_file() else "is missing"
            raise CheckpointError(said, fix="copy the study again", file=f"{self.name}/{file.name}")
        return self.whole

    @property
    def finished(self) -> bool:
        """Whether all folds are trained, and their patients predicted and looked at."""
        return self.facts.get("finished") is True

    @property
    def unfinished(self) -> list[int]:
        """The folds that are not trained to their end."""
        folds = range(1, self.facts["folds"] + 1)
        return [fold for fold in folds if not read_facts(self.run(fold).folder / "run.json").get("finished")]

    def runs(self) -> list[Run]:
        """All of them. Raises: CheckpointError where one, or the study, is not finished."""
        if missing := self.unfinished:
            raise CheckpointError(
                f"fold {', '.join(map(str, missing))} of {self.facts['folds']} is not trained",
                fix="continue training the study with --resume auto, or name one fold's run",
                file=self.name,
            )
        if not self.finished:
            raise CheckpointError(
                "is trained, but not yet calibrated",
                fix="wait for the process that predicts its patients, or continue with --resume auto",
                file=self.name,
            )
        return [self.run(fold) for fold in range(1, self.facts["folds"] + 1)]


class FoundModel(NamedTuple):
    """What `--model` means: a run alone, or the runs of a study, under its name."""

    name: str
    runs: list[Run]


def study_of(run: Run) -> FoldStudy | None:
    """The study that a run is a fold of."""
    return FoldStudy(run.folder.parent) if (run.folder.parent / STUDY).is_file() else None


def unfinished_study(runs: Path, facts: Mapping[str, Any]) -> FoldStudy | None:
    """The newest study right below `runs` that these are the facts of and that is not finished."""
    known = {path: read_facts(path) for path in runs.glob(f"*/{STUDY}")}
    fitting = [
        path
        for path, said in known.items()
        if not said.get("finished") and all(said.get(name) == value for name, value in facts.items())
    ]
    return FoldStudy(max(fitting, key=lambda path: path.stat().st_mtime).parent) if fitting else None


def find_folds(model: Path | None, *, task: str, runs: Path) -> FoundModel:
    """A run, or a study with the runs of its folds, that was named, else the newest.

    Raises: CheckpointError where that is no model of this task or a fold is not trained; UsageError where none is there.
    """
    place = next((each for each in (model, runs / model) if (each / STUDY).is_file()), None) if model else None
    if place is None:
        run = find_run(model, task=task, runs=runs)
        own = None if model else study_of(run)
        return FoundModel(own.name, own.runs()) if own and own.finished else FoundModel(run.name, [run])
    study = FoldStudy(place)
    if study.facts["task"] != task:
        found = f"is a study for `{study.facts['task']}`, not `{task}`"
        raise CheckpointError(found, fix="name another --model", file=study.name)
    return FoundModel(study.name, study.runs())
