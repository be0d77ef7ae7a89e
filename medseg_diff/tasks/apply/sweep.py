"""`anomaly --sweep`: settings of the engine tried on a few slices, drawn, and one of them recommended."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_diff.console import bar, duration, log
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import prepare_case
from medseg_diff.device import autocast, halved_to_fit, less_at_once
from medseg_diff.errors import UsageError
from medseg_diff.evenly import evenly_spaced
from medseg_diff.files import write_table, write_text
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.anomaly.checks import CALLED_HEALTHY
from medseg_diff.methods.anomaly.normative import cleaned, depth_of, top_mean
from medseg_diff.metrics.anomaly import rank
from medseg_diff.reporting.curves import draw_sweep
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, Frame
from medseg_diff.tasks.options import Compute, MapOrSweep, ResultFolder

MOST_CASES, SLICES = 3, 12
FACTORS = {"scale": (0.3, 1.0, 3.0), "refills": (0.34, 1.0, 2.0)}  # of the recipe's own
HALF_TO_TWICE = (0.5, 1.0, 2.0)  # of all others
AS_GOOD = 0.005  # average precision, or share of the contrast, that is not worth a pass
MEASURED = ("nfe", "drift", "p_healthy", "contrast", "auroc", "average_precision", "dice")


@dataclass(frozen=True)
class Slices:
    """Slices of some cases: image [N, C, X, Y] in frames of background, brain, inner (without its rim) and lesion [1, X, Y]
    each without its frame; lesion is None where a case has no reference."""

    image: Tensor
    brain: list[Tensor]
    inner: list[Tensor]
    lesion: list[Tensor] | None
    frames: list[Frame]
    spacing_mm: list[tuple[float, ...]]


def sweep_anomaly(cases: Sequence[Case], system: AnomalySystem, out: Path, *, resample_to: str | None = None) -> Path:
    """Try every setting on slices of at most three of the cases; OUT/{sweep.csv, sweep.png, recommended.txt}; returns OUT.

    With references the best average precision wins (AUROC hardly sees what else is marked), of settings that are as good the
    cheapest; without any, the largest contrast between the slices that the classifier calls diseased and healthy.
    Raises: ImageError; UsageError where there are neither references nor a classifier, references without a lesion, or
    nothing that the engine could sweep.
    """
    swept = system.engine.swept
    if not swept:
        kind = system.engine.kind
        raise UsageError(
            f"engine {kind} has no settings to try: all are fixed by the training", fix="leave out --sweep"
        )
    slices = read_slices(cases, system, resample_to=resample_to)
    if slices.lesion is None and system.networks.classifier is None:
        raise UsageError(
            "neither references nor a classifier tell which slices are diseased", fix="give cases with seg"
        )
    if slices.lesion is not None and not any(lesion.any() for lesion in slices.lesion):
        named = ", ".join(case.name for case in cases[:MOST_CASES])
        raise UsageError(
            f"no reference of {named} marks a lesion to rank voxels by", fix="put diseased cases first in the table"
        )
    engines = grid_of(system)
    rows: list[dict[str, Any]] = []
    costs = [each.evaluations["denoiser"] for each in engines]
    with bar("sweeping", sum(costs)) as advance:
        for number, engine in enumerate(engines):
            started = time.perf_counter()
            trial = system.but(**{name: getattr(engine, name) for name in swept})
            rows.append(_try_in_memory(slices, trial))
            advance(costs[number], note=f"{swept[0]} {getattr(engine, swept[0]):g}")
            if number == 0:
                left = (time.perf_counter() - started) * sum(costs[1:]) / costs[0]
                log.info("%d settings on %d slices: about %s", len(engines), len(slices.image), duration(left))
    columns = [*swept, *MEASURED]
    write_table(out / "sweep.csv", columns, [[_cell(row[name]) for name in columns] for row in rows])
    draw_sweep(out / "sweep.csv", out / "sweep.png", swept)
    best = recommended(rows)
    words = " ".join(f"engine.{name}={best[name]:g}" for name in swept)
    write_text(out / "recommended.txt", words + "\n")
    measure = "contrast" if best["auroc"] is None else "average_precision"
    drift = "" if best["drift"] is None else f" and drift {best['drift']:.3f}"
    log.info("recommended, with %s %.3f%s: %s", measure.replace("_", " "), best[measure], drift, words)
    return out


def check_options(results: ResultFolder, maps: MapOrSweep, compute: Compute) -> None:
    """Raises: UsageError for what is about maps, of which a sweep writes none, and where there is a sweep already."""
    of_maps = {
        "--threshold": maps.threshold is not None,
        "--guarantee": maps.guarantee is not None,
        "--level": maps.level is not None,
        "--baselines": maps.baselines,
        "--keep-going": results.keep_going,
        "--pseudonymise": results.pseudonymise,
        "--cluster": compute.cluster != "none",
    }
    if given := [name for name, asked in of_maps.items() if asked]:
        raise UsageError(f"{', '.join(given)}: --sweep writes no maps", fix="leave one of them out")
    if (results.out / "sweep.csv").exists() and not results.overwrite:
        raise UsageError("already holds a sweep", fix="use another --out, or --overwrite", file=results.out.name)


def grid_of(system: AnomalySystem) -> list[AnyEngine]:
    """The recipe's own values of what the engine sweeps, and a smaller and a larger one of each, as far as they fit."""
    own = system.engine
    values = {name: _tried(getattr(own, name), FACTORS.get(name, HALF_TO_TWICE)) for name in own.swept}
    choices = [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]
    for each in choices:
        if "depth" in each:
            each["depth"] = min(each["depth"], system.recipe.learned)
            each["steps"] = min(each["steps"], each["depth"])
    return [own.but(**dict(each)) for each in sorted({tuple(each.items()) for each in choices})]


