"""What `evaluate` found about a model, kept in the folder of its run, or of its study, which is known by its weights."""

import csv
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.console import log
from medseg_diff.files import read_facts, whole_file, write_json
from medseg_diff.run import Run
from medseg_diff.runs import all_runs
from medseg_diff.studies import study_of

FOLDER, FIGURE, PAGE = "evaluations", "evaluation.png", "report.html"


class Evaluation(NamedTuple):
    """A folder with metrics.json and per_case.csv, as `evaluate` wrote them; `name` is DATA-SPLIT."""

    name: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """What metrics.json says; empty where it cannot be read or is another's."""
        summary = read_facts(self.folder / "metrics.json")
        metrics = summary.get("metrics")
        ours = isinstance(metrics, dict) and all(isinstance(each, dict) for each in metrics.values())
        return summary if ours else {}

    @property
    def per_case(self) -> Path:
        return self.folder / "per_case.csv"

    @property
    def rows(self) -> list[dict[str, str]]:
        """Those of per_case.csv; none where it cannot be read."""
        try:
            with self.per_case.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error):
            return []

    @property
    def files(self) -> list[Path]:
        """What a person opens: numbers, figure and page, as far as they are there."""
        return [path for name in ("metrics.json", FIGURE, PAGE) if (path := self.folder / name).is_file()]

    @property
    def written(self) -> float:
        """When, in seconds since 1970."""
        with suppress(OSError):
            return (self.folder / "metrics.json").stat().st_mtime
        return 0.0


def name_of(summary: Mapping[str, Any]) -> str:
    """DATA-SPLIT of an evaluation."""
    words = [str(summary.get("data") or "data"), str(summary.get("split") or "all")]
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def record_evaluation(run: Run, summary: Mapping[str, Any], per_case: Path) -> Evaluation:
    """Keep an evaluation, with the figure and the page beside its table, in the run folder, in the place of an older one of
    the same data. Raises: EnvironmentFault."""
    name = name_of(summary)
    evaluation = Evaluation(name, run.folder / FOLDER / name)
    write_json(evaluation.folder / "metrics.json", dict(summary))
    keep(per_case, evaluation.per_case)
    for other in (FIGURE, PAGE):
        keep(per_case.with_name(other), evaluation.folder / other)
    return evaluation


def keep(path: Path, copy: Path) -> None:
    """Copy a file, whole or not at all; where there is none, no older copy stays either. Raises: EnvironmentFault."""
    if path.is_file():
        with whole_file(copy) as temporary:
            shutil.copyfile(path, temporary)
    else:
        copy.unlink(missing_ok=True)


def recorded(run: Run) -> list[Evaluation]:
    """The evaluations that a run folder holds, the newest last; a damaged one is left out, with a warning."""
    found = [Evaluation(path.parent.name, path.parent) for path in (run.folder / FOLDER).glob("*/metrics.json")]
    readable = [each for each in found if each.summary and each.rows]
    for each in found:
        if each not in readable:
            log.warning("%s: its evaluation %s cannot be read and is left out: evaluate again", run.name, each.name)
    return sorted(readable, key=lambda each: (each.written, each.name))


def means_of(evaluation: Evaluation) -> dict[str, float]:
    """The evaluation's means under the names that a run lists them by: `test/dice`, of another split `on_val/dice`."""
    summary = evaluation.summary
    split = summary.get("split")
    group = "test" if split in (None, "test") else "on_" + re.sub(r"\W+", "_", str(split))
    values = {name: found.get("value") for name, found in summary["metrics"].items()}
    return {f"{group}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}


def owner_of(predictions: Path, runs: Path) -> Run | None:
    """The run below `runs` that made the predictions, or the folder of the study whose folds did; None where there is none.

    Both are known by the names and the digests of the weights in every case.json. Masks that a model refined are not its
    own work alone: they belong to no run.
    """
    stated = [facts for path in sorted(predictions.glob("*/case.json")) if (facts := read_facts(path))]
    if any(facts.get("strength") is not None for facts in stated):
        return None
    wanted = {pair for facts in stated for pair in _makers(facts)}
    if not wanted:
        return None
    found: dict[tuple[str, str], Run] = {}
    near = predictions.absolute().is_relative_to
    for run in sorted(
        all_runs(runs), key=lambda run: not near(run.folder.parent.absolute())
    ):  # a study's own folds first
        digests = _digests(run)
        found |= {pair: run for pair in wanted - found.keys() if pair[0] == run.name and pair[1] in digests}
    if found.keys() != wanted:
        return None
    if len(found) == 1:
        return next(iter(found.values()))
    studies = [study_of(run) for run in found.values()]
    first = studies[0]
    return first.whole if first and all(study == first for study in studies) else None


def _makers(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and digest of every run that made a case."""
    models = facts.get("models")
    each = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else [facts]
    return [(str(one.get("model")), str(one.get("sha256"))) for one in each]


def _digests(run: Run) -> set[str]:
    """Those that stand in the run's SHA256SUMS."""
    try:
        lines = (run.folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return set()
    return {line.split("  ")[0] for line in lines}
