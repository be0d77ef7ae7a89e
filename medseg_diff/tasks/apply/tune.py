"""`tune`: how few steps and members are as good as many, on cases with a reference; `segment` then draws these."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import numpy as np

from medseg_diff.console import bar, duration, log
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import CheckpointError, EnvironmentFault, UsageError, counted
from medseg_diff.evaluation.catalogue import SEGMENTATION
from medseg_diff.evaluation.summary import over_cases
from medseg_diff.files import check_writable
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import find_models
from medseg_diff.recipes.tuned import (
    METRICS,
    TUNED,
    Allowed,
    MeasuredSetting,
    Tuned,
    TunedOn,
    cheapest,
    folder_of,
    nearest,
    read_tuned,
    with_losses,
    write_tuned,
)
from medseg_diff.run import Run
from medseg_diff.runs import starter_run
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply.channels import refuse_missing, warn_of_other_grid
from medseg_diff.tasks.apply.segmentation_system import SegmentationModel
from medseg_diff.tasks.apply.tuning import Draw, Measured, Scan, Setting, draws_of, measure
from medseg_diff.tasks.apply.tuning_cases import cases_to_tune_on, refuse_without_lesion
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, Model
from medseg_diff.tasks.tuning_options import TuningOptions
from medseg_diff.tracking.attaching import attach_trials
from medseg_diff.tracking.registry import SCHEME

OPTIONS = {"dice": "--loss", "ged2": "--loss-ged2", "ece_band": "--loss-ece"}
STEPS, MEMBERS, MOST_MEMBERS = (1, 2, 3, 5, 10), (3, 5, 10), 1000


@with_plain_keywords
def tune(
    data: Annotated[Path, "Table of cases (CSV)."],
    model: Model,
    tuning: TuningOptions,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
    network_batch: Annotated[int | None, "Samples in one pass of the networks [the recipe's]."] = None,
    data_root: Annotated[Path | None, "Folder that paths in the table are relative to [the table's]."] = None,
) -> Tuned:
    """Measure a segmentation model with every number of `steps` and `members` on cases with a reference, and store the
    cheapest setting that is about as good as the best, in tuned.json beside the model; `segment` draws it from then on.

    Where no setting is within all that may be lost, none is stored as chosen, and `segment` goes on with the recipe's.
    Of a study whose volumes have intervals only settings are chosen that keep these.
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    tuning.check()
    found = find_models(model.model, task="segment", runs=model.runs)
    _refuse_others(found, model.model)
    opened = SegmentationModel.load(found, Compute(device=device))
    recipe = opened.trained.recipe
    chosen = cases_to_tune_on(read_manifest(Path(data), data_root=data_root), found, tuning.split)
    refuse_missing(chosen.cases, recipe.channels, fill_missing=recipe.bears_missing_channels, runs=model.runs)
    refuse_without_lesion(chosen, recipe)
    resample_to = tuning.resample_to or recipe.preparation.resample_to
    warn_of_other_grid(recipe, resample_to)
    steps = sorted(set(tuning.steps or _usual(STEPS, recipe.sampling.steps, most=recipe.schedule.length)))
    members = sorted(set(tuning.members or _usual(MEMBERS, recipe.sampling.members, most=MOST_MEMBERS)))
    log.info("tuning %s (%s) on %s", found.name, opened.trained.facts["recipe"], chosen.in_words)
    log.info("%s steps × %s members", *(", ".join(map(str, numbers)) for numbers in (steps, members)))
    chosen.warn(found.name)
    batch = network_batch or recipe.sampling.network_batch
    tuned = _nothing_yet(opened, tuning, chosen.facts(resample_to), network_batch=batch)
    folder, settings = folder_of(found), [Setting(*each) for each in itertools.product(steps, members)]
    known = _known(folder, tuned, settings)
    draws = draws_of(opened, [each for each in settings if each not in known], seed=tuning.seed, network_batch=batch)
    unpromised = {setting: row.unpromised for setting, row in known.items()} | _unpromised(draws)
    _refuse_unpromised(unpromised, recipe, found.name)
    measured = _measured(chosen.cases, recipe, draws, resample_to=resample_to)
    new = _table(measured, chosen.cases, recipe, unpromised)
    tuned = _decided(tuned, sorted([*known.values(), *new], key=lambda row: (row.steps, row.members)))
    write_tuned(folder, tuned)
    attach_trials(Run(folder), store=model.runs)
    _say(tuned, recipe, folder)
    return tuned


def _nothing_yet(model: SegmentationModel, tuning: TuningOptions, data: TunedOn, *, network_batch: int) -> Tuned:
    """What tuned.json will say, without a setting."""
    facts = model.trained.facts
    return Tuned(
        weights=model.weights,
        recipe_sha256=facts["recipe_sha256"],
        data=data,
        seed=tuning.seed,
        network_batch=network_batch,
        device=facts["device"],
        precision=facts["precision"],
        versions=facts["versions"],
        allowed=Allowed(dice=tuning.loss, ged2=tuning.loss_ged2, ece_band=tuning.loss_ece),
    )


def _known(folder: Path, tuned: Tuned, settings: Sequence[Setting]) -> dict[Setting, MeasuredSetting]:
    """Those of the settings that were measured before of the same model, cases and noise: they would be the same."""
    before = None
    with suppress(CheckpointError):  # a damaged one is replaced
        before = read_tuned(folder)
    if before is None or not before.measured_like(tuned):
        return {}
    rows = {setting: row for setting in settings if (row := before.of(*setting))}
    if rows:
        log.info("%d of %d settings are already measured", len(rows), len(settings))
    return rows