def _tried(own: float, factors: Sequence[float]) -> list[float]:
    """Whole numbers, 1 or more, where its own value is one."""
    return [max(round(own * factor), 1) if isinstance(own, int) else own * factor for factor in factors]


def read_slices(cases: Sequence[Case], system: AnomalySystem, *, resample_to: str | None) -> Slices:
    """As many slices of each of the first cases: half of them with a lesion where the reference knows, spread evenly."""
    if not cases:
        raise UsageError("no case is left to sweep on", fix="leave --shard and --split out")
    chosen = cases[:MOST_CASES]
    share = SLICES // len(chosen)
    known = all(case.seg or case.label == "healthy" for case in chosen)
    recipe, view = system.recipe, system.recipe.view
    parts: list[Slices] = []
    for case in chosen:
        images = read_case(case, recipe.channels, reference=known, resample_to=resample_to)
        prepared = prepare_case(images, recipe.preparation)
        lesion = torch.zeros_like(prepared.brain) if known else None
        if known and prepared.reference is not None:
            lesion = recipe.lesion_in(prepared.reference)
        places = _places(view.for_training(prepared.brain), lesion, share)
        depth_mm = torch.from_numpy(depth_of(prepared.brain, prepared.spacing_mm))[None]
        cut = {"brain": prepared.brain, "inner": depth_mm > recipe.findings.rim_mm}
        planes = {name: list(view.cut(volume)[places]) for name, volume in cut.items()}
        parts.append(
            Slices(
                view.cut(prepared.image)[places],
                planes["brain"],
                planes["inner"],
                None if lesion is None else list(view.cut(lesion)[places]),
                [],
                [prepared.spacing_mm[:2]] * len(places),
            )
        )
    return _joined(parts, view.size, recipe.preparation.background)


def try_setting(slices: Slices, system: AnomalySystem) -> dict[str, Any]:
    """One row of the table: what a setting does to the slices, whose maps are cleaned each in its own plane."""
    row: dict[str, Any] = {name: getattr(system.engine, name) for name in system.engine.swept}
    row["nfe"] = system.engine.evaluations["denoiser"]
    maps: list[Tensor] = []
    facts: dict[str, list[float]] = {}
    with autocast(system.device, system.precision):
        for image in slices.image.split(system.engine.network_batch):
            owners = [("sweep", len(maps) + number) for number in range(len(image))]
            said = system.evidence(image.to(system.device), owners)
            maps += list(said.score.cpu())
            for name, values in said.facts.items():
                facts.setdefault(name, []).extend(values.tolist())
    scores = [
        cleaned(frame.take(score[None])[0], brain, system.recipe.findings, spacing_mm=spacing_mm)
        for score, brain, frame, spacing_mm in zip(maps, slices.brain, slices.frames, slices.spacing_mm, strict=True)
    ]
    return row | _numbers(slices, scores, {name: np.array(values) for name, values in facts.items()})


