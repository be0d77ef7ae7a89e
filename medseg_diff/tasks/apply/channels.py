"""Which cases have the channels that a model reads, on whose grid it learned, and which models fit a case without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medseg_diff.console import log
from medseg_diff.data.reading import OtherGrid
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import missing_channels
from medseg_diff.errors import ManifestError, MedsegError, Problems, raise_all, verbs_of
from medseg_diff.recipes.lookup import RECIPES, AnyRecipe, Task, find_recipe, recipe_names
from medseg_diff.runs import finished_runs
from medseg_diff.settings import parse_settings, read_yaml

SHOWN = 5


def refuse_missing(
    cases: Sequence[Case], channels: Sequence[str], *, fill_missing: bool, runs: Path | None = None
) -> None:
    """Raises: ManifestError for every case that lacks one of `channels`, or with `fill_missing` all of them; it names the
    models below `runs` that fit the case."""
    problems: list[MedsegError] = []
    advice: dict[tuple[str, ...], str] = {}  # the same for all cases of the same channels
    for case in cases:
        missing = missing_channels(case, channels)
        if len(missing) > (len(channels) - 1 if fill_missing else 0):
            found = f"has no {', '.join(missing)}; the model reads {', '.join(channels)}"
            if case.channels not in advice:
                advice[case.channels] = models_that_fit(case.channels, runs)
            fix = f"add the column or drop the row; {advice[case.channels]}"
            problems.append(ManifestError(found, fix=fix, case=case.name))
    raise_all(problems)


def warn_of_other_grid(recipe: AnyRecipe, asked: str | None) -> None:
    """A word where `asked` is another channel's grid than the one that the model was trained on."""
    trained = recipe.preparation.resample_to
    if trained and asked not in (None, trained):
        log.warning("the model was trained with --resample-to %s, not %s", trained, asked)


@contextmanager
def grid_as_trained(recipe: AnyRecipe) -> Iterator[None]:
    """Says of channels on several grids, where they are read inside, which one's grid the model was trained on."""
    trained = recipe.preparation.resample_to
    try:
        yield
    except MedsegError as error:
        for fault in error.problems if isinstance(error, Problems) else (error,):
            if trained and isinstance(fault, OtherGrid):
                fault.fix = f"pass --resample-to {trained}, as the model was trained, or resample it yourself"
        raise


def models_that_fit(present: Sequence[str], runs: Path | None, task: Task = "segment") -> str:
    """In words: finished runs below `runs` and shipped recipes for a case with these channels, and how to train one."""
    trained = list(_runs_that_fit(present, runs, task)) if runs else []
    recipes = [name for name in recipe_names(task) if _fits(_recipe(find_recipe(name, task=task), task), present)]
    parts = [f"models that fit: {', '.join(trained[:SHOWN])}"] if trained else ["no model here fits"]
    parts += [f"recipes that fit: {', '.join(recipes[:SHOWN])}"] if recipes else []
    if present:
        parts.append(f"{verbs_of(task).train} takes channels=[{','.join(present)}]")
    return "; ".join(parts)


def _runs_that_fit(present: Sequence[str], runs: Path, task: Task) -> Iterator[str]:
    for run in finished_runs(runs):
        if run.facts.get("task") != task:
            continue
        try:
            recipe = _recipe(run.recipe_file, task)
        except MedsegError:  # a run of another version does not fit
            continue
        if _fits(recipe, present):
            yield f"{run.name} ({', '.join(recipe.channels)})"


def _recipe(path: Path, task: Task) -> AnyRecipe:
    return parse_settings(RECIPES[task], read_yaml(path), source=path.name)


def _fits(recipe: AnyRecipe, present: Sequence[str]) -> bool:
    there = [channel in present for channel in recipe.channels]
    return any(there) if recipe.augmentation.channel_dropout else all(there)
