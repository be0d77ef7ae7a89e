"""One figure of evaluated anomaly maps: how well each lesion is found, what is marked in healthy brains, and beside what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    legend,
    mark_healthy,
    name_rows,
    panels,
    say,
    worst_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "anomaly"  # the map of the method itself, in the column `map` of per_case.csv

Rows = Sequence[Mapping[str, str]]


def anomaly_figure(summary: Mapping[str, Any], rows: Rows, words: str, png: Path) -> None:
    """Draw what metrics.json and the rows of per_case.csv say of anomaly maps; `words` is the heading.

    Raises: EnvironmentFault where `png` cannot be written.
    """
    own = [row for row in rows if row.get("map", OURS) == OURS]
    diseased = [row for row in own if _number(row, "reference_ml") > 0]
    healthy = [row for row in own if not _number(row, "reference_ml") > 0]
    figure = new_figure(2 * WIDTH + 1.0, 2 * HEIGHT + 0.35, paper="white", layout="constrained")
    lesions, marked, volumes, maps = panels(figure, 2, 2)
    dress(lesions, "Cases with a lesion")
    _draw_lesions(lesions, diseased)
    dress(marked, "False positives of healthy cases")
    mark_healthy(marked, [row["case"] for row in healthy], np.nan_to_num(_column(healthy, "false_positives_ml")))
    dress(volumes, "Score of each volume")
    _draw_scores(volumes, diseased, healthy, summary)
    dress(maps, "Beside the baselines")
    _draw_maps(maps, summary)
    figure.suptitle(words, fontsize=10, color=INK, x=0.01, ha="left")
    save_png(figure, png)


def _draw_lesions(axes: "Axes", rows: Rows) -> None:
    """Average precision of the map and Dice of its mask, the least found lesion first."""
    if not rows:
        say(axes, "no case has a lesion")
        return
    precision, dice = _column(rows, "average_precision"), _column(rows, "dice_preset")
    order = np.argsort(precision, kind="stable")[:MOST_NAMES]
    places = name_rows(axes, [rows[number]["case"] for number in order])
    axes.hlines(places, 0, 1, color=GREY, linewidth=0.4, alpha=0.6)
    axes.scatter(
        precision[order], places, s=26, color=BLUE, linewidth=0, zorder=3, label="average precision of the map"
    )
    rings: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "linewidth": 1.1, "zorder": 4}
    axes.scatter(dice[order], places, s=30, label="Dice of the mask", **rings)
    means = [
        f"{word} {np.nanmean(values):.3f}"
        for word, values in (("precision", precision), ("Dice", dice))
        if np.isfinite(values).any()
    ]
    label(axes, f"means: {', '.join(means)}", worst_of(len(order), len(rows)))
    axes.set_xlim(0, 1.02)
    legend(axes, columns=2)


def _draw_scores(axes: "Axes", diseased: Rows, healthy: Rows, summary: Mapping[str, Any]) -> None:
    """How high the score of a volume is, with and without a lesion."""
    for height, rows, colour, word in ((0, healthy, ORANGE, "healthy"), (1, diseased, BLUE, "with a lesion")):
        scores = _column(rows, "score")
        jitter = np.linspace(-0.18, 0.18, len(scores)) if len(scores) > 1 else np.zeros(len(scores))
        axes.scatter(scores, height + jitter, s=22, color=colour, linewidth=0, alpha=0.8)
        axes.text(
            0.0, height + 0.28, f"{word}: {len(rows)}", fontsize=8, color=INK, transform=axes.get_yaxis_transform()
        )
    auroc = summary["metrics"].get("auroc_of_volumes", {}).get("value")
    label(axes, "score of the volume" + ("" if auroc is None else f"; AUROC of healthy or not {auroc:.3f}"), "")
    axes.set(ylim=(-0.4, 1.5), yticks=[])
    axes.set_xlim(left=0)


def _draw_maps(axes: "Axes", summary: Mapping[str, Any]) -> None:
    """Average precision of the method and of each map that it must beat, with intervals, the best first."""
    found = {"this method": summary["metrics"].get("average_precision", {})}
    found |= {name: each.get("average_precision", {}) for name, each in summary.get("baselines", {}).items()}
    found = {name: each for name, each in found.items() if each.get("value") is not None}
    if not found:
        say(axes, "no case has a lesion")
        return
    names = sorted(found, key=lambda name: -found[name]["value"])
    places = name_rows(axes, names)
    for place, name in zip(places, names, strict=True):
        each, colour = found[name], BLUE if name == "this method" else GREY
        if each.get("low") is not None:
            axes.hlines(place, each["low"], each["high"], color=colour, linewidth=1.6)
        axes.scatter([each["value"]], [place], s=30, color=colour, zorder=3)
    without = "" if len(found) > 1 else "\n`anomaly --baselines` adds others"
    label(axes, f"average precision, 95 % interval{without}", "")
    axes.set_xlim(0, 1.02)


def _number(row: Mapping[str, str], name: str) -> float:
    return float(row.get(name) or "nan")


def _column(rows: Rows, name: str) -> Floats:
    return np.array([_number(row, name) for row in rows], dtype=float)
