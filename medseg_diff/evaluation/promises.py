"""What a segmentation promised, and whether it held: intervals of volumes, masks that miss little, presence of a lesion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg_diff.data.results import CaseResult
from medseg_diff.errors import UsageError
from medseg_diff.evaluation.summary import Mask, Values, mean

SHOWN_LEVEL = 0.9  # of the intervals that are drawn, and that width90_ml is about
COVERAGE = "coverage"  # and the level in percent: names of values


def promises_kept(result: CaseResult, region: str, reference: Mask, reference_ml: float) -> Values:
    """Of one case and region: whether its intervals hold the true volume, which share of the lesion lies outside the
    guaranteed mask, the squared error of the probability of a lesion, and how unlike the training's the scan is. Without
    what was not promised.

    Raises: UsageError where case.json is not what was written; ImageError where the mask is damaged.
    """
    try:
        stated = _stated(result.facts, region, reference_ml)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise UsageError(
            "case.json has changed since it was written", fix="run `medseg-diff segment` again", case=result.name
        ) from None
    return stated | _guaranteed(result, region, reference)


def _stated(facts: Mapping[str, Any], region: str, true_ml: float) -> Values:
    """What follows from case.json and the true volume."""
    values: Values = {}
    for each in facts.get("volume_ml", {}).get(region, {}).get("intervals", ()):
        level, low, high = (float(each[name]) for name in ("level", "low", "high"))
        values[f"{COVERAGE}{100 * level:.0f}"] = float(low <= true_ml <= high)
        if level == SHOWN_LEVEL:
            values |= {"low90_ml": low, "high90_ml": high, "width90_ml": high - low}
    if (said := facts.get("lesion_presence", {}).get(region, {}).get("probability")) is not None:
        values["presence_brier"] = (float(said) - (true_ml > 0)) ** 2
    if typicality := facts.get("typicality"):
        ratio = float(typicality["score"]) / float(typicality["threshold"])
        values |= {"typicality": ratio, "atypical": float(ratio > 1)}
    return values


def _guaranteed(result: CaseResult, region: str, reference: Mask) -> Values:
    """How much of a lesion the guaranteed mask misses, and how many times as large it is."""
    marked = result.map("guaranteed_mask", region) if reference.any() else None
    if marked is None:
        return {}
    inside, voxels = marked > 0, np.count_nonzero(reference)
    missed = 1 - np.count_nonzero(inside & reference) / voxels
    return {"guaranteed_missed": float(missed), "guaranteed_ratio": float(np.count_nonzero(inside) / voxels)}


def coverage_curve(values: Sequence[Values]) -> dict[str, list[float]]:
    """`coverage`: the share of the cases whose interval holds, by the `level` at which it was said to; empty without any."""
    names = {name for each in values for name in each if name.startswith(COVERAGE)}
    levels = sorted(int(name.removeprefix(COVERAGE)) for name in names)
    held = [mean([each.get(f"{COVERAGE}{level}") for each in values]) or 0.0 for level in levels]
    return {"level": [level / 100 for level in levels], "coverage": [round(share, 6) for share in held]} if held else {}
