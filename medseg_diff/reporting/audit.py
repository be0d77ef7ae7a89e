"""An audit as a figure: what was asked for against what was measured, and what guidance does to obedience and likeness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_diff.metrics.obedience import Line
from medseg_diff.reporting.panels import CURVES, FAINT, INK, PAPER, new_figure, save_png

SIDE_INCHES = 2.6
WORDS = {
    "age_years": "age, years",
    "sex": "sex (0 F, 1 M)",
    "ventricle_volume_ml": "ventricles, ml",
    "brain_volume_ml": "brain, ml",
}


def draw_audit(found: Mapping[str, Any], lines: Sequence[Line], path: Path) -> None:
    """Write the figure of what `audit` found, whole or not at all; `lines` are those of audit.csv."""
    drawn = [line for line in lines if line.of == "drawn"]
    names = list(dict.fromkeys(line.covariate for line in drawn))
    first = min((line.guidance or 0 for line in drawn), key=lambda scale: abs(scale - 1))
    figure = new_figure(SIDE_INCHES * (len(names) + 2), SIDE_INCHES * 1.05, layout="constrained")
    axes = figure.subplots(1, len(names) + 2)
    for place, name in zip(axes, names, strict=False):
        swept = [line for line in drawn if (line.guidance, line.covariate) == (first, name)]
        for colour, by in zip(CURVES, dict.fromkeys(line.by for line in swept), strict=False):
            points = [(line.asked, line.measured) for line in swept if line.by == by]
            r = next(
                (row["r"] for row in found["obedience"] if _is(row, of="drawn", guidance=first, covariate=name, by=by)),
                None,
            )
            place.scatter(*zip(*points, strict=True), s=5, color=colour, label=f"{by}, r {_number(r)}")
        _finish(place, title=WORDS.get(name, name), x="asked for", y="measured")
    for colour, name in zip(CURVES, names, strict=False):
        rows = [row for row in found["obedience"] if _is(row, of="drawn", covariate=name) and row["r"] is not None]
        last = rows[-1]["by"] if rows else None
        points = [(row["guidance"], row["r"]) for row in rows if row["by"] == last]
        if points:
            axes[-2].plot(*zip(*points, strict=True), "o-", color=colour, ms=3, lw=1, label=f"{name} ({last})")
    _finish(axes[-2], title="obedience", x="guidance", y="r")
    rows = [row for row in found["likeness"] if row["drawn"] == "anybody"]
    axes[-1].plot(
        [row["guidance"] for row in rows], [row["frechet_distance"] for row in rows], "o-", color=CURVES[0], ms=3
    )
    for row, style in zip(
        (each for each in found["likeness"] if each["drawn"] != "anybody"), ("--", ":"), strict=False
    ):
        axes[-1].axhline(row["frechet_distance"], color=FAINT, ls=style, lw=1, label=row["drawn"])
    axes[-1].axhline(rows[0]["frechet_floor"], color=CURVES[2], lw=1, label="real to real")
    axes[-1].set_yscale("log")
    _finish(axes[-1], title="Fréchet distance", x="guidance", y="to held-out scans")
    save_png(figure, path)


def _is(row: Mapping[str, Any], **wanted: Any) -> bool:
    return all(row.get(name) == value for name, value in wanted.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _finish(axes: Any, *, title: str, x: str, y: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, color=INK, fontsize=8)
    axes.set_xlabel(x, color=INK, fontsize=7)
    axes.set_ylabel(y, color=INK, fontsize=7)
    axes.tick_params(colors=INK, labelsize=6)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=5, facecolor=PAPER, labelcolor=INK, edgecolor=FAINT)
