"""Curves on a dark page: how training went, how well a classifier tells slices apart, and what a sweep of settings did."""

import csv
import itertools
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg_diff.errors import UsageError
from medseg_diff.reporting.panels import CURVES, FAINT, INK, PAPER, new_figure, save_png
from medseg_diff.run import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = npt.NDArray[np.float64]  # [N, 2]: step, value
Row = dict[str, Any]

FEW = 50  # numbers that are drawn as dots
CHANCE = 0.5
VALIDATION = "val_"  # in the name of what is measured on validation slices
SPEED = "Steps per second"
PANELS = {  # of a training, each with the words of which one is in the names of its curves
    "Loss": ("loss",),
    "Dice": ("dice",),
    "Accuracy and AUROC": ("accuracy", "auroc"),
    "Learning rate": ("learning_rate",),
    SPEED: ("steps per second",),
}
SHARES = ("Dice", "Accuracy and AUROC")  # what lies in [0, 1]
SKILL = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
SWEEP = {
    "average_precision": "Average precision",
    "contrast": "Contrast, diseased against healthy",
    "drift": "Drift of healthy slices",
}


def training_curves(numbers: Iterable[Point], png: Path) -> None:
    """Draw how a training went (`Run.numbers()`, and its speed where that was measured): a panel for each of `PANELS` that
    there is anything for, of the losses one for each phase. What is measured on validation slices is dashed; of two curves
    that are one, one is drawn.

    Raises: UsageError where there is neither a loss nor a Dice.
    """
    panels = curves_of(numbers)
    if not any(_place_of(label) < 2 for label in panels):
        raise UsageError("holds neither a loss nor a Dice", fix="give the metrics.csv of a run", file="metrics.csv")
    columns = len(panels) if len(panels) < 3 else -(-len(panels) // 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(4.6 * columns, 3.0 * rows)
    for place, (label, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for (name, curve), colour in zip(curves.items(), itertools.cycle(CURVES), strict=False):
            _draw_series(axes, name, curve, colour, dashed=VALIDATION in name)
        set_limits(axes, label, curves.values())
        _dress(axes, "training step", label)
    figure.tight_layout(pad=1.0)
    save_png(figure, png)


def curves_of(numbers: Iterable[Point]) -> dict[str, dict[str, Points]]:
    """The curves of a training by name, under the panel that they belong into, in the order of `PANELS`."""
    series: dict[str, list[tuple[float, float]]] = {}
    for point in numbers:
        if np.isfinite(point.value):
            series.setdefault(point.name, []).append((point.step, point.value))
    panels: dict[str, dict[str, Points]] = {}
    for name, points in series.items():
        if label := _panel_of(name):
            panels.setdefault(label, {})[name] = np.array(sorted(points))
    return {label: _without_doubles(panels[label]) for label in sorted(panels, key=_place_of)}


def set_limits(axes: "Axes", label: str, curves: Collection[Points]) -> None:
    """The limits and scale of a panel, once its curves are drawn."""
    if _place_of(label) == 0 and all((points[:, 1] > 0).all() for points in curves):
        _make_logarithmic(axes)
    if label in SHARES:
        _show_share(axes, np.concatenate([points[:, 1] for points in curves]))
    axes.set_xlim(left=0)
    if label == SPEED:
        axes.set_ylim(bottom=0)


def running_mean(points: Points) -> tuple[Points, int]:
    """Many noisy numbers as the means of so many neighbours, each at the last one's step."""
    width = max(5, len(points) // 40)
    means = np.convolve(points[:, 1], np.ones(width) / width, mode="valid")
    return np.stack([points[width - 1 :, 0], means], axis=1), width


def _panel_of(name: str) -> str | None:
    """`Loss`, `Loss of the denoiser`, `Dice`; None for what is not drawn."""
    label = next((label for label, words in PANELS.items() if any(word in name.lower() for word in words)), None)
    phase = name.lower().partition("loss")[0].removesuffix(VALIDATION).strip("_")
    return f"{label} of the {phase}" if label == "Loss" and phase else label


def _place_of(label: str) -> int:
    return list(PANELS).index(label.split(" of the ")[0])


def _without_doubles(curves: dict[str, Points]) -> dict[str, Points]:
    """One name for curves that are the same, as a loss is its only part; the shortest."""
    kept: dict[str, Points] = {}
    for name in sorted(curves, key=len):
        if not any(np.array_equal(curves[name], other) for other in kept.values()):
            kept[name] = curves[name]
    return {name: kept[name] for name in curves if name in kept}


def _show_share(axes: "Axes", values: Points) -> None:
    """A tenth at least of what lies in [0, 1], so that small changes look small."""
    middle, half = (values.min() + values.max()) / 2, max(0.05, 0.55 * float(np.ptp(values)))
    low = min(max(middle - half, 0.0), 1.0 - 2 * half) if half < 0.5 else 0.0
    axes.set_ylim(max(low, 0.0), min(max(low, 0.0) + 2 * half, 1.0) + 0.01)


def draw_skill(table: Path, png: Path) -> None:
    """A classifier's AUROC and balanced accuracy against t, above the line of chance, from a run's classifier.csv.

    Raises: UsageError for another table.
    """
    rows = _read(table, ("t", *SKILL), fix="give a run's classifier.csv")
    figure = new_figure(4.6, 3.0)
    axes = figure.add_axes((0.13, 0.17, 0.83, 0.78))
    for (name, label), colour in zip(SKILL.items(), CURVES, strict=False):
        _draw_line(axes, [(row["t"], row[name]) for row in rows], label, colour)
    axes.axhline(CHANCE, color=FAINT, linewidth=0.8, linestyle="--")
    axes.text(max(row["t"] for row in rows), CHANCE + 0.01, "chance", color=INK, fontsize=7, ha="right")
    axes.set_ylim(min(0.45, *(row[name] for row in rows for name in SKILL)), 1.01)
    _dress(axes, "time t (0: the image; higher: noisier)", "on validation slices")
    save_png(figure, png)


def draw_sweep(table: Path, png: Path, swept: Sequence[str] = ("depth", "steps", "scale")) -> None:
    """Of three swept settings a line for each of the first, a column of panels for each of the second, over the third; of
    two one column, over the second.

    Above average precision (contrast without references), below the drift where healthy slices were seen.
    Raises: UsageError where the table is empty or another one, EnvironmentFault where `png` cannot be written.
    """
    lines, *between, across = swept
    rows = _read(table, (*swept, *SWEEP), fix="sweep again")
    columns = {"": rows}
    for name in between:
        values = sorted({row[name] for row in rows})
        columns = {f"{value:g} {name}": [row for row in rows if row[name] == value] for value in values}
    names = ["contrast" if rows[0]["average_precision"] is None else "average_precision", "drift"]
    names = [name for name in names if rows[0][name] is not None]
    figure = new_figure(2.6 * len(columns) + 0.6, 2.3 * len(names))
    for line, name in enumerate(names):
        limits = [row[name] for row in rows]
        margin = 0.05 * (max(limits) - min(limits)) or 0.01
        for column, (title, shown) in enumerate(columns.items()):
            axes = figure.add_subplot(len(names), len(columns), line * len(columns) + column + 1)
            _draw_settings(axes, shown, name, lines, across)
            axes.set_ylim(min(limits) - margin, max(limits) + margin)
            _dress(axes, across, SWEEP[name] if column == 0 else "")
            if line == 0:
                axes.set_title(title, color=INK, fontsize=9)
    figure.tight_layout(pad=1.0)
    save_png(figure, png)


def _draw_settings(axes: "Axes", rows: Sequence[Row], name: str, lines: str, across: str) -> None:
    """A line for each value of the setting `lines`, over those of `across`."""
    for value, colour in zip(sorted({row[lines] for row in rows}), itertools.cycle(CURVES), strict=False):
        points = sorted((row[across], row[name]) for row in rows if row[lines] == value)
        _draw_line(axes, points, f"{lines} {value:g}", colour)
    axes.set_xscale("log")
    axes.set_xticks(sorted({row[across] for row in rows if row[across]}))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_series(axes: "Axes", name: str, points: Points, colour: str, *, dashed: bool) -> None:
    """A line, with dots of few numbers; many noisy numbers are drawn faintly under their running mean."""
    if len(points) < FEW:
        _draw_line(axes, points, name, colour, dashed=dashed)
        return
    smooth, width = running_mean(points)
    axes.plot(*points.T, color=colour, linewidth=0.5, alpha=0.35)
    axes.plot(*smooth.T, color=colour, linewidth=1.5, label=f"{name}, mean of {width}")


def _draw_line(
    axes: "Axes", points: Sequence[Sequence[float]] | Points, label: str, colour: str, *, dashed: bool = False
) -> None:
    across, up = zip(*points, strict=True)
    shape: dict[str, Any] = (
        {"linestyle": "--", "marker": "s", "markersize": 4} if dashed else {"marker": "o", "markersize": 2.5}
    )
    axes.plot(across, up, color=colour, linewidth=1.5, label=label, **shape)


def _make_logarithmic(axes: "Axes") -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _dress(axes: "Axes", across: str, up: str) -> None:
    """Names of both axes, grid and legend; called when everything is drawn."""
    axes.set_facecolor(PAPER)
    axes.set_xlabel(across, color=INK, fontsize=8)
    axes.set_ylabel(up, color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=7, width=0.5, which="both")
    axes.grid(color=FAINT, linewidth=0.3, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.legend(frameon=False, fontsize=7, labelcolor=INK)


def _read(table: Path, columns: Sequence[str], *, fix: str) -> list[Row]:
    """The rows of a table: numbers, None where a cell is empty. Raises: UsageError for another table."""

    def numbers(row: dict[str, str]) -> Row:
        return {name: float(row[name]) if row[name] else None for name in columns}

    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [numbers(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", fix=fix, file=table.name) from None
    except (KeyError, ValueError) as error:
        raise UsageError(f"is not a table of {', '.join(columns)} ({error})", fix=fix, file=table.name) from None
    if not rows:
        raise UsageError("holds no rows", fix=fix, file=table.name)
    return rows
