"""`anomaly --sweep`: depths, steps and scales of the healing tried on a few slices, drawn, and one of them recommended."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_diff.console import bar, log
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import prepare_case
from medseg_diff.device import autocast, halved_to_fit, less_at_once
from medseg_diff.files import write_table, write_text
from medseg_diff.methods.anomaly.inversion import HealingSettings
from medseg_diff.methods.anomaly.normative import cleaned, depth_of, top_mean
from medseg_diff.metrics.anomaly import rank
from medseg_diff.reporting.sweep import draw_sweep
from medseg_diff.tasks.apply.anomaly_volume import Frame
from medseg_diff.tasks.apply.healer import Healer
from medseg_diff.tasks.train.normative import diseased
from medseg_diff.training.estimate import in_words

MOST_CASES, SLICES = 3, 12
FACTORS = {"depth": (0.5, 1.0, 2.0), "steps": (0.5, 1.0, 2.0), "scale": (0.3, 1.0, 3.0)}  # of the recipe's own
AS_GOOD = 0.005  # AUROC, or share of the contrast, that is not worth a pass
COLUMNS = ("depth", "steps", "scale", "calls", "drift", "p_healthy", "contrast", "auroc", "average_precision", "dice")


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


def sweep_anomaly(cases: Sequence[Case], healer: Healer, out: Path, *, resample_to: str | None = None) -> Path:
    """Try every setting on slices of at most three of the cases; OUT/{sweep.csv, sweep.png, recommended.txt}; returns OUT.

    With references the best AUROC wins, of settings that are as good the cheapest; without any, the largest contrast
    between the slices that the classifier calls diseased and healthy. Raises: ImageError.
    """
    slices = read_slices(cases, healer, resample_to=resample_to)
    settings = grid_of(healer)
    rows: list[dict[str, Any]] = []
    with bar("sweeping", sum(each.steps for each in settings)) as advance:
        for number, healing in enumerate(settings):
            started = time.perf_counter()
            rows.append(_try_in_memory(slices, replace(healer, healing=healing)))
            advance(healing.steps, note=f"L = {healing.depth}")
            if number == 0:
                left = (time.perf_counter() - started) * sum(each.steps for each in settings[1:]) / healing.steps
                log.info("%d settings on %d slices: about %s", len(settings), len(slices.image), in_words(left))
    write_table(out / "sweep.csv", COLUMNS, [[_cell(row[name]) for name in COLUMNS] for row in rows])
    draw_sweep(out / "sweep.csv", out / "sweep.png")
    best = recommended(rows)
    words = " ".join(f"healing.{name}={best[name]:g}" for name in ("depth", "steps", "scale"))
    write_text(out / "recommended.txt", words + "\n")
    measure = "contrast" if best["auroc"] is None else "auroc"
    log.info("recommended, with %s %.3f and drift %.3f: %s", measure, best[measure], best["drift"], words)
    return out


def grid_of(healer: Healer) -> list[HealingSettings]:
    """The recipe's own depth, steps and scale, and a smaller and a larger one of each, as far as they fit; each once."""
    own, deepest = healer.healing, healer.recipe.deepest or healer.recipe.schedule.length
    depths = [min(max(round(own.depth * factor), 1), deepest) for factor in FACTORS["depth"]]
    steps = [max(round(own.steps * factor), 1) for factor in FACTORS["steps"]]
    found = {
        (depth, min(n, depth), own.scale * factor)
        for depth, n, factor in itertools.product(depths, steps, FACTORS["scale"])
    }
    return [own.but(depth=depth, steps=n, scale=scale) for depth, n, scale in sorted(found)]


def read_slices(cases: Sequence[Case], healer: Healer, *, resample_to: str | None) -> Slices:
    """As many slices of each of the first cases: half of them with a lesion where the reference knows, spread evenly."""
    chosen = cases[:MOST_CASES]
    share = SLICES // len(chosen)
    known = all(case.seg for case in chosen)
    recipe, view = healer.recipe, healer.recipe.view
    parts: list[Slices] = []
    for case in chosen:
        images = read_case(case, recipe.channels, reference=known, resample_to=resample_to)
        prepared = prepare_case(images, recipe.preparation)
        lesion = diseased(prepared.reference, recipe) if known and prepared.reference is not None else None
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


