"""The page of one case: viewer, pictures, volumes with their intervals, lesions, quality checks, provenance, citations."""

import csv
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg_diff.data.results import PAGE, CaseResult, read_result
from medseg_diff.data.tables.case import Case
from medseg_diff.errors import counted
from medseg_diff.reporting.montage import (
    Column,
    Layout,
    Outline,
    anomaly_layout,
    displayed,
    draw_rows,
    row_of,
    segmentation_layout,
)
from medseg_diff.reporting.page.citations import citations
from medseg_diff.reporting.page.document import NIIVUE, VIEWER, picture, write_page
from medseg_diff.reporting.page.scene import MEMBER_COLOURS, scene_of
from medseg_diff.reporting.page.words import checksums_of, lead, provenance_of, sections_of, spoken
from medseg_diff.reporting.panels import DOTS_PER_INCH, MontageRow

MEMBERS_IN_A_ROW = 5
MOST_MEMBERS = 10
SCREEN_DOTS = 96  # an inch of a picture on a page


@dataclass(frozen=True)
class Figure:
    """A picture in a page, with what it shows in words."""

    source: str
    words: str
    caption: str
    width: int
    height: int


def write_case_page(
    folder: Path,
    case: Case | None,
    *,
    papers: str = "",
    lesions: Sequence[Sequence[Any]] = (),
    scores: Mapping[str, str] | None = None,
) -> Path:
    """Write report.html into the folder of one case, from its files and, where `case` is given, its scans.

    `papers` is what its recipe names, `lesions` rows with their heading first, `scores` its metrics by name.
    Raises: UsageError where the folder holds no result, ImageError where a file is damaged, EnvironmentFault.
    """
    result = read_result(folder, folder.name)
    facts = result.facts
    lesions = lesions or read_lesions(folder)
    scene = scene_of(result, case, lesions if result.task == "anomaly" else ())
    kind = "anomaly map" if result.task == "anomaly" else "segmentation"
    said = lead(facts)
    write_page(
        folder / PAGE,
        "case.html",
        scripts=(NIIVUE, VIEWER),
        name=folder.name,
        kind=kind,
        lead=said,
        warnings=facts["warnings"],
        scene=scene,
        viewer_words=f"{kind.capitalize()} of {folder.name} over its scan, in three planes and in 3D. {said}",
        figures=list(_figures(result, case, said)) if case else [],
        sections=sections_of(facts, lesions, scores or {}),
        provenance=provenance_of(facts),
        checksums=checksums_of(facts),
        citations=citations(facts, papers),
    )
    return folder / PAGE


def read_lesions(folder: Path) -> list[list[str]]:
    """lesions.csv with its heading; nothing where there is none."""
    path = folder / "lesions.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _figures(result: CaseResult, case: Case, said: str) -> list[Figure]:
    row = row_of(case, result)
    of_task = anomaly_layout if result.task == "anomaly" else segmentation_layout
    figures = [figure_of([row], of_task, f"{row.title}: scan and result side by side. {said}", row.title)]
    if result.task == "segment" and (members := _members(result, row, case)):
        figures.append(members)
    return figures


def _members(result: CaseResult, row: MontageRow, case: Case) -> Figure | None:
    """The masks of the members on the slice of `row`, side by side."""
    region = next(iter(result.regions))
    planes = []
    for number, member in enumerate(result.members(region)):
        if number == MOST_MEMBERS:
            break
        planes.append(displayed(member > 0.5, result.main.affine)[row.index])
    if len(planes) < 2:
        return None
    chunks = [planes[start : start + MEMBERS_IN_A_ROW] for start in range(0, len(planes), MEMBERS_IN_A_ROW)]
    rows = []
    for number, chunk in enumerate(chunks):
        first = number * MEMBERS_IN_A_ROW
        marks = {f"member{place}": [plane] for place, plane in enumerate(chunk)} | {
            "reference": row.marks.get("reference", ())
        }
        rows.append(replace(row, title=f"members {first + 1} to {first + len(chunk)}", maps={}, marks=marks))
    channels = list(row.images)

    def layout_of(_: Sequence[str]) -> Layout:
        outlines = [Outline(f"member{place}", MEMBER_COLOURS[0], "member") for place in range(len(chunks[0]))]
        return Layout([Column("", channels, (outline,)) for outline in outlines], "bilinear", {})

    volumes = ", ".join(f"{int(plane.sum())}" for plane in planes)
    words = f"Masks of {counted(len(planes), 'member')} on one slice; voxels marked there: {volumes}."
    return figure_of(rows, layout_of, words, f"Members side by side: {spoken(region)}, {row.title}")


def figure_of(
    rows: Sequence[MontageRow], layout_of: Callable[[Sequence[str]], Layout], words: str, caption: str
) -> Figure:
    """A sheet of panels as a picture of a page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        draw_rows(rows, layout_of, path)
        return figure_of_png(path.read_bytes(), words, caption)


def figure_of_png(png: bytes, words: str, caption: str) -> Figure:
    """A PNG of ours as a picture of a page, at its size in inches."""
    width, height = struct.unpack(">II", png[16:24])
    scale = SCREEN_DOTS / DOTS_PER_INCH
    return Figure(picture(png), words, caption, round(width * scale), round(height * scale))
