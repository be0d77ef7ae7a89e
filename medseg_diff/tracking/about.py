"""What MLflow says of a run in words, tags and a few settings, all read off its folder: recipe, data, result, picture."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from medseg_diff.console import duration
from medseg_diff.errors import ConfigError, plain, verbs_of
from medseg_diff.files import read_facts
from medseg_diff.run import Run, TrajectoryPicture
from medseg_diff.settings import flat, read_yaml
from medseg_diff.studies import FoldStudy
from medseg_diff.tracking.entry import PREVIEWS
from medseg_diff.tracking.evaluations import FIGURE, Evaluation, recorded
from medseg_diff.tracking.names import calibrated, chosen_by

# MLflow writes all parameters above each picture: these and what was laid over the recipe, whose file holds the others.
TELLING = ("engine.kind", "training.steps", "training.batch", "training.learning_rate", "training.seed")
TRAJECTORY = "trajectory.png"  # the newest, in the place of the one before
SHOWN = ("dice", "hd95_mm", "surface_dice_1mm", "volume_error_ml", "ged2", "ece", "average_precision", "auroc")
LONGEST = 600


def tags_of(facts: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """Words to find a run by: task, recipe, data and device, version and commit; no host, user or path."""
    said = {name: facts.get(name) for name in ("task", "recipe", "data", "device", "precision")}
    said["mlflow.source.name"] = f"medseg-diff {verbs_of(str(facts.get('task'))).train}"
    said["mlflow.source.type"] = "LOCAL"
    said["medseg_diff.version"] = environment.get("medseg_diff")
    said["mlflow.source.git.commit"] = environment.get("commit")
    said["medseg_diff.changed_since_commit"] = "yes" if environment.get("commit_changed") else None
    return {name: plain(str(value)) for name, value in said.items() if value is not None}


def parameters_of(run: Run) -> dict[str, Any]:
    """The settings that tell runs apart at a glance."""
    settings = _settings(run)
    laid_over = [word.partition("=")[0] for word in _words(run.facts.get("overrides"))]
    return {"recipe": run.facts["recipe"]} | {
        name: value
        for name, value in settings.items()
        if name in TELLING or any(name == key or name.startswith(f"{key}.") for key in laid_over)
    }


def description_of_run(run: Run, run_id: str) -> str:
    """Markdown for the top of a run's page. Raises: CheckpointError where the folder is no run."""
    facts, last = run.facts, newest_trajectory(run)
    parts = [_recipe(run), _data(run), means_in_words(recorded(run))]
    if facts.get("finished"):
        parts.append(f"Use it: `{use_of(run, run.name)}`")
    if last:
        said = f"Denoising trajectories of validation images, step {last.step}; all of them are under Model metrics:"
        parts.append(f"{said}\n\n{_picture(run_id, TRAJECTORY, last.step)}")
    if laid_over := _words(facts.get("overrides")):
        parts.append(f"Settings changed from the recipe: {', '.join(f'`{plain(word)}`' for word in laid_over)}")
    if paper := _settings(run).get("paper"):
        parts.append(f"The recipe: {plain(str(paper), LONGEST)}")
    return "\n\n".join(part for part in [*parts, *figures_of(recorded(run), run_id)] if part)


def description_of_version(run: Run) -> str:
    """Markdown for a version of a registered model."""
    return "\n\n".join(part for part in (_recipe(run), _data(run), means_in_words(recorded(run))) if part)


def description_of_study(study: FoldStudy, run_id: str) -> str:
    """Markdown for the top of a study's page. Raises: CheckpointError where the folder is no study."""
    facts, evaluations = study.facts, recorded(study.whole)
    said = f"**{facts['task']}** with the recipe `{facts['recipe']}`, {facts['folds']} times, each without a different part "
    parts = [f"{said}of the patients: the runs below this one are its folds."]
    measured = {name.partition("/")[2]: value for name, value in calibrated(study.whole).items()}
    kept = ", ".join(f"{name} {value:.4g}" for name, value in list(measured.items())[:6])
    parts.append(f"Each patient as predicted by the fold that never saw them: {kept}" if kept else "")
    if study.finished:
        parts.append(f"Use it: `{use_of(study.run(1), study.name)}`")
    return "\n\n".join(part for part in [*parts, means_in_words(evaluations), *figures_of(evaluations, run_id)] if part)


