"""The pages of drawn scans, by `synthesise` or `enhance`: a viewer for each; a table of all, and some in three planes."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg_diff.data.geometry import Volume, reoriented, spacing_of
from medseg_diff.data.reading import read_labels, read_map
from medseg_diff.data.results import PAGE
from medseg_diff.errors import counted
from medseg_diff.reporting.montage import CHANNEL_TITLES, DISPLAY_AXES
from medseg_diff.reporting.page.case import Figure, figure_of_png
from medseg_diff.reporting.page.citations import citations
from medseg_diff.reporting.page.cohort import Row, cell
from medseg_diff.reporting.page.document import NIIVUE, TABLE, VIEWER, write_page
from medseg_diff.reporting.page.scene import LARGEST, scene_of_scans
from medseg_diff.reporting.page.words import checksums_of, number, provenance_of, spoken
from medseg_diff.reporting.panels import INK, PAPER, Plane, new_figure, save_png

Facts = Mapping[str, Any]

SEG = "seg"  # the labels that a scan was painted into
PLANES = ("axial", "coronal", "sagittal")
IN_GALLERY = 8
INCHES, HEAD = 1.6, 0.25  # a panel of the gallery, and what stands over it
NOT_MEASURED = {
    "synthesise": "No patient is shown: everything was drawn.",
    "enhance": "What is shown beyond the scan was drawn, not measured.",
}


def write_scan_page(folder: Path, facts: Facts, *, papers: str = "") -> Path:
    """Write report.html into the folder of one drawn scan, of which `facts` is case.json. Raises: ImageError where a file is
    damaged, EnvironmentFault."""
    scans = {name: read_map(folder / f"{name}.nii.gz") for name in _channels(facts)}
    painted = f"{SEG}.nii.gz" in facts["outputs"]
    labels = read_labels(folder / f"{SEG}.nii.gz", case=folder.name, channel=SEG) if painted else None
    kind, said = _kind(facts), f"{_about(facts)} {NOT_MEASURED[facts['task']]}"
    write_page(
        folder / PAGE,
        "case.html",
        scripts=(NIIVUE, VIEWER),
        name=folder.name,
        kind=kind,
        lead=said,
        warnings=facts["warnings"],
        scene=scene_of_scans(scans, labels),
        viewer_words=f"{kind.capitalize()} {folder.name} in three planes and in 3D. {said}",
        figures=[_in_three_planes({folder.name: next(iter(scans.values()))}, next(iter(scans)))],
        sections=[],
        provenance=provenance_of(facts),
        checksums=checksums_of(facts),
        citations=citations(facts, papers),
    )
    return folder / PAGE


def write_scans_page(folder: Path, facts: Mapping[str, Facts], *, papers: str = "") -> Path:
    """Write report.html for a folder of scans drawn by one verb, of which `facts` is case.json by name. Raises: ImageError
    where a file is damaged, EnvironmentFault."""
    first = next(iter(facts.values()))
    columns = list(_columns(facts))
    shown, channel = list(facts)[:IN_GALLERY], _channels(first)[0]
    write_page(
        folder / PAGE,
        "cohort.html",
        scripts=(TABLE,),
        title=counted(len(facts), _kind(first)),
        lead=f"Model {', '.join(sorted({str(each['model']) for each in facts.values()}))}. {NOT_MEASURED[first['task']]}",
        warnings=[],
        tiles=[],
        one="scan",
        columns=["scan", *(spoken(name) for name, _ in columns)],
        rows=[
            Row(
                name,
                f"{name}/{PAGE}" if (folder / name / PAGE).is_file() else "",
                [cell(values[name]) for _, values in columns],
                bool(each["warnings"]),
            )
            for name, each in facts.items()
        ],
        charts=[],
        gallery=_in_three_planes({name: read_map(folder / name / f"{channel}.nii.gz") for name in shown}, channel),
        gallery_title="Scans" if len(shown) == len(facts) else f"The first {len(shown)} scans",
        metrics=[],
        citations=citations(first, papers),
    )
    return folder / PAGE


def _channels(facts: Facts) -> list[str]:
    """The scans that case.json lists."""
    names = [file.removesuffix(".nii.gz") for file in facts["outputs"] if file.endswith(".nii.gz")]
    return [name for name in names if name != SEG]


def _kind(facts: Facts) -> str:
    return "enhanced scan" if facts["task"] == "enhance" else "synthetic scan"


def _about(facts: Facts) -> str:
    """What was asked for, in a sentence."""
    if facts["task"] == "enhance":
        return f"A scan with voxels {facts['factor']} times as fine, {counted(facts['draws'], 'draw')}."
    if "mask_of" in facts:
        return f"A scan painted into the mask of {facts['mask_of']}."
    asked = ", ".join(f"{spoken(name)} {number(value)}" for name, value in facts["covariates"].items())
    return f"A synthetic scan of {asked}." if asked else "A synthetic scan, without covariates."


def _columns(facts: Mapping[str, Facts]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Headings, and the value of each scan."""
    for name in dict.fromkeys(name for each in facts.values() for name in each.get("covariates", ())):
        yield name, {scan: each["covariates"].get(name) for scan, each in facts.items()}
    for name in ("mask_of", "seconds"):
        if any(name in each for each in facts.values()):
            yield name, {scan: each.get(name) for scan, each in facts.items()}
    yield "warnings", {scan: len(each["warnings"]) for scan, each in facts.items()}


def _in_three_planes(scans: Mapping[str, Volume], channel: str) -> Figure:
    """One channel of each scan through its middle, each in the greys of its own tissue."""
    figure = new_figure(INCHES * len(PLANES), len(scans) * (INCHES + HEAD), paper=PAPER)
    grid = figure.subplots(len(scans), len(PLANES), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - HEAD / (len(scans) * (INCHES + HEAD)))
    for (name, volume), line in zip(scans.items(), grid, strict=True):
        black, white = volume.voxels.min(), np.percentile(volume.voxels[volume.voxels > volume.voxels.min()], LARGEST)
        for (plane, down_mm, across_mm), title, axes in zip(_planes(volume), PLANES, line, strict=True):
            greys = {"cmap": "gray", "vmin": black, "vmax": white, "interpolation": "bilinear"}
            axes.imshow(plane, aspect=down_mm / across_mm, **greys)
            axes.axis("off")
            axes.set_title(f"{name}, {title}" if title == PLANES[0] else title, color=INK, fontsize=7, pad=3)
    with tempfile.TemporaryDirectory() as place:
        save_png(figure, Path(place) / "scans.png")
        png = (Path(place) / "scans.png").read_bytes()
    title = CHANNEL_TITLES.get(channel, channel)
    words = f"{title} of {', '.join(scans)}: the middle slice of each in three planes, axial, coronal and sagittal."
    return figure_of_png(png, words, f"{title} through the middle. Radiological display: R is the patient's right.")


def _planes(volume: Volume) -> list[tuple[Plane, float, float]]:
    """The middle slices of a volume as displayed, with millimetres down and across."""
    turned = reoriented(volume, DISPLAY_AXES)
    voxels, (x, y, z) = turned.voxels, (size // 2 for size in turned.shape)
    across, back, up = (float(mm) for mm in spacing_of(turned.affine))
    return [
        (voxels[:, :, z].T, back, across),
        (voxels[:, y].T[::-1], up, across),
        (voxels[x].T[::-1], up, back),
    ]
