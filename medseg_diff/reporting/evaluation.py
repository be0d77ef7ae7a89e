"""One figure of an evaluated folder: of a segmentation whether probability, doubt, masks and volumes can be trusted.

Anomaly maps: `evaluation_anomaly`. A picture for paper: dark on white, two rows for each region. Everything comes from
metrics.json and per_case.csv.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg_diff.errors import UsageError, counted
from medseg_diff.files import read_json
from medseg_diff.reporting.evaluation_anomaly import anomaly_figure
from medseg_diff.reporting.panels import new_figure, save_png
from medseg_diff.reporting.paper import (
    BLUE,
    GREY,
    HEIGHT,
    INK,
    MOST_NAMES,
    ORANGE,
    WIDTH,
    Floats,
    dress,
    label,
    lay_reliability,
    legend,
    mark_healthy,
    mark_reliability,
    mark_risk,
    name_points,
    name_rows,
    panels,
    say,
    worst_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS, COLUMNS = 2, 4  # of panels, for each region
LIMITS = 1.96  # standard deviations to each side of the bias (Bland and Altman 1986)
FEWEST_FOR_LIMITS = 3


@dataclass(frozen=True)
class Region:
    """What is drawn of one region: its curves as metrics.json has them, the names of the cases, and columns of per_case.csv,
    NaN where undefined."""

    name: str
    cases: Sequence[str]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    metrics: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Floats]


def evaluation_figure(folder: Path, png: Path) -> None:
    """Draw the metrics.json and per_case.csv of `folder`: reliability, risk–coverage, Dice by case, what is marked in
    healthy cases, volume agreement, intervals of volumes, and how unlike the training's the scans are.

    Raises: UsageError where they are missing or damaged, EnvironmentFault where `png` cannot be written.
    """
    summary, rows = _read(folder)
    words = f"{summary['data']}, {counted(summary['cases'], 'case')} of {counted(summary['patients'], 'patient')}"
    if summary.get("task") == "anomaly":
        anomaly_figure(summary, rows, words, png)
        return
    regions = _regions(summary, rows, folder)
    figure = new_figure(WIDTH * COLUMNS, HEIGHT * ROWS * len(regions) + 0.35, paper="white", layout="constrained")
    grid = iter(panels(figure, ROWS * len(regions), COLUMNS))
    for region in regions:
        for title, draw in PANELS.items():
            axes = next(grid)
            dress(axes, f"{title}: {region.name}" if len(regions) > 1 else title)
            draw(axes, region)
        for _ in range(ROWS * COLUMNS - len(PANELS)):
            next(grid).set_visible(False)
    figure.suptitle(words, fontsize=10, color=INK, x=0.01, ha="left")
    save_png(figure, png)


def _draw_reliability(axes: "Axes", region: Region) -> None:
    """Of the mean of the members, and of the calibrated map where there is one."""
    if not any(kind in region.curves for kind in ("reliability", "reliability_calibrated")):
        say(axes, "no probability was written")
        return
    lay_reliability(axes)
    # Of the mean, the calibration of the voxels in doubt: that of a whole brain is small whatever is said of them.
    kinds = (
        ("reliability", "ece_band", BLUE, "mean", "ECE in doubt"),
        ("reliability_calibrated", "ece_calibrated", ORANGE, "calibrated", "ECE"),
    )
    for kind, metric, colour, word, measure in kinds:
        curve = region.curves.get(kind)
        if curve is None:
            continue
        ece = region.metrics.get(metric, {}).get("value")
        mark_reliability(axes, curve, f"{word}, {measure} {ece:.3g}" if ece is not None else word, colour)
    axes.set_aspect("equal")
    legend(axes)


def _draw_risk(axes: "Axes", region: Region) -> None:
    """With the area below the curve in words."""
    curve = region.curves.get("risk_coverage")
    if curve is None:
        say(axes, "no uncertainty was written")
        return
    aurc = region.metrics.get("aurc", {}).get("value")
    mark_risk(axes, curve, "voxels by uncertainty" + (f", AURC {aurc:.2g}" if aurc is not None else ""))
    legend(axes)


def _draw_dice(axes: "Axes", region: Region) -> None:
    """Cases with a lesion, worst first: a dot for each, the larger the lesion the larger the dot; raters as rings."""
    diseased = region.columns["reference_ml"] > 0
    dice, raters, volume = (region.columns[name][diseased] for name in ("dice", "dice_raters", "reference_ml"))
    if not len(dice):
        say(axes, "no case has a lesion")
        return
    names = [name for name, kept in zip(region.cases, diseased, strict=True) if kept]
    order = np.argsort(dice, kind="stable")[:MOST_NAMES]
    places = name_rows(axes, [names[number] for number in order])
    size = 12 + 60 * np.sqrt(volume[order] / volume.max())
    axes.hlines(places, 0, dice[order], color=GREY, linewidth=0.6, alpha=0.7)
    words = f"reference (dot: up to {volume.max():.3g} ml)"
    axes.scatter(dice[order], places, s=size, color=BLUE, linewidth=0, zorder=3, label=words)
    if np.isfinite(raters).any():
        rings: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "linewidth": 1.1, "zorder": 4}
        axes.scatter(raters[order], places, s=26, label="raters, mean", **rings)
    axes.axvline(dice.mean(), color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=f"mean {dice.mean():.3f}")
    label(axes, "Dice", worst_of(len(order), len(dice)))
    axes.set_xlim(0, 1.02)
    legend(axes, columns=2)


def _draw_healthy(axes: "Axes", region: Region) -> None:
    """A case without a lesion has no Dice: what is marked there all the same."""
    healthy = region.columns["reference_ml"] == 0
    names = [name for name, kept in zip(region.cases, healthy, strict=True) if kept]
    mark_healthy(axes, names, region.columns["volume_bias_ml"][healthy])


def _draw_volumes(axes: "Axes", region: Region) -> None:
    """Bland and Altman: mask minus reference against the mean of both, with the bias and the limits of agreement."""
    reference = region.columns["reference_ml"]
    difference = region.columns["volume_bias_ml"]
    axes.scatter(reference + difference / 2, difference, s=22, color=BLUE, linewidth=0, zorder=3)
    bias, spread = float(difference.mean()), np.inf
    lines = [(bias, "-", f"bias {bias:+.2f} ml")]
    if len(difference) >= FEWEST_FOR_LIMITS:
        spread = LIMITS * float(difference.std(ddof=1))
        lines.append((bias + spread, ":", f"bias ± {LIMITS} SD: {bias - spread:+.2f} to {bias + spread:+.2f} ml"))
        axes.axhline(bias - spread, color=INK, linewidth=0.9, linestyle=":")
    for height, style, words in lines:
        axes.axhline(height, color=INK, linewidth=0.9, linestyle=style, label=words)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    odd = np.abs(difference - bias) > spread
    names = [name for name, far in zip(region.cases, odd, strict=True) if far][:MOST_NAMES]
    name_points(axes, names, (reference + difference / 2)[odd][:MOST_NAMES], difference[odd][:MOST_NAMES])
    label(axes, "mean of mask and reference (ml)", "mask − reference (ml)")
    axes.margins(x=0.1, y=0.15)
    legend(axes)


def _draw_intervals(axes: "Axes", region: Region) -> None:
    """Volumes with their 90 % intervals, smallest first, and where the true one lies."""
    low, high, true = (region.columns[name] for name in ("low90_ml", "high90_ml", "reference_ml"))
    stated = np.isfinite(low)
    if not stated.any():
        say(axes, "no interval: the model is not a study of folds,\nor has too few patients")
        return
    mask = (true + region.columns["volume_bias_ml"])[stated]
    order = np.argsort(mask, kind="stable")
    low, high, true = (values[stated][order] for values in (low, high, true))
    names = [name for name, kept in zip(region.cases, stated, strict=True) if kept]
    inside, places = (low <= true) & (true <= high), name_rows(axes, [names[number] for number in order])
    axes.hlines(places, low, high, color=GREY, linewidth=1.6, alpha=0.8, label="90 % interval")
    for which, colour, word in ((inside, BLUE, "true volume inside"), (~inside, ORANGE, "outside")):
        words = f"{word}: {np.count_nonzero(which)} of {len(true)}"
        axes.scatter(true[which], places[which], s=12, color=colour, linewidth=0, zorder=3, label=words)
    few = len(true) <= MOST_NAMES
    label(axes, "volume (ml)", "" if few else f"{len(true)} cases, smallest mask first")
    axes.set(xscale="symlog", xlim=(0, 1.5 * max(high.max(), true.max(), 1)))
    legend(axes, columns=2)


def _draw_typicality(axes: "Axes", region: Region) -> None:
    """Dice over how unlike the training's a scan is; to the right of the line `segment` warned."""
    unlike = region.columns["typicality"]
    if not np.isfinite(unlike).any():
        say(axes, "nothing known about the training scans")
        return
    diseased = (region.columns["reference_ml"] > 0) & np.isfinite(unlike)
    axes.scatter(
        unlike[diseased], region.columns["dice"][diseased], s=18, color=BLUE, linewidth=0, label="with a lesion"
    )
    healthy = ~diseased & np.isfinite(unlike)
    if healthy.any():
        axes.plot(unlike[healthy], np.full(healthy.sum(), -0.04), "|", color=ORANGE, label="without")
    warned = np.count_nonzero(unlike > 1)
    height = np.where(diseased, region.columns["dice"], -0.04)
    names = [name for name, odd in zip(region.cases, unlike > 1, strict=True) if odd][:MOST_NAMES]
    name_points(axes, names, unlike[unlike > 1][:MOST_NAMES], height[unlike > 1][:MOST_NAMES])
    axes.axvline(1, color=INK, linewidth=0.9, linestyle=":", label=f"warned: {warned} of {np.isfinite(unlike).sum()}")
    label(axes, "score over its threshold", "Dice")
    axes.set(xlim=(0, 1.1 * max(1.2, float(np.nanmax(unlike)))), ylim=(-0.08, 1.02))
    legend(axes)


