"""Panels for paper, dark on white: how axes, legends and lists of cases look in the figures of an evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg_diff.errors import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Curve = Mapping[str, Sequence[float]]

INK, GREY, BLUE, ORANGE = "#1c1e21", "#9aa0a6", "#1f77b4", "#d9730d"
WIDTH, HEIGHT = 3.8, 3.6  # inches of a panel
MOST_NAMES = 24  # of cases that are named one below the other
LONGEST_NAME = 22  # letters
SMALLEST_RISK = 1e-5  # percent: where no voxel is wrong there is an axis still


def panels(figure: "Figure", rows: int, columns: int) -> "Iterable[Axes]":
    """A grid of axes, row by row."""
    return figure.subplots(rows, columns, squeeze=False).flat


def dress(axes: "Axes", title: str) -> None:
    """A title, and neither a frame nor large numbers."""
    axes.set_title(title, fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def label(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=8.5, color=INK)
    axes.set_ylabel(up, fontsize=8.5, color=INK)


def legend(axes: "Axes", columns: int = 1) -> None:
    """Below the panel, where it hides neither data nor an axis."""
    where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": columns}
    axes.legend(fontsize=7.5, labelcolor=INK, frameon=False, borderaxespad=0.0, **where)


def say(axes: "Axes", words: str) -> None:
    """In place of a picture that there are no numbers for."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=8.5, color=GREY)
    axes.set(xticks=[], yticks=[])


def name_rows(axes: "Axes", names: Sequence[str]) -> Floats:
    """Rows from the top, one for each of so many cases, named while they are few; returns their heights."""
    places = np.arange(1, len(names) + 1, dtype=float)
    axes.set_ylim(len(names) + 0.7, 0.3)
    if len(names) <= MOST_NAMES:
        axes.set_yticks(places, [shortened(name) for name in names])
        axes.tick_params(axis="y", labelsize=min(8.0, 130 / max(len(names), 1)), length=0)
    else:
        axes.set_yticks([])
    return places


def name_points(axes: "Axes", names: Sequence[str], across: Floats, up: Floats) -> None:
    """The names of some points, each beside its own."""
    for name, x, y in zip(names, across, up, strict=True):
        axes.annotate(shortened(name), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5, color=INK)


def shortened(name: str) -> str:
    return plain(name, LONGEST_NAME)


def lay_reliability(axes: "Axes") -> None:
    """Where `mark_reliability` draws: the diagonal is where what is predicted comes true as often."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="perfect")
    label(axes, "predicted probability", "share of voxels in the reference")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))


def mark_reliability(axes: "Axes", curve: Curve, words: str | None, colour: str = BLUE) -> None:
    """Frequency against probability, the area of a dot by how many voxels it stands for."""
    voxels = np.asarray(curve["voxels"], dtype=float)
    sizes = 8 + 70 * np.log1p(voxels) / np.log1p(voxels.max())
    axes.plot(curve["probability"], curve["frequency"], color=colour, linewidth=1.2)
    axes.scatter(curve["probability"], curve["frequency"], s=sizes, color=colour, alpha=0.8, linewidth=0, label=words)


def mark_risk(axes: "Axes", curve: Curve, words: str) -> None:
    """Error rate of the most certain share of the voxels; the last point is the error rate of all."""
    risk = 100 * np.asarray(curve["risk"], dtype=float)
    axes.plot(curve["coverage"], risk, color=BLUE, linewidth=1.6, label=words)
    axes.axhline(risk[-1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="voxels in any order")
    label(axes, "coverage: share of the brain, most certain first", "wrong voxels (%)")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.05 * max(float(risk.max()), SMALLEST_RISK)))


def mark_healthy(axes: "Axes", names: Sequence[str], marked_ml: Floats) -> None:
    """What is marked in cases without a lesion, the most first."""
    if not len(marked_ml):
        say(axes, "no case without a lesion")
        return
    order = np.argsort(-marked_ml, kind="stable")[:MOST_NAMES]
    places = name_rows(axes, [names[number] for number in order])
    axes.barh(places, marked_ml[order], height=0.6, color=ORANGE)
    clean = int(np.count_nonzero(marked_ml == 0))
    words = f"marked (ml); nothing in {clean} of {len(marked_ml)}, mean {marked_ml.mean():.2f} ml"
    label(axes, words, worst_of(len(order), len(marked_ml)))
    axes.set_xlim(0, 1.1 * max(float(marked_ml.max()), 0.1))


def worst_of(shown: int, cases: int) -> str:
    """What an axis of named cases is called where not all of them are on it."""
    return "" if shown == cases else f"worst {shown} of {cases} cases"