def try_setting(slices: Slices, healer: Healer) -> dict[str, Any]:
    """One row of the table: what a setting does to the slices, whose maps are cleaned each in its own plane."""
    found: dict[str, Any] = {name: getattr(healer.healing, name) for name in ("depth", "steps", "scale")}
    found["calls"] = healer.healing.passes["denoiser"]
    maps, before, after = [], [], []
    with autocast(healer.device, healer.precision):
        for image in slices.image.split(healer.healing.network_batch):
            batch = image.to(healer.device)
            healed = healer.heal(batch)
            assert healed.before is not None and healed.believed is not None
            maps += list(healer.difference(batch, healed.healed).cpu())
            before += healed.before.tolist()
            after += healed.believed[-1].tolist()
    scores = [
        cleaned(frame.take(score[None])[0], brain, healer.recipe.findings, spacing_mm=spacing_mm)
        for score, brain, frame, spacing_mm in zip(maps, slices.brain, slices.frames, slices.spacing_mm, strict=True)
    ]
    return found | _numbers(slices, scores, np.array(before), np.array(after))


def _try_in_memory(slices: Slices, healer: Healer) -> dict[str, Any]:
    """`try_setting` with as many slices in a pass of the networks as the memory holds. Raises: OutOfMemory."""
    wanted = healer.healing.network_batch
    row, batch = halved_to_fit(lambda batch: try_setting(slices, healer.at_once(batch)), wanted)
    if batch < wanted:
        log.warning("L = %d: %s", healer.healing.depth, less_at_once(batch, wanted))
    return row


def recommended(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cheapest of the rows that are as good as the best; of equally cheap ones that with the least drift."""
    name = "auroc" if rows[0]["auroc"] is not None else "contrast"
    best = max(row[name] for row in rows)
    margin = AS_GOOD if name == "auroc" else AS_GOOD * abs(best)
    good = [row for row in rows if row[name] >= best - margin]
    return min(good, key=lambda row: (row["calls"], row["drift"]))


def _numbers(slices: Slices, scores: Sequence[Tensor], before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Drift of healthy slices, contrast, p(healthy) after, and with references AUROC, average precision and best Dice."""
    sick = before < 0.5 if slices.lesion is None else np.array([bool(lesion.any()) for lesion in slices.lesion])
    if sick.all() or not sick.any():  # then the likelier half stands for one of them
        sick = before < np.median(before)
    values = [score[inner].numpy() for score, inner in zip(scores, slices.inner, strict=True)]
    drift = float(np.mean([value.mean() for value, ill in zip(values, sick, strict=True) if not ill and value.size]))
    tops = np.array([top_mean(value) for value in values])
    found: dict[str, Any] = {
        "drift": drift,
        "p_healthy": float(after[sick].mean()) if sick.any() else None,
        "contrast": float(tops[sick].mean() / max(tops[~sick].mean(), 1e-6)) if sick.any() else 1.0,
    }
    if slices.lesion is None or not any(lesion.any() for lesion in slices.lesion):
        return found | dict.fromkeys(("auroc", "average_precision", "dice"))
    truth = [lesion[inner].numpy() for lesion, inner in zip(slices.lesion, slices.inner, strict=True)]
    ranking = rank(np.concatenate(values), np.concatenate(truth))
    dice = float(ranking.dice_at(np.quantile(np.concatenate(values), np.linspace(0.5, 1, 201))).max())
    return found | {"auroc": ranking.auroc(), "average_precision": ranking.average_precision(), "dice": dice}


def _places(slices: Sequence[int], lesion: Tensor | None, count: int) -> list[int]:
    """Slices spread evenly; where the lesion [1, X, Y, Z] is known, half of them with it."""

    def spread(candidates: Sequence[int], n: int) -> list[int]:
        places = np.linspace(0, len(candidates) - 1, min(n, len(candidates))).round().astype(int)
        return [candidates[place] for place in places]

    if lesion is None:
        return spread(slices, count)
    ill = lesion[0].flatten(0, 1).any(0)
    first = spread([z for z in slices if ill[z]], count - count // 2)
    return sorted(first + spread([z for z in slices if not ill[z]], count - len(first)))


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
