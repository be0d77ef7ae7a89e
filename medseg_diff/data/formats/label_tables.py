"""Names and colours of a mask's labels in the files that viewers read: 3D Slicer's colour table, ITK-SNAP's descriptions."""

from collections.abc import Sequence
from pathlib import Path

from medseg_diff.files import write_text

SLICER, ITK_SNAP = "mask_labels.ctbl", "mask_labels.txt"
# Told apart by people who see few colours too; red, green and blue first, as glioma is usually drawn.
COLOURS = (
    (213, 66, 62),
    (86, 180, 106),
    (66, 118, 212),
    (240, 196, 64),
    (204, 121, 187),
    (102, 204, 221),
    (230, 140, 40),
    (150, 150, 150),
)


def colour_of(place: int) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of the label at a place of the list of labels; they come again after the last."""
    return COLOURS[place % len(COLOURS)]


def write_label_tables(folder: Path, labels: Sequence[tuple[int, str]]) -> None:
    """Number and name of each label, in the folder of the mask, with the background. Raises: EnvironmentFault."""
    rows = [(number, name, colour_of(place)) for place, (number, name) in enumerate(labels)]
    slicer = [
        f"{number} {name.replace(' ', '_')} {red} {green} {blue} 255" for number, name, (red, green, blue) in rows
    ]
    snap = [f'{number:5} {red:5} {green:4} {blue:4}  1  1  1  "{name}"' for number, name, (red, green, blue) in rows]
    write_text(folder / SLICER, "\n".join(["# Color table file", "0 background 0 0 0 0", *slicer]) + "\n")
    heading = ["# ITK-SnAP Label Description File", "# IDX   R    G    B   A VIS MSH LABEL"]
    write_text(folder / ITK_SNAP, "\n".join([*heading, '    0     0    0    0  0  0  0  "Clear Label"', *snap]) + "\n")
