"""What a trained anomaly system shows of healthy brains: its floor, its threshold at a stated rate, and its errors."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_diff.console import bar, log
from medseg_diff.data.datasets.labelled import is_labelled
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.files import write_json
from medseg_diff.methods.anomaly.baselines import bright_channels, brightness, unlike_its_blur
from medseg_diff.methods.anomaly.normative import LEVELLED, Floor, above_floor, cleaned, depth_of
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.run import Run
from medseg_diff.tasks.apply.anomaly_volume import HealedVolume, heal_volume
from medseg_diff.tasks.apply.healer import CALIBRATION, CALLED_HEALTHY, Healer, load_healer
from medseg_diff.tasks.train.anomaly_study import spread
from medseg_diff.training.classification import Skill
from medseg_diff.training.estimate import in_words

SCHEMA = 1
MOST_CASES = 8  # healed for the floor and the threshold, spread over those that there are
WORTH_SAYING_SECONDS = 60.0
TRIP_TOLERANCE = 1.5  # a scan may come back this much worse than the worst case of the calibration


@dataclass(frozen=True)
class Source:
    """Cases of the table that hold something healthy: whole brains, or slices without a lesion."""

    cases: tuple[Case, ...]
    words: str


def calibrate(
    run: Run, manifest: Manifest, *, skill: Sequence[Skill], device: str = "auto", precision: str | None = None
) -> Path:
    """Measure a run whose weights are written, store RUN/calibration.json, and seal the run again.

    `manifest` has the splits that it was trained with (none: all cases trained). `skill` is the classifier's on validation
    slices, as `skill_by_time` measured it; empty where these are of one kind only. Healthy validation brains and the
    slices without lesion of other validation cases give floor and threshold; failing these, such slices of training
    cases, which a model knows too well. Raises: ImageError, CheckpointError.
    """
    run.seal()  # load_healer believes sealed weights only
    healer = load_healer(run, device=device, precision=precision, calibrated=False)
    source = find_source(manifest, healer.recipe)
    measured, started = [], time.perf_counter()
    with bar("calibrating", len(source.cases)) as advance:
        for number, case in enumerate(source.cases):
            measured += [found] if (found := measure_case(case, healer)) else []
            advance(note=case.name)
            left = (time.perf_counter() - started) * (len(source.cases) - 1)
            if number == 0 and left > WORTH_SAYING_SECONDS:
                log.info("calibrating on %d more cases: about %s", len(source.cases) - 1, in_words(left))
    facts = _facts(measured, source, healer) | {"classifier": _of_classifier(skill, healer)}
    write_json(run.folder / CALIBRATION, facts)
    run.seal()
    log.info("calibrated on %s: threshold %s, round trip %s", facts["source"], facts["threshold"], facts["round_trip"])
    return run.folder / CALIBRATION


def find_source(manifest: Manifest, recipe: AnomalyRecipe) -> Source:
    """Where something healthy is to be found, the best first: at most MOST_CASES, healthy brains before the others."""
    trained = manifest.of("train") or tuple(case for case in manifest.cases if case.split is None)
    for cases, name in ((manifest.of("val"), "validation"), (trained, "training")):
        labelled = [case for case in cases if is_labelled(case)]
        healthy = [case for case in labelled if is_healthy(case, recipe)]
        marked = [case for case in labelled if case not in healthy]
        whole = spread(healthy, MOST_CASES - min(len(marked), MOST_CASES // 2))
        partly = spread(marked, MOST_CASES - len(whole))
        said = [f"healthy {name} brains ({len(whole)})"] if whole else []
        said += [f"slices without lesion of {name} cases ({len(partly)})"] if partly else []
        if labelled:
            return Source((*whole, *partly), " and ".join(said))
    return Source((), "nothing: no case is healthy or has a reference")


def is_healthy(case: Case, recipe: AnomalyRecipe) -> bool:
    """By its label, else by its reference: nothing marked that the recipe calls diseased."""
    if case.label or not is_labelled(case):
        return case.label == "healthy"
    images = read_case(case, recipe.channels)
    opinions = [labels for labels in (images.reference, images.raters) if labels is not None]
    return not any(diseased(torch.from_numpy(labels), recipe).any() for labels in opinions)


def diseased(labels: Tensor, recipe: AnomalyRecipe) -> Tensor:
    """Where integer labels [...] are those of a lesion, as the recipe counts them."""
    if recipe.diseased is None:
        return labels > 0
    return torch.isin(labels, torch.tensor(list(recipe.diseased), dtype=labels.dtype))


@dataclass(frozen=True)
class MeasuredCase:
    """Healthy voxels [N] of one case: cleaned scores of the map and of each rival, and their depth in mm; and the guards."""

    scores: dict[str, npt.NDArray[np.float32]]
    depth_mm: npt.NDArray[np.float32]
    volume: HealedVolume


def measure_case(case: Case, healer: Healer) -> MeasuredCase | None:
    """Heal a healthy brain, or the slices of a brain without lesion, which are then smoothed among themselves alone.

    None where every slice has a lesion.
    """
    recipe = healer.recipe
    prepared = prepare_case(read_case(case, recipe.channels), recipe.preparation)
    slices = recipe.view.for_sampling(prepared.brain)
    opinions = [labels for labels in (prepared.reference, prepared.raters) if labels is not None]
    if opinions:
        marked = diseased(torch.cat(opinions), recipe).flatten(0, 2).any(0)
        slices = [z for z in slices if not marked[z]]
    if not slices:
        return None
    volume = heal_volume(prepared, healer, slices=slices, rivals=True)
    region = torch.zeros_like(prepared.brain)
    region[..., slices] = prepared.brain[..., slices]
    depth_mm, inside = depth_of(prepared.brain, prepared.spacing_mm), region[0].numpy()
    maps = {"map": volume.score, **volume.rivals, **plain_baselines(prepared)}
    scores = {
        name: cleaned(score, region, recipe.findings, spacing_mm=prepared.spacing_mm)[0].numpy()[inside]
        for name, score in maps.items()
    }
    return MeasuredCase(scores, depth_mm[inside], volume)


def plain_baselines(prepared: Prepared) -> dict[str, Tensor]:
    """The raw maps [1, *S] that need no network, by name."""
    sums = {
        name: brightness(prepared.image, prepared.brain, [prepared.channels.index(channel) for channel in channels])
        for name, channels in bright_channels(prepared.channels).items()
    }
    return sums | {"blur": unlike_its_blur(prepared.image, prepared.brain, spacing_mm=prepared.spacing_mm)}


def _facts(measured: Sequence[MeasuredCase], source: Source, healer: Healer) -> dict[str, Any]:
    recipe = healer.recipe
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "source": source.words,
        "healing": recipe.healing.model_dump(mode="json"),
        "findings": recipe.findings.model_dump(mode="json"),
        "false_positive_rate": recipe.findings.false_positive_rate,
        "voxels": sum(len(each.depth_mm) for each in measured),
        "slices": sum(len(each.volume.slices) for each in measured),
    }
    if not measured:
        return facts | {
            "floor": None,
            "threshold": None,
            "rivals": {},
            "drift": None,
            "p_healthy": None,
            "called_diseased": None,
            "round_trip": {"error": None, "limit": None},
        }
    depth_mm = np.concatenate([each.depth_mm for each in measured])
    rivals = {name: _cut(measured, name, depth_mm, recipe) for name in measured[0].scores}
    own = rivals.pop("map")
    trips = [each.volume.round_trip for each in measured if each.volume.round_trip is not None]
    before = np.concatenate([each.volume.before for each in measured])
    return facts | {
        "floor": own["floor"],
        "threshold": own["threshold"],
        "rivals": rivals,
        "drift": round(float(np.concatenate([each.volume.drift for each in measured]).mean()), 5),
        "p_healthy": round(float(before.mean()), 4),
        "called_diseased": round(float((before < CALLED_HEALTHY).mean()), 4),
        "round_trip": {"error": round(float(np.mean(trips)), 5), "limit": round(TRIP_TOLERANCE * max(trips), 5)},
    }


def _cut(
    measured: Sequence[MeasuredCase], name: str, depth_mm: npt.NDArray[np.float32], recipe: AnomalyRecipe
) -> dict[str, Any]:
    """Floor and threshold of one map: above the threshold lies the stated share of healthy voxels."""
    floor = Floor.measured(np.concatenate([each.scores[name] for each in measured]), depth_mm)
    above = []
    for each in measured:
        level = floor.level_of(each.scores[name], each.depth_mm) if name in LEVELLED else 1.0
        score = torch.from_numpy(each.scores[name])[None]
        above.append(above_floor(score, each.depth_mm, recipe.findings, floor, level=level)[0].numpy())
    threshold = np.quantile(np.concatenate(above), 1 - recipe.findings.false_positive_rate)
    return {"floor": floor.facts, "threshold": round(max(float(threshold), 0.0), 6)}


def _of_classifier(skill: Sequence[Skill], healer: Healer) -> dict[str, Any]:
    """Mean over the times that healing passes, and each time's own numbers."""
    passed = [each for each in skill if each.t <= healer.healing.depth] or list(skill)

    def mean(name: str) -> float | None:
        return round(float(np.mean([getattr(each, name) for each in passed])), 4) if passed else None

    times = [{name: round(value, 4) for name, value in each._asdict().items()} for each in skill]
    return {"balanced_accuracy": mean("balanced_accuracy"), "auroc": mean("auroc"), "by_time": times}