PANELS = {
    "Reliability": _draw_reliability,
    "Risk–coverage": _draw_risk,
    "Dice of cases with a lesion": _draw_dice,
    "False positives of healthy cases": _draw_healthy,
    "Volume agreement": _draw_volumes,
    "Intervals of volumes": _draw_intervals,
    "Scans unlike the training scans": _draw_typicality,
}


def _read(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """metrics.json, and the rows of per_case.csv. Raises: UsageError."""
    try:
        summary = read_json(folder / "metrics.json")
        with (folder / "per_case.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not {"data", "cases", "patients", "metrics"} <= set(summary):
            raise ValueError("metrics.json")
        return summary, rows
    except (OSError, ValueError, TypeError):
        raise _no_evaluation(folder) from None


def _no_evaluation(folder: Path) -> UsageError:
    found = "holds no metrics.json and per_case.csv of an evaluation"
    return UsageError(found, fix="run `medseg-diff evaluate` on it", file=folder.name)


def _regions(summary: Mapping[str, Any], rows: Sequence[Mapping[str, str]], folder: Path) -> list[Region]:
    try:
        names = list(dict.fromkeys(row["region"] for row in rows))
        return [_region(name, summary, [row for row in rows if row["region"] == name]) for name in names]
    except (ValueError, KeyError, TypeError):
        raise _no_evaluation(folder) from None


def _region(name: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> Region:
    curves, metrics = summary["curves"], summary["metrics"]
    own = {key.removeprefix(f"{name}_"): value for key, value in metrics.items() if key.startswith(f"{name}_")}
    columns, newer = ("reference_ml", "dice", "dice_raters", "volume_bias_ml"), ("low90_ml", "high90_ml", "typicality")
    numbers = {column: np.array([float(row[column] or "nan") for row in rows]) for column in columns}
    numbers |= {column: np.array([float(row.get(column) or "nan") for row in rows]) for column in newer}
    return Region(name, [row["case"] for row in rows], curves[name], own if len(curves) > 1 else metrics, numbers)
