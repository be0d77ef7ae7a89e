"""One figure of an evaluated folder: whether its probability and its doubt can be believed, its masks and volumes trusted.

A picture for paper: dark on white, two rows for each region. Everything comes from metrics.json and per_case.csv.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg_diff.errors import UsageError, counted
from medseg_diff.files import read_json
from medseg_diff.reporting.panels import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

INK, GREY, BLUE, ORANGE = "#1c1e21", "#9aa0a6", "#1f77b4", "#d9730d"
WIDTH, HEIGHT = 11.5, 3.3  # inches, a row
ROWS, COLUMNS = 2, 3  # of panels, for each region
LIMITS = 1.96  # standard deviations to each side of the bias (Bland and Altman 1986)
FEWEST_FOR_LIMITS = 3
SMALLEST_RISK = 1e-7


@dataclass(frozen=True)
class Region:
    """What is drawn of one region: its curves as metrics.json has them, and columns of per_case.csv, NaN where undefined."""

    name: str
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    metrics: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Floats]


def evaluation_figure(folder: Path, png: Path) -> None:
    """Draw the metrics.json and per_case.csv of `folder`: reliability, risk–coverage, Dice by case, volume agreement,
    intervals of volumes, and how unlike the training's the scans are.

    Raises: UsageError where they are missing or not those of a segmentation, EnvironmentFault where `png` cannot be written.
    """
    summary, regions = _read(folder)
    rows = ROWS * len(regions)
    figure = new_figure(WIDTH, HEIGHT * rows + 0.35, paper="white", layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).reshape(len(regions), ROWS * COLUMNS)
    for row, region in zip(grid, regions, strict=True):
        for axes, (title, draw) in zip(row, PANELS.items(), strict=True):
            axes.set_title(f"{title}: {region.name}" if len(regions) > 1 else title, fontsize=9.5, color=INK)
            axes.tick_params(labelsize=8, colors=INK)
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes, region)
    words = f"{summary['data']}, {counted(summary['cases'], 'case')} of {counted(summary['patients'], 'patient')}"
    figure.suptitle(words, fontsize=10, color=INK, x=0.01, ha="left")
    save_png(figure, png)


def _draw_reliability(axes: "Axes", region: Region) -> None:
    """Frequency against probability, the area of a dot by how many voxels it stands for."""
    if not any(kind in region.curves for kind in ("reliability", "reliability_calibrated")):
        _say(axes, "no probability was written")
        return
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect")
    # Of the mean, the calibration of the voxels in doubt: that of a whole brain is small whatever is said of them.
    kinds = (
        ("reliability", "ece_band", BLUE, "mean", "ECE in doubt"),
        ("reliability_calibrated", "ece_calibrated", ORANGE, "calibrated", "ECE"),
    )
    for kind, metric, colour, word, measure in kinds:
        curve = region.curves.get(kind)
        if curve is None:
            continue
        voxels = np.asarray(curve["voxels"], dtype=float)
        size = 8 + 70 * np.log1p(voxels) / np.log1p(voxels.max())
        ece = region.metrics.get(metric, {}).get("value")
        label = f"{word}, {measure} {ece:.3g}" if ece is not None else word
        axes.plot(curve["probability"], curve["frequency"], color=colour, linewidth=1.2)
        axes.scatter(
            curve["probability"], curve["frequency"], s=size, color=colour, alpha=0.8, linewidth=0, label=label
        )
    _label(axes, "predicted probability", "share of voxels in the reference")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    _legend(axes, "best")


def _draw_risk(axes: "Axes", region: Region) -> None:
    """Error rate of the most certain share of the voxels; the last point is the error rate of all."""
    curve = region.curves.get("risk_coverage")
    if curve is None:
        _say(axes, "no uncertainty was written")
        return
    risk = np.asarray(curve["risk"], dtype=float)
    aurc = region.metrics.get("aurc", {}).get("value")
    label = "voxels by uncertainty" + (f", AURC {aurc:.2g}" if aurc is not None else "")
    axes.plot(curve["coverage"], 100 * risk, color=BLUE, linewidth=1.6, label=label)
    axes.axhline(100 * risk[-1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="voxels in any order")
    _label(axes, "coverage: share of the brain, most certain first", "wrong voxels (%)")
    axes.set(xlim=(0, 1.02), ylim=(0, 130 * max(float(risk.max()), SMALLEST_RISK)))
    _legend(axes, "upper left")


def _draw_dice(axes: "Axes", region: Region) -> None:
    """Cases with a lesion, worst first: a dot for each, the larger the lesion the larger the dot; raters as rings."""
    from matplotlib.ticker import MaxNLocator

    counted = region.columns["reference_ml"] > 0
    dice, raters = (region.columns[name][counted] for name in ("dice", "dice_raters"))
    volume = region.columns["reference_ml"][counted]
    if not len(dice):
        _say(axes, "no case has a lesion")
        return
    order = np.argsort(dice, kind="stable")
    places = np.arange(1, len(dice) + 1)
    size = 12 + 60 * np.sqrt(volume[order] / volume.max())
    axes.vlines(places, 0, dice[order], color=GREY, linewidth=0.6, alpha=0.7)
    label = f"reference (dot: up to {volume.max():.3g} ml)"
    axes.scatter(places, dice[order], s=size, color=BLUE, linewidth=0, zorder=3, label=label)
    if np.isfinite(raters).any():
        rings: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "linewidth": 1.1, "zorder": 4}
        axes.scatter(places, raters[order], s=26, label="raters, mean", **rings)
    axes.axhline(dice.mean(), color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=f"mean {dice.mean():.3f}")
    _label(axes, "case, worst first", "Dice")
    axes.set(xlim=(0.3, len(dice) + 0.7), ylim=(0, 1.45), yticks=np.arange(6) / 5)  # the legend stands above 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(axes, "upper left")


def _draw_volumes(axes: "Axes", region: Region) -> None:
    """Bland and Altman: mask minus reference against the mean of both, with the bias and the limits of agreement."""
    reference = region.columns["reference_ml"]
    difference = region.columns["volume_bias_ml"]
    axes.scatter(reference + difference / 2, difference, s=22, color=BLUE, linewidth=0, zorder=3)
    bias = float(difference.mean())
    lines = [(bias, "-", f"bias {bias:+.2f} ml")]
    if len(difference) >= FEWEST_FOR_LIMITS:
        spread = LIMITS * float(difference.std(ddof=1))
        lines.append((bias + spread, ":", f"bias ± {LIMITS} SD: {bias - spread:+.2f} to {bias + spread:+.2f} ml"))
        axes.axhline(bias - spread, color=INK, linewidth=0.9, linestyle=":")
    for height, style, label in lines:
        axes.axhline(height, color=INK, linewidth=0.9, linestyle=style, label=label)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    _label(axes, "mean of mask and reference (ml)", "mask − reference (ml)")
    axes.margins(x=0.08, y=0.35)
    _legend(axes, "upper left")


def _draw_intervals(axes: "Axes", region: Region) -> None:
    """Volumes with their 90 % intervals, smallest first, and where the true one lies."""
    low, high, true = (region.columns[name] for name in ("low90_ml", "high90_ml", "reference_ml"))
    stated = np.isfinite(low)
    if not stated.any():
        _say(axes, "no interval: its model is no study of folds,\nor on too few patients")
        return
    mask = (true + region.columns["volume_bias_ml"])[stated]
    order = np.argsort(mask, kind="stable")
    low, high, true = (values[stated][order] for values in (low, high, true))
    inside, places = (low <= true) & (true <= high), np.arange(1, len(low) + 1)
    axes.vlines(places, low, high, color=GREY, linewidth=1.6, alpha=0.8, label="90 % interval")
    for which, colour, word in ((inside, BLUE, "true volume inside"), (~inside, ORANGE, "outside")):
        label = f"{word}: {np.count_nonzero(which)} of {len(true)}"
        axes.scatter(places[which], true[which], s=12, color=colour, linewidth=0, zorder=3, label=label)
    _label(axes, "case, smallest mask first", "volume (ml)")
    axes.set(yscale="symlog", ylim=(0, 12 * max(high.max(), true.max(), 1)))  # the legend stands above
    _legend(axes, "upper left")


def _draw_typicality(axes: "Axes", region: Region) -> None:
    """Dice over how unlike the training's a scan is; to the right of the line `segment` warned."""
    unlike = region.columns["typicality"]
    if not np.isfinite(unlike).any():
        _say(axes, "nothing known of the training's scans")
        return
    counted = (region.columns["reference_ml"] > 0) & np.isfinite(unlike)
    axes.scatter(unlike[counted], region.columns["dice"][counted], s=18, color=BLUE, linewidth=0, label="with a lesion")
    healthy = ~counted & np.isfinite(unlike)
    if healthy.any():
        axes.plot(unlike[healthy], np.full(healthy.sum(), -0.04), "|", color=ORANGE, label="without")
    warned = np.count_nonzero(unlike > 1)
    axes.axvline(1, color=INK, linewidth=0.9, linestyle=":", label=f"warned: {warned} of {np.isfinite(unlike).sum()}")
    _label(axes, "score over its threshold", "Dice")
    axes.set(xlim=(0, 1.1 * max(1.2, float(np.nanmax(unlike)))), ylim=(-0.08, 1.45), yticks=np.arange(6) / 5)
    _legend(axes, "upper left")