def _try_in_memory(slices: Slices, system: AnomalySystem) -> dict[str, Any]:
    """`try_setting` with as many slices in a pass of the networks as the memory holds. Raises: OutOfMemory."""
    batch = system.engine.network_batch
    row, fitting = halved_to_fit(lambda batch: try_setting(slices, system.but(network_batch=batch)), batch)
    if fitting < batch:
        tried = ", ".join(f"{name} {getattr(system.engine, name):g}" for name in system.engine.swept)
        log.warning("%s: %s", tried, less_at_once(fitting, batch))
    return row


def recommended(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cheapest of the rows that are as good as the best; of equally cheap ones that with the least drift."""
    name = "average_precision" if rows[0]["auroc"] is not None else "contrast"
    best = max(row[name] for row in rows)
    margin = AS_GOOD if name == "average_precision" else AS_GOOD * abs(best)
    good = [row for row in rows if row[name] >= best - margin]
    return min(good, key=lambda row: (row["nfe"], row["drift"] or 0.0))


def _numbers(slices: Slices, scores: Sequence[Tensor], facts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Drift of healthy slices, contrast, p(healthy) after, and with references AUROC, average precision and best Dice."""
    before, after = facts.get("p_healthy_before"), facts.get("p_healthy_after")
    diseased: np.ndarray = np.less(before, CALLED_HEALTHY) if before is not None else np.array([])
    if slices.lesion is not None:
        diseased = np.array([bool(lesion.any()) for lesion in slices.lesion])
    if before is not None and (diseased.all() or not diseased.any()):  # then the likelier half stands for one of them
        diseased = before < np.median(before)
    values = [score[inner].numpy() for score, inner in zip(scores, slices.inner, strict=True)]
    healthy = [value for value, lesioned in zip(values, diseased, strict=True) if not lesioned and value.size]
    tops = np.array([top_mean(value) for value in values])
    contrast: float | None = 1.0  # where the classifier calls all slices equally likely, none stands out
    if diseased.any():
        contrast = float(tops[diseased].mean() / max(tops[~diseased].mean(), 1e-6)) if healthy else None
    found: dict[str, Any] = {
        "drift": float(np.mean([value.mean() for value in healthy])) if healthy else None,
        "p_healthy": float(after[diseased].mean()) if after is not None and diseased.any() else None,
        "contrast": contrast,
    }
    if slices.lesion is None:
        return found | dict.fromkeys(("auroc", "average_precision", "dice"))
    truth = [lesion[inner].numpy() for lesion, inner in zip(slices.lesion, slices.inner, strict=True)]
    ranking = rank(np.concatenate(values), np.concatenate(truth))
    dice = float(ranking.dice_at(np.quantile(np.concatenate(values), np.linspace(0.5, 1, 201))).max())
    return found | {"auroc": ranking.auroc(), "average_precision": ranking.average_precision(), "dice": dice}


def _places(slices: Sequence[int], lesion: Tensor | None, count: int) -> list[int]:
    """Slices spread evenly; where the lesion [1, X, Y, Z] is known, half of them with it."""
    if lesion is None:
        return evenly_spaced(slices, count)
    diseased = lesion[0].flatten(0, 1).any(0)
    first = evenly_spaced([z for z in slices if diseased[z]], count - count // 2)
    return sorted(first + evenly_spaced([z for z in slices if not diseased[z]], count - len(first)))


def _joined(parts: Sequence[Slices], trained: Sequence[int], background: float) -> Slices:
    """The slices of several cases in frames of one size, so that they fit one batch."""
    size = [max(n, *(part.image.shape[axis] for part in parts)) for axis, n in enumerate(trained, start=2)]
    framed = [Frame.around(part.image.shape[2:], size, background) for part in parts]
    images = [frame.put(part.image) for frame, part in zip(framed, parts, strict=True)]
    frames = [frame for frame, part in zip(framed, parts, strict=True) for _ in part.brain]
    lesions = [part.lesion for part in parts]
    known = [lesion for lesion in lesions if lesion is not None]
    return Slices(
        torch.cat(images),
        [plane for part in parts for plane in part.brain],
        [plane for part in parts for plane in part.inner],
        [plane for lesion in known for plane in lesion] if len(known) == len(lesions) else None,
        frames,
        [spacing for part in parts for spacing in part.spacing_mm],
    )


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}"
