"""How well a noisy classifier tells slices apart, time by time, drawn from a run's classifier.csv."""

import csv
from pathlib import Path

from medseg_diff.errors import UsageError
from medseg_diff.reporting.panels import FAINT, INK, PAPER, dark_figure, save_png

CHANCE = 0.5
COLOURS = {"auroc": "#4fc3f7", "balanced_accuracy": "#f5a623"}
NAMES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}


def draw_skill(table: Path, png: Path) -> None:
    """AUROC and balanced accuracy against t, above the line of chance. Raises: UsageError for another table."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        curves = {name: [row[name] for row in rows] for name in ("t", *NAMES)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"is no table of a classifier's skill ({error})", fix="give a run's classifier.csv", file=table.name
        ) from None
    figure = dark_figure(4.6, 3.0)
    axes = figure.add_axes((0.13, 0.17, 0.83, 0.78))
    axes.set_facecolor(PAPER)
    for name, words in NAMES.items():
        axes.plot(curves["t"], curves[name], color=COLOURS[name], linewidth=1.5, marker="o", markersize=3, label=words)
    axes.axhline(CHANCE, color=FAINT, linewidth=0.8, linestyle="--")
    axes.text(max(curves["t"]), CHANCE + 0.01, "chance", color=INK, fontsize=7, ha="right")
    axes.set_ylim(min(0.45, *curves["auroc"], *curves["balanced_accuracy"]), 1.01)
    axes.set_xlabel("time t (0 is the image, more is noisier)", color=INK, fontsize=8)
    axes.set_ylabel("on validation slices", color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=7, width=0.5)
    axes.grid(color=FAINT, linewidth=0.3, alpha=0.6)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    save_png(figure, png)
