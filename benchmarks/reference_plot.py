"""The picture of `benchmarks.reference`: one step of an ensemble with one thing more each, and the seconds of a volume."""

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Bars, the reference on top; medians. The volume on a logarithmic scale, where it was measured."""
    from matplotlib.figure import Figure

    panels = {
        "ms of one step, 5 members of a slice": {
            name: 1000 * taken["median"] for name, taken in result["one_step"]["seconds"].items()
        }
    }
    if volume := result["sampling"].get("volume"):
        seconds = volume["seconds"]
        panels["seconds of a volume"] = {name: seconds[name] for name in sorted(seconds, key=seconds.get, reverse=True)}
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    for axes, (title, bars) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        drawn = axes.barh(list(bars), list(bars.values()), color=["0.6", *["tab:blue"] * (len(bars) - 1)])
        axes.bar_label(drawn, labels=[f"{value:,.0f}" for value in bars.values()], padding=3)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        if title == "seconds of a volume":
            axes.set_xscale("log")
        axes.margins(x=0.15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
