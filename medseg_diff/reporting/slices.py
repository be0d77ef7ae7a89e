"""Which slice of a segmented case to show, read from its folder and turned as a radiologist looks at it."""

from pathlib import Path

import numpy as np

from medseg_diff.data.geometry import Volume, reoriented, spacing_of
from medseg_diff.data.predictions import brain_of, read_channel, read_references, read_segmented_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.reporting.panels import MontageRow, Plane, shown_channels

DISPLAY_AXES = "LPS"  # columns run to the patient's left, rows to the back: radiological display, anterior up


def largest_slice(case: Case, folder: Path) -> MontageRow:
    """The axial slice with the largest reference area, else the largest predicted area, else the middle one.

    The outermost region is shown. Raises: UsageError or ImageError where a file is missing or damaged.
    """
    segmented = read_segmented_case(folder, case.name)
    region, labels = next(iter(segmented.regions.items()))
    affine = segmented.mask.affine
    references = {
        name: _displayed(np.isin(voxels, labels), affine) for name, voxels in read_references(case, segmented).items()
    }
    raters = [marked for name, marked in references.items() if name != "seg"]
    mask = _displayed(segmented.region_mask(region), affine)
    index = _index_of_largest([*references.values(), mask])
    images = {name: _displayed(read_channel(case, name, segmented), affine) for name in shown_channels(case.channels)}
    maps = {kind: segmented.map(kind, region) for kind in ("probability", "spread", "uncertainty")}
    across_mm, down_mm, _ = spacing_of(reoriented(segmented.mask, DISPLAY_AXES).affine)
    return MontageRow(
        title=f"{case.name}, slice {index + 1}",
        images={name: image[index] for name, image in images.items()},
        brain=brain_of(next(iter(images.values())))[index],
        spacing_mm=(float(down_mm), float(across_mm)),
        reference=references["seg"][index] if "seg" in references else None,
        raters=[rater[index] for rater in raters],
        mask=mask[index],
        **{kind: _displayed(values, affine)[index] for kind, values in maps.items() if values is not None},
    )


def _displayed(voxels: np.ndarray, affine: np.ndarray) -> Plane:
    """Voxels [X, Y, Z] as a stack of pictures [Z, H, W], from the feet up."""
    return np.ascontiguousarray(reoriented(Volume(voxels, affine), DISPLAY_AXES).voxels.transpose(2, 1, 0))


def _index_of_largest(stacks: list[Plane]) -> int:
    """The slice where the first stack that marks anything marks most; the middle one where none does."""
    for stack in stacks:
        areas = stack.sum(axis=(1, 2))
        if areas.any():
            return int(areas.argmax())
    return len(stacks[0]) // 2