def newest_trajectory(run: Run) -> TrajectoryPicture | None:
    """Of all phases; None where none was drawn."""
    return max(run.trajectories, key=lambda each: (each.path.stat().st_mtime, each.step), default=None)


def figures_of(evaluations: Sequence[Evaluation], run_id: str) -> list[str]:
    """The figure of every evaluation that has one."""
    drawn = [each for each in evaluations if (each.folder / FIGURE).is_file()]
    return [f"Evaluation {each.name}:\n\n{_picture(run_id, preview_of(each), int(each.written))}" for each in drawn]


def preview_of(evaluation: Evaluation) -> str:
    """The name of the small copy of its figure."""
    return f"evaluation_{evaluation.name}.png"


def means_in_words(evaluations: Iterable[Evaluation]) -> str:
    """A line for each evaluation; means with their intervals."""
    rows = []
    for each in evaluations:
        metrics = each.summary["metrics"]
        cells = [
            f"{name} {_number(metrics[name])}"
            for name in SHOWN
            if isinstance(metrics.get(name, {}).get("value"), float)
        ]
        rows.append(
            f"* evaluated on {each.name}, {each.summary.get('cases')} cases (means with 95 % intervals): {', '.join(cells)}"
        )
    return "\n".join(rows)


def _recipe(run: Run) -> str:
    """The recipe and its result, in the first line: MLflow hides all but three."""
    metric, best = chosen_by(run.facts)
    said = [f"best {metric} {best:.4g}"] if metric else []
    measured = {name.partition("/")[2]: value for name, value in calibrated(run).items()}
    kept = {name: value for name, value in measured.items() if name.startswith(("threshold", "temperature"))}
    said += [f"{name} {value:.4g}" for name, value in list(kept.items())[:6]]
    result = f"; **result**: {', '.join(said)}" if said else ""
    return f"**{run.facts['task']}** with the recipe `{run.facts['recipe']}`{result}"


def _data(run: Run) -> str:
    facts = run.facts
    cases = facts.get("cases")
    counted = [f"{number} {split}" for split, number in cases.items()] if isinstance(cases, Mapping) else []
    said = f"**Data** {plain(str(facts.get('data', 'unknown')))}"
    said += f": {', '.join(counted)} cases of {facts.get('patients')} patients" if counted else ""
    started, ended = run.moment("started"), run.moment("ended")
    took = f", {duration(ended - started)}" if started and ended and ended > started else ""
    return f"{said}. Trained on {facts.get('device', 'a device')} ({facts.get('precision', '?')}){took}."


def _number(found: Mapping[str, Any]) -> str:
    ends = [found.get(name) for name in ("low", "high")]
    interval = f" [{ends[0]:.3g}, {ends[1]:.3g}]" if all(isinstance(end, float) for end in ends) else ""
    return f"{found['value']:.3g}{interval}"


def _picture(run_id: str, name: str, version: int) -> str:
    """A preview as the page's server gives it; another `version` is not taken from the browser's memory."""
    query = {"path": f"{PREVIEWS}/{name}", "run_uuid": run_id, "version": version}
    return f"![{name}](get-artifact?{urlencode(query)})"


def use_of(run: Run, model: str) -> str:
    """The command that uses it under that name."""
    task = run.facts["task"]
    drawn = (
        "--masks CSV --out painted"
        if any(name.startswith("regions.") for name in _settings(run))
        else "--number 8 --out synthetic"
    )
    words = drawn if task == "synthesise" else "--volume PATIENT_FOLDER --out results"
    return f"medseg-diff {verbs_of(task).apply} --model {model} {words}"


def _settings(run: Run) -> dict[str, Any]:
    try:
        return flat(read_yaml(run.recipe_file)) if run.recipe_file.is_file() else {}
    except ConfigError:
        return {}


def _words(found: Any) -> list[str]:
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def environment_of(folder: Path) -> dict[str, Any]:
    """Versions, as the run noted them."""
    return read_facts(folder / "environment.json")
