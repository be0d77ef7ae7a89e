"""`synthesise`: scans of nobody, drawn by a trained run as they are asked for by covariates, or painted into masks."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from medseg_diff.console import bar, duration, log
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.geometry import finer
from medseg_diff.data.tables.manifest import Case, write_manifest
from medseg_diff.errors import UsageError, counted
from medseg_diff.files import check_room, check_writable
from medseg_diff.recipes.covariates import Covariates
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.case_folder import Identity, made_anew, tell
from medseg_diff.tasks.apply.painting import paint
from medseg_diff.tasks.apply.synthesis_system import (
    SAME,
    SynthesisSystem,
    affine_of,
    as_written,
    is_complete,
    open_synthesis,
    table_in,
)
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Model
from medseg_diff.tasks.synthesis_options import SynthesisOptions

PREFIX = "synthetic_"
WORTH_SAYING_SECONDS = 60.0


@with_plain_keywords
def synthesise(
    out: Annotated[Path, "Where scans go, a folder for each."],
    model: Model,
    options: SynthesisOptions,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
) -> list[Path]:
    """Draw `number` scans into OUT/synthetic_0000 …, and their table OUT/cases.csv; returns the folders. With `masks`, a
    table, `number` scans are painted into the mask of each of its cases: OUT/CASE_00 …, on the case's own grid. With
    `enhance`, a run of train-enhance, scans are drawn again at its finer resolution.

    A scan depends on the model, the seed, its number and what is asked for alone. Those that are complete are skipped.
    Raises: UsageError, CheckpointError, EnvironmentFault; with `masks` also ManifestError, ImageError.
    """
    options.check()
    check_writable(out)
    table = table_in(out, options.masks)
    system = open_synthesis(model, options, device=device)
    if options.masks is not None:
        return paint(out, table, system, options)
    if system.recipe.regions:
        raise UsageError("this model paints masks, but was given none", fix="add --masks with a table of cases")
    recipe, drawing, count = system.recipe, system.drawing, options.count
    check_room(out, count * len(recipe.channels) * 2 * int(np.prod(recipe.view.size)) * system.factor**3)
    known = system.covariates if drawing.guidance else None  # where they are left out, nobody has any
    asked = asked_for(known, options)
    people = [known.named(each) for each in asked] if known and asked else [{}] * count
    names = [f"{PREFIX}{number:04d}" for number in range(count)]
    identity = Identity({key: system.facts.get(key) for key in SAME})
    left = [number for number, name in enumerate(names) if options.overwrite or not is_complete(out / name, identity)]
    started = time.perf_counter()
    with bar("drawing", len(names), done=len(names) - len(left)) as advance:
        for start in range(0, len(left), drawing.network_batch):
            chosen = left[start : start + drawing.network_batch]
            scaled = [asked[number] for number in chosen] if asked else None
            began = time.perf_counter()
            images = system.images([seed_of(options.seed, "synthesis", number) for number in chosen], scaled)
            share = (time.perf_counter() - began) / len(chosen)
            for number, image in zip(chosen, images, strict=True):
                began = time.perf_counter()
                scan = system.finished(image, number)
                seconds = round(share + time.perf_counter() - began, 3)
                facts = {**system.facts, "covariates": people[number], "seconds": seconds}
                _write(out / names[number], scan, system, facts)
                advance(note=names[number])
            after = (time.perf_counter() - started) * (len(left) / len(chosen) - 1)
            if start == 0 and after > WORTH_SAYING_SECONDS:
                log.info("drawing %d more: about %s", len(left) - len(chosen), duration(after))
    rows = [
        {"case": name, "patient": name}
        | {channel: f"{name}/{channel}.nii.gz" for channel in recipe.channels}
        | {key: str(value) for key, value in each.items()}
        for name, each in zip(names, people, strict=True)
    ]
    write_manifest(table, rows)
    log.info("%s in %s, listed in %s", counted(len(names), "synthetic scan"), out, table.name)
    return [out / name for name in names]


def asked_for(known: Covariates | None, options: SynthesisOptions) -> list[list[float]] | None:
    """The scaled covariates of every scan; None without any. Raises: UsageError for what the model does not know."""
    if known is None:
        if options.asked:
            found = f"{next(iter(options.asked))} is asked for, but the model knows no covariates, or leaves them out"
            raise UsageError(found, fix="leave it out, or leave out --unconditional or --guidance 0")
        return None
    draws = [np.random.default_rng(seed_of(options.seed, "covariates", number)) for number in range(options.count)]
    return [known.drawn(options.asked, draw) for draw in draws]


def _write(folder: Path, image: Tensor, system: SynthesisSystem, facts: Mapping[str, Any]) -> None:
    """CHANNEL.nii.gz of image [C, *S] in [-1, 1], and case.json."""
    affine = finer(affine_of(system.recipe), system.factor)
    with made_anew(folder) as new:
        new.mkdir(parents=True)
        for channel, values in zip(system.recipe.channels, image, strict=True):
            write_volume(new / f"{channel}.nii.gz", as_written(values.numpy()), affine, code=2)
        tell(new, Case(folder.name, folder.name), folder.name, None, {"task": "synthesise", **facts})
