"""What `evaluate` found about a model, kept in its run folder and shown in MLflow as numbers and a table of cases."""

import csv
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff.console import log
from medseg_diff.errors import MedsegError
from medseg_diff.files import read_facts, whole_file, write_json
from medseg_diff.run import Run
from medseg_diff.runs import all_runs
from medseg_diff.tracking.store import Entry, make_client, read_ticket

FOLDER = "evaluations"
NAMES = ("case", "patient", "split", "region", "label")


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


def record_evaluation(run: Run, summary: Mapping[str, Any], per_case: Path) -> Evaluation:
    """Keep an evaluation in the run folder, in the place of an older one of the same data. Raises: EnvironmentFault."""
    words = [str(summary.get("data") or "data"), str(summary.get("split") or "all")]
    name = re.sub(r"[^\w.-]+", "_", "-".join(words))
    evaluation = Evaluation(name, run.folder / FOLDER / name)
    write_json(evaluation.folder / "metrics.json", dict(summary))
    with whole_file(evaluation.per_case) as temporary:
        shutil.copyfile(per_case, temporary)
    return evaluation


def recorded(run: Run) -> list[Evaluation]:
    """The evaluations that a run folder holds; a damaged one is left out, with a warning."""
    found = [Evaluation(path.parent.name, path.parent) for path in (run.folder / FOLDER).glob("*/metrics.json")]
    readable = [each for each in found if each.summary and each.rows]
    for each in found:
        if each not in readable:
            log.warning("%s: its evaluation %s cannot be read and is left out: evaluate again", run.name, each.name)
    return sorted(readable)


def attach_to_run(
    summary: Mapping[str, Any], per_case: Path, predictions: Path, *, runs: Path, mlflow: bool = True
) -> Run | None:
    """Keep an evaluation with the run below `runs` that made `predictions`; returns that run, None where there is none.

    The run is known by the name and the digest of the weights in the first case.json. Masks that it refined are not its own
    work alone: they belong to no run. Best effort: never raises.
    """
    stated = (read_facts(path) for path in sorted(predictions.glob("*/case.json")))
    facts = next((each for each in stated if each), {})
    if facts.get("strength") is not None:
        return None
    run = next(
        (run for run in all_runs(runs) if run.name == facts.get("model") and _holds(run, facts.get("sha256"))), None
    )
    if run is not None:
        shown = attach_evaluation(run, summary, per_case, store=runs, mlflow=mlflow)
        log.info("kept with the run %s%s", run.folder, " and shown in MLflow" if shown else "")
    return run


def _holds(run: Run, digest: object) -> bool:
    """Whether a digest stands in the run's SHA256SUMS."""
    try:
        lines = (run.folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    return digest in {line.split("  ")[0] for line in lines}


def attach_evaluation(
    run: Run, summary: Mapping[str, Any], per_case: Path, *, store: Path, mlflow: bool = True
) -> bool:
    """Keep an evaluation in the run folder, and show it in MLflow if that knows the run; returns whether it does.

    Never raises and costs seconds at most: an evaluation is complete without it, and `runs sync` makes up for it.
    """
    try:
        evaluation = record_evaluation(run, summary, per_case)
        ticket = read_ticket(run.folder)
        if not mlflow or ticket is None or ticket.run_id is None:
            return False
        send_evaluation(Entry(make_client(store), ticket.run_id, known=True), evaluation)
    except MedsegError as error:
        log.warning("the run folder does not keep this evaluation: %s", error.line)
        return False
    except Exception as error:  # mlflow and its transports fail in many ways
        log.warning(
            "MLflow was not told of this evaluation (%s); later: medseg-diff runs sync %s",
            type(error).__name__,
            run.name,
        )
        return False
    return True


def send_evaluation(entry: Entry, evaluation: Evaluation) -> None:
    """Means as `test_…` metrics (`on_val_…` where another split was measured), cases as a table."""
    entry.latest(means_of(evaluation))
    rows = evaluation.rows
    columns = {name: [_cell(name, row[name]) for row in rows] for name in (rows[0] if rows else {})}
    if columns:
        entry.table(columns, f"cases_{evaluation.name}.json")


def means_of(evaluation: Evaluation) -> dict[str, float]:
    """The evaluation's means under the names that a run lists them by."""
    summary = evaluation.summary
    split = summary.get("split")
    prefix = "test" if split in (None, "test") else "on_" + re.sub(r"\W+", "_", str(split))
    values = {name: found.get("value") for name, found in summary["metrics"].items()}
    return {f"{prefix}_{name}": value for name, value in values.items() if isinstance(value, int | float)}


def _cell(column: str, text: str | None) -> float | str | None:
    """Numbers as numbers, so that the page sorts them; what names something stays text."""
    if not text:
        return None
    try:
        return text if column in NAMES else float(text)
    except ValueError:
        return text