PANELS = {
    "Reliability": _draw_reliability,
    "Risk–coverage": _draw_risk,
    "Dice of each case": _draw_dice,
    "Volume agreement": _draw_volumes,
    "Intervals of volumes": _draw_intervals,
    "Scans unlike the training's": _draw_typicality,
}


def _label(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=8.5, color=INK)
    axes.set_ylabel(up, fontsize=8.5, color=INK)


def _legend(axes: "Axes", place: Literal["best", "upper left"]) -> None:
    axes.legend(loc=place, fontsize=7.5, labelcolor=INK, frameon=True, framealpha=0.85, edgecolor="none")


def _say(axes: "Axes", words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=8.5, color=GREY)
    axes.set(xticks=[], yticks=[])


def _read(folder: Path) -> tuple[dict[str, Any], list[Region]]:
    """metrics.json, and what is drawn of each region."""
    try:
        summary = read_json(folder / "metrics.json")
        with (folder / "per_case.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = list(dict.fromkeys(row["region"] for row in rows))
        return summary, [_region(name, summary, [row for row in rows if row["region"] == name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            "holds no metrics.json and per_case.csv of a segmentation",
            fix="run `medseg-diff evaluate` on it",
            file=folder.name,
        ) from None


def _region(name: str, summary: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> Region:
    curves, metrics = summary["curves"], summary["metrics"]
    own = {key.removeprefix(f"{name}_"): value for key, value in metrics.items() if key.startswith(f"{name}_")}
    columns, newer = ("reference_ml", "dice", "dice_raters", "volume_bias_ml"), ("low90_ml", "high90_ml", "typicality")
    numbers = {column: np.array([float(row[column] or "nan") for row in rows]) for column in columns}
    numbers |= {column: np.array([float(row.get(column) or "nan") for row in rows]) for column in newer}
    return Region(name, curves[name], own if len(curves) > 1 else metrics, numbers)
