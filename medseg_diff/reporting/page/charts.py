"""Charts of a cohort's page: matplotlib's vector pictures, one for light paper and the same for dark."""

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg_diff.reporting.curves import FEW, VALIDATION, Points, running_mean, set_limits
from medseg_diff.reporting.panels import new_figure
from medseg_diff.reporting.paper import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    label,
    lay_reliability,
    mark_reliability,
    mark_risk,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN, PURPLE = "#2a7f5f", "#7b5ea7"
ON_DARK = {INK: "#e8e9eb", GREY: "#7d848c", BLUE: "#6fb7ee", ORANGE: "#f2a154", GREEN: "#6fcf9f", PURPLE: "#b79ae0"}
LINES = (BLUE, ORANGE, GREEN, PURPLE)
INCHES = (4.6, 3.2)
ROOM_FOR_LEGEND = 1.3  # above a curve, of its height
MOST_NAMED = 12  # cases whose names fit below a chart


@dataclass(frozen=True)
class Chart:
    """A chart on light and on dark paper, and what it says in words."""

    title: str
    words: str
    light: str
    dark: str


def chart(title: str, words: str, draw: Callable[["Axes"], None]) -> Chart:
    """Draw on fresh axes; the same data give the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medseg_diff", "font.family": "sans-serif"}):
        figure = new_figure(*INCHES, paper="none", layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(GREY)
        axes.tick_params(labelsize=8, colors=INK)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    light = buffer.getvalue()
    dark = light
    for colour, other in ON_DARK.items():
        dark = dark.replace(colour, other)
    return Chart(title, words, _source(light), _source(dark))


def intervals_chart(names: Sequence[str], rows: Sequence[Mapping[str, Any]], unit: str, what: str) -> Chart:
    """Volumes, smallest first, each with its calibrated interval or the range of its members; `rows` hold value, low, high
    and calibrated."""
    order = sorted(range(len(rows)), key=lambda place: rows[place]["value"])
    rows, names = [rows[place] for place in order], [names[place] for place in order]
    calibrated = any(row["calibrated"] for row in rows)

    def draw(axes: "Axes") -> None:
        places = np.arange(1, len(rows) + 1)
        low, high = (
            np.array([row[key] if row[key] is not None else np.nan for row in rows]) for key in ("low", "high")
        )
        said = "calibrated interval" if calibrated else "range of the members"
        axes.vlines(places, low, high, color=GREY, linewidth=2.2, alpha=0.8, label=said)
        axes.plot(places, [row["value"] for row in rows], "o", color=BLUE, markersize=4, label="mask")
        _names(axes, names)
        label(axes, "case, smallest first", f"{what} ({unit})")
        _legend(axes)

    values = [row["value"] for row in rows]
    run = f"from {min(values):.3g} to {max(values):.3g} {unit}, median {np.median(values):.3g}"
    words = f"{what.capitalize()} of {len(rows)} cases: {run}."
    return chart(what.capitalize(), words, draw)


def distribution_chart(values: Mapping[str, Sequence[float]], what: str, limit: float | None = None) -> Chart:
    """Every value as a dot in its group's row, with the group's median."""

    def draw(axes: "Axes") -> None:
        for row, (colour, (name, numbers)) in enumerate(zip((BLUE, ORANGE), values.items(), strict=False)):
            jitter = (np.arange(len(numbers)) * 0.618 % 1 - 0.5) * 0.5
            said = f"{name}, median {np.median(numbers):.3g}" if len(numbers) else name
            axes.plot(numbers, row + jitter, "o", color=colour, markersize=4, alpha=0.75, label=said)
            axes.plot([np.median(numbers)] * 2, [row - 0.35, row + 0.35], color=INK, linewidth=1.2)
        if limit is not None:
            axes.axvline(limit, color=INK, linewidth=0.9, linestyle=":", label=f"limit {limit:.3g}")
        axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(-0.6, len(values) - 0.4 + 0.7))
        label(axes, what, "")
        _legend(axes)

    groups = [f"{name}: {len(numbers)} cases, median {np.median(numbers):.3g}" for name, numbers in values.items()]
    return chart(what.capitalize(), f"{what.capitalize()} by case. {'; '.join(groups)}.", draw)


def curve_chart(
    title: str,
    curve: Mapping[str, Sequence[float | None]],
    across: str,
    up: str,
    value: Mapping[str, Any] | None,
    name: str,
) -> Chart:
    """A mean curve over cases with its 95 % band."""
    at = np.array(curve[across], dtype=float)
    mean, low, high = (np.array(curve[key], dtype=float) for key in (up, "low", "high"))
    number = "" if not value or value["value"] is None else f"{name} {value['value']:.3f}"
    if number and value and value["low"] is not None:
        number += f" [{value['low']:.3f}, {value['high']:.3f}]"

    def draw(axes: "Axes") -> None:
        if np.isfinite(low).all():
            axes.fill_between(at, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 %, over patients")
        axes.plot(at, mean, color=BLUE, linewidth=1.6, label=number or "mean over cases")
        if up == "sensitivity":
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="chance")
        label(axes, across.replace("_", " "), up)
        axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.04))
        _legend(axes, "lower right" if up == "sensitivity" else "lower left")

    return chart(title, f"{title}: mean over cases. {number}.", draw)


def training_chart(title: str, curves: Mapping[str, Points]) -> Chart:
    """What was measured during training; validation is dashed, and many noisy numbers lie faintly under their mean."""

    def draw(axes: "Axes") -> None:
        for (name, points), colour in zip(curves.items(), itertools.cycle(LINES), strict=False):
            of_validation = VALIDATION in name
            said, shown = name.replace("_", " "), points
            if len(points) >= FEW:
                axes.plot(*points.T, color=colour, linewidth=0.5, alpha=0.35)
                shown, width = running_mean(points)
                said = f"{said}, mean of {width}"
            dots: dict[str, Any] = {"marker": "o", "markersize": 2.5} if len(points) < FEW else {}
            line: dict[str, Any] = {"linestyle": "--", "marker": "s", "markersize": 4} if of_validation else dots
            axes.plot(*shown.T, color=colour, linewidth=1.5, label=said, **line)
        set_limits(axes, title, curves.values())
        label(axes, "training step", title.lower() if title.istitle() else title)
        _legend(axes, "best")

    ends = [(name.replace("_", " "), *points[0], *points[-1]) for name, points in curves.items()]
    words = "; ".join(f"{name} {a:.3g} at step {at:.0f}, {b:.3g} at step {end:.0f}" for name, at, a, end, b in ends)
    return chart(title, f"{title}: {words}.", draw)


def reliability_chart(curve: Mapping[str, Sequence[float]], value: Mapping[str, Any] | None) -> Chart:
    """How often what is called so probable is in the reference; a dot's area is how many voxels it stands for."""
    number = "" if not value or value["value"] is None else f"ECE in doubt {value['value']:.3f}"

    def draw(axes: "Axes") -> None:
        lay_reliability(axes)
        mark_reliability(axes, curve, number or None)
        _legend(axes)

    points = ", ".join(f"{p:.2f} → {f:.2f}" for p, f in zip(curve["probability"], curve["frequency"], strict=True))
    return chart("Reliability", f"Reliability: predicted → observed {points}. {number}", draw)


