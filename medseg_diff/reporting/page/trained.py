"""The pages of trainings: of a run, of a study with its folds, and of all runs below a folder in a table that sorts."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.console import duration
from medseg_diff.data.results import PAGE
from medseg_diff.errors import counted, verbs_of
from medseg_diff.files import read_facts
from medseg_diff.reporting.curves import curves_of
from medseg_diff.reporting.page.case import Figure, figure_of_png
from medseg_diff.reporting.page.charts import Chart, training_chart
from medseg_diff.reporting.page.citations import citations
from medseg_diff.reporting.page.cohort import Row, metrics_of
from medseg_diff.reporting.page.document import TABLE, write_page
from medseg_diff.reporting.page.words import SHORT, number, spoken
from medseg_diff.run import SUMS, Point, Run
from medseg_diff.settings import flat
from medseg_diff.studies import FoldStudy

Facts = Mapping[str, Any]

MOST_TILES = 4
SPEED = "system/steps_per_second"
MEMORY = {
    "system/process_memory_megabytes": "memory of the process",
    "system/gpu_memory_usage_megabytes": "memory of the GPU",
}
UNFINISHED = {
    "running": "The training is still running: what is shown is how far it had come.",
    "stopped": "The training was stopped. Continue it: medseg-diff {train} … --resume auto",
}


@dataclass(frozen=True)
class Tested:
    """An evaluation of a model: metrics.json, the figure and the page that lie beside it, where they do."""

    name: str
    summary: Facts
    figure: Path
    page: str

    @property
    def shown(self) -> dict[str, Any]:
        """As the page shows it."""
        words = f"How the {counted(self.summary.get('cases', 0), 'case')} of {self.name} compare with their references."
        picture = figure_of_png(self.figure.read_bytes(), words, words) if self.figure.is_file() else None
        return {"name": self.name, "figure": picture, "metrics": list(metrics_of(self.summary)), "link": self.page}


@dataclass(frozen=True)
class Outcome:
    """What a training came to: `chosen` the number that chose its weights, `measured` what was calibrated, both by name."""

    chosen: Facts
    measured: Facts
    tested: Sequence[Tested]
    use: str


def write_run_page(run: Run, settings: Mapping[str, Any], outcome: Outcome) -> Path:
    """Write report.html into the folder of a run; `settings` are those of its recipe. Raises: CheckpointError where the
    folder is no run, EnvironmentFault."""
    facts, numbers, state = run.facts, list(run.numbers()), run.state
    warned = [UNFINISHED[state].format(train=verbs_of(facts["task"]).train)] if state in UNFINISHED else []
    write_page(
        run.folder / PAGE,
        "run.html",
        name=run.name,
        lead=_lead(facts, run),
        warnings=warned,
        tiles=_tiles(outcome),
        use=outcome.use if state == "finished" else "",
        columns=[],
        rows=[],
        tested=[each.shown for each in outcome.tested],
        charts=list(_charts(numbers, run)),
        figures=list(_figures(run)),
        measured=_named(outcome.measured),
        provenance=[
            *_provenance(facts, run.moment("started")),
            *_memory(run),
            *_versions(read_facts(run.folder / "environment.json")),
        ],
        settings=list(_settings(settings, facts)),
        checksums=_checksums(run),
        citations=citations(_parts(settings), str(settings.get("paper", ""))),
    )
    return run.folder / PAGE


def write_study_page(
    study: FoldStudy, columns: Sequence[str], rows: Sequence[Row], settings: Mapping[str, Any], outcome: Outcome
) -> Path:
    """Write report.html into the folder of a study, with a row for each of its folds. Raises: CheckpointError where the
    folder is no study, EnvironmentFault."""
    facts = study.facts
    unfinished = "The study is not finished. Continue it: medseg-diff {train} … --folds {folds} --resume auto"
    write_page(
        study.folder / PAGE,
        "run.html",
        scripts=(TABLE,),
        name=study.name,
        lead=f"{_task(facts)} with the recipe {facts.get('recipe')}, trained {facts['folds']} times, each without another "
        "part of the patients.",
        warnings=[]
        if study.finished
        else [unfinished.format(train=verbs_of(facts["task"]).train, folds=facts["folds"])],
        tiles=_tiles(outcome),
        use=outcome.use if study.finished else "",
        columns=columns,
        rows=rows,
        tested=[each.shown for each in outcome.tested],
        charts=[],
        figures=[],
        measured=_named(outcome.measured),
        provenance=_provenance(facts),
        settings=list(_settings(settings, facts)),
        checksums=[],
        citations=citations(_parts(settings), str(settings.get("paper", ""))),
    )
    return study.folder / PAGE


def write_runs_page(folder: Path, title: str, columns: Sequence[str], rows: Sequence[Row]) -> Path:
    """Write report.html for all runs below a folder. Raises: EnvironmentFault."""
    write_page(
        folder / PAGE,
        "cohort.html",
        scripts=(TABLE,),
        title=title,
        lead="Every run below this folder. What changed between two, and what it did: medseg-diff runs compare.",
        warnings=[],
        tiles=[],
        one="run",
        columns=columns,
        rows=rows,
        charts=[],
        gallery=None,
        gallery_title="",
        metrics=[],
        citations=citations({}),
    )
    return folder / PAGE


def _task(facts: Facts) -> str:
    words = {"segment": "Segmentation", "anomaly": "Anomaly maps", "synthesise": "Synthesis", "enhance": "Enhancement"}
    return words.get(facts["task"], str(facts["task"]))


def _lead(facts: Facts, run: Run) -> str:
    """What was trained on what, in a sentence."""
    cases = facts.get("cases")
    counts = ", ".join(f"{count} {split}" for split, count in cases.items()) if isinstance(cases, Mapping) else ""
    data = f" on {facts.get('data')}" if facts.get("data") else ""
    of_patients = f": {counts} cases of {counted(facts.get('patients', 0), 'patient')}" if counts else ""
    started, ended = run.moment("started"), run.moment("ended")
    took = f" It took {duration(ended - started)}." if started and ended and ended > started else ""
    return f"{_task(facts)} with the recipe {facts['recipe']}, trained{data}{of_patients}.{took}"


def _tiles(outcome: Outcome) -> list[tuple[str, str, str]]:
    """The number that chose the weights first, then what was calibrated."""
    chosen = [
        (spoken(name.rpartition("/")[2]), number(value), "best on validation") for name, value in outcome.chosen.items()
    ]
    measured = [(spoken(name), number(value), "calibrated") for name, value in outcome.measured.items()]
    return [*chosen, *measured][:MOST_TILES]


def _charts(numbers: Sequence[Point], run: Run) -> Iterator[Chart]:
    for title, curves in curves_of([*numbers, *_speed(numbers, run)]).items():
        yield training_chart(title, curves)


def _speed(numbers: Sequence[Point], run: Run) -> Iterator[Point]:
    """Steps per second of each phase: where steps begin anew, the next one begins."""
    phases = list(dict.fromkeys(point.name.removesuffix("loss") for point in numbers if point.name.endswith("loss")))
    phases = [phase for phase in phases if "val_" not in phase] or [""]
    phase, before = 0, -1
    for point in run.numbers(file=run.system_file):
        phase, before = phase + (point.step < before), point.step
        if point.name == SPEED:
            yield point._replace(name=f"{phases[min(phase, len(phases) - 1)]}steps per second")


def _figures(run: Run) -> Iterator[Figure]:
    """The newest denoising trajectory of each series, and what else was drawn; the curves are charts already."""
    drawn = sorted(run.trajectories, key=lambda each: each.step)
    numbers = Counter(each.series for each in drawn)
    for each in {each.series: each for each in drawn}.values():
        said = f"Denoising trajectories of validation images, drawn at step {each.step}."
        caption = f"{said} {counted(numbers[each.series], 'picture')} in all."
        yield figure_of_png(each.path.read_bytes(), said, caption)
    for path in sorted(run.figures.glob("[!.]*.png")):
        if path.stem != "training":
            words = f"Figure of the run: {spoken(path.stem)}."
            yield figure_of_png(path.read_bytes(), words, spoken(path.stem).capitalize())


def _named(numbers: Facts) -> list[tuple[str, str]]:
    return [(spoken(name), number(value)) for name, value in numbers.items()]


def _provenance(facts: Facts, started: float | None = None) -> list[tuple[str, str]]:
    said = {
        "task": facts["task"],
        "recipe": facts.get("recipe"),
        "data": facts.get("data"),
        "patients": facts.get("patients"),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started)) if started else None,
        "device": facts.get("device"),
        "threads": facts.get("threads"),
        "precision": facts.get("precision"),
        "best step": facts.get("best_step"),
        "recipe's digest": str(facts.get("recipe_sha256") or "")[:SHORT],
        "table's digest": str(facts.get("data_digest") or "")[:SHORT],
    }
    return [(name, str(value)) for name, value in said.items() if value not in (None, "")]


def _memory(run: Run) -> Iterator[tuple[str, str]]:
    """The most that was noted."""
    most: dict[str, float] = {}
    for point in run.numbers(file=run.system_file):
        if point.name in MEMORY:
            most[point.name] = max(point.value, most.get(point.name, 0.0))
    for name, value in most.items():
        yield MEMORY[name], f"up to {value / 1000:.1f} GB"


def _versions(environment: Facts) -> Iterator[tuple[str, str]]:
    packages = environment.get("packages")
    versions = {"medseg_diff": environment.get("medseg_diff"), "python": environment.get("python")}
    versions |= packages if isinstance(packages, Mapping) else {}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if commit := environment.get("commit"):
        yield "commit", f"{str(commit)[:SHORT]}{', changed since' if environment.get('commit_changed') else ''}"


def _settings(settings: Mapping[str, Any], facts: Facts) -> Iterator[tuple[str, str, str]]:
    """Every setting by its dotted name; which were given on the command line."""
    given = facts.get("overrides")
    names = [str(word).partition("=")[0] for word in given] if isinstance(given, list) else []
    for name, value in flat(settings).items():
        changed = any(name == each or name.startswith(f"{each}.") for each in names)
        yield name, str(value), "changed" if changed else ""


def _checksums(run: Run) -> list[tuple[str, str]]:
    """What SHA256SUMS lists; an unfinished run has none."""
    path = run.folder / SUMS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [(file, digest) for digest, _, file in (line.partition("  ") for line in lines)]


def _parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe, what papers are cited by."""
    sampling = settings.get("sampling")
    solver = sampling.get("solver") if isinstance(sampling, Mapping) else None
    return {"solver": solver, "engine": settings.get("engine")}