def _decided(tuned: Tuned, table: Sequence[MeasuredSetting]) -> Tuned:
    """The same with its table, and which of these settings it is to be."""
    rows = with_losses(table)
    best = cheapest(rows, tuned.allowed)
    chosen = {"steps": best.steps, "members": best.members} if best else {}
    return tuned.but(table=[row.model_dump(mode="json") for row in rows], **chosen)


def _usual(numbers: Sequence[int], own: int, *, most: int) -> list[int]:
    """The usual ones, as far as there are so many, and the recipe's own."""
    return [number for number in (*numbers, own) if number <= most]


def _refuse_others(found: FoundModel, named: Path | None) -> None:
    """Raises: UsageError, EnvironmentFault for a model that nothing can be stored beside."""
    folder = folder_of(found)
    if found.runs[0] == starter_run():
        raise UsageError(
            "the starter model belongs to the package", fix="copy its folder into runs/, and tune the copy"
        )
    if named is not None and str(named).startswith(SCHEME):
        found_uri = f"{named} is in a registry, and registered versions do not change"
        raise UsageError(found_uri, fix="tune the folder of its run, and pass --steps and --members to `segment`")
    try:
        check_writable(folder)
    except EnvironmentFault as error:
        fix = "copy it to a folder that you can write to, and tune the copy"
        raise EnvironmentFault(error.found, fix=fix, file=folder.name) from None


def _unpromised(draws: Sequence[Draw]) -> dict[Setting, str]:
    """Why samples of a setting would have none of what the model promises, in words; empty where they would."""
    return {setting: draw.system.promises.reason for draw in draws for setting in draw.totals().values()}


def _refuse_unpromised(reasons: Mapping[Setting, str], recipe: SegmentationRecipe, name: str) -> None:
    """Raises: UsageError where no setting would have what the model promises."""
    if all(reasons.values()):
        own = recipe.sampling
        raise UsageError(
            f"none of these settings keeps the intervals of {name}: {next(iter(reasons.values()))}",
            fix=f"add {own.steps} to --steps and {own.members} to --members, as it was measured",
        )


def _measured(
    cases: Sequence[Case], recipe: SegmentationRecipe, draws: Sequence[Draw], *, resample_to: str | None
) -> dict[Setting, list[Measured]]:
    """Every setting on every case. As soon as it is known, how long that takes. Raises: ImageError, OutOfMemory."""
    measured: dict[Setting, list[Measured]] = {}
    with bar("tuning", len(cases) * len(draws)) as advance:
        for case in cases:
            scan = Scan.read(case, recipe, resample_to=resample_to)
            for number, draw in enumerate(draws):
                began = time.perf_counter()
                found = measure(scan, draw)
                for setting, each in found.items():
                    measured.setdefault(setting, []).append(each)
                advance(note=f"{case.name}, {draw.steps} steps")
                if case is cases[0] and number == 1:  # the first one also imports and warms up
                    seconds = max(each.seconds for each in found.values())
                    rest = time.perf_counter() - began - seconds
                    of_case = sum(each.cost for each in draws) * seconds / draw.cost + len(draws) * rest
                    log.info("about %s in total", duration(len(cases) * of_case))
    return measured


def _in_words(row: MeasuredSetting) -> str:
    """`3 steps × 5 members`."""
    return f"{counted(row.steps, 'step')} × {counted(row.members, 'member')}"


def _table(
    measured: Mapping[Setting, Sequence[Measured]],
    cases: Sequence[Case],
    recipe: SegmentationRecipe,
    unpromised: Mapping[Setting, str],
) -> list[MeasuredSetting]:
    """A row for each setting, means over the cases as an evaluation has them."""

    def value(metric: str, region: str, found: Sequence[Measured]) -> float | None:
        values = [(case, each.regions[region]) for case, each in zip(cases, found, strict=True)]
        mean: float | None = over_cases(metric, SEGMENTATION[metric], values)["value"]
        return mean

    return [
        MeasuredSetting(
            steps=setting.steps,
            members=setting.members,
            seconds=round(float(np.median([each.seconds for each in found])), 3),
            values={region: {name: value(name, region, found) for name in METRICS} for region in recipe.regions},
            unpromised=unpromised[setting],
        )
        for setting, found in sorted(measured.items())
    ]


def _say(tuned: Tuned, recipe: SegmentationRecipe, folder: Path) -> None:
    """What was chosen, in a few lines."""
    row = tuned.chosen
    if row is None:
        log.warning("no setting is within the allowed losses: `segment` keeps using the recipe's")
        if near := nearest(tuned.table, tuned.allowed):
            more = {
                OPTIONS[name]: loss for name, loss in near.lost.items() if (loss or 0) > getattr(tuned.allowed, name)
            }
            words = " ".join(f"{option} {math.ceil(1000 * (loss or 0)) / 1000:g}" for option, loss in more.items())
            said = "the nearest is %s: run the same command with %s to choose from what is measured"
            log.warning(said, _in_words(near), words)
        log.info("stored in %s", folder / TUNED)
        return
    own = tuned.of(recipe.sampling.steps, recipe.sampling.members)
    beside = f", {own.seconds:.3g} with the recipe's {own.steps} × {own.members}" if own and own != row else ""
    log.info("chosen: %s; %.3g s per case%s", _in_words(row), row.seconds, beside)
    cheaper = cheapest(tuned.table, tuned.allowed, promised=False)
    if cheaper and cheaper.unpromised:
        said = "--steps %d --members %d would be cheaper, but then volumes have no interval: %s"
        log.info(said, cheaper.steps, cheaper.members, cheaper.unpromised)
    log.info("stored in %s: `segment` uses it unless --steps or --members say otherwise", folder / TUNED)