def risk_chart(curve: Mapping[str, Sequence[float]], value: Mapping[str, Any] | None) -> Chart:
    """Wrong voxels among the most certain share of the brain."""
    number = "" if not value or value["value"] is None else f"AURC {value['value']:.2g}"
    risk = 100 * np.asarray(curve["risk"], dtype=float)

    def draw(axes: "Axes") -> None:
        mark_risk(axes, curve, f"voxels by uncertainty, {number}".rstrip(", "))
        axes.set_ylim(0, ROOM_FOR_LEGEND * axes.get_ylim()[1])
        _legend(axes, "upper left")

    half = np.interp(0.5, curve["coverage"], risk)
    words = f"Risk–coverage: {risk[-1]:.2g} % of all voxels are wrong, of the most certain half {half:.2g} %."
    return chart("Risk–coverage", f"{words} {number}", draw)


def _names(axes: "Axes", names: Sequence[str]) -> None:
    """Case names below their places, where there is room."""
    if len(names) <= MOST_NAMED:
        axes.set_xticks(range(1, len(names) + 1), names, rotation=40, ha="right", fontsize=7)


def _legend(axes: "Axes", place: Any = "upper left") -> None:
    axes.legend(loc=place, fontsize=7.5, labelcolor=INK, frameon=False)


def _source(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"
