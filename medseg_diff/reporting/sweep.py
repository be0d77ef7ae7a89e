"""A sweep of the healing drawn from its table: how well lesions stand out, and how far healthy slices drift."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from medseg_diff.errors import UsageError
from medseg_diff.reporting.panels import FAINT, INK, PAPER, dark_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4fc3f7", "#f5a623", "#8fd694", "#e58fb1")
TITLES = {"auroc": "AUROC", "contrast": "Contrast, diseased against healthy", "drift": "Drift of healthy slices"}


def draw_sweep(table: Path, png: Path) -> None:
    """A column for each number of steps; above AUROC (contrast without references), below the drift; a line a depth.

    Raises: UsageError where the table is empty, EnvironmentFault where `png` cannot be written.
    """
    with table.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise UsageError("holds no setting", fix="sweep again", file=table.name)
    measure = "contrast" if rows[0]["auroc"] is None else "auroc"
    steps = sorted({row["steps"] for row in rows if row["steps"] is not None})
    figure = dark_figure(2.6 * len(steps) + 0.6, 4.6)
    for line, name in enumerate((measure, "drift")):
        limits = [value for row in rows if (value := row[name]) is not None]
        for column, count in enumerate(steps):
            axes = figure.add_subplot(2, len(steps), line * len(steps) + column + 1)
            _draw(axes, [row for row in rows if row["steps"] == count], name)
            margin = 0.05 * (max(limits) - min(limits)) or 0.01
            axes.set_ylim(min(limits) - margin, max(limits) + margin)
            if line == 0:
                axes.set_title(f"{count:g} steps", color=INK, fontsize=9)
            if column == 0:
                axes.set_ylabel(TITLES[name], color=INK, fontsize=8)
    figure.tight_layout(pad=1.0)
    save_png(figure, png)


def _draw(axes: "Axes", rows: list[dict[str, float | None]], name: str) -> None:
    depths = sorted({row["depth"] for row in rows if row["depth"] is not None})
    for number, depth in enumerate(depths):
        points = sorted((row["scale"], row[name]) for row in rows if row["depth"] == depth)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            *zip(*points, strict=True), color=colour, linewidth=1.4, marker="o", markersize=3, label=f"L = {depth:g}"
        )
    axes.set_facecolor(PAPER)
    axes.set_xscale("log")
    axes.set_xticks(sorted({row["scale"] for row in rows if row["scale"]}))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("scale", color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=7, width=0.5)
    axes.grid(color=FAINT, linewidth=0.3, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)
