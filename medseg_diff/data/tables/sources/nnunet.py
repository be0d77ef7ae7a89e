"""A raw dataset of nnU-Net, version 2 or 1 → rows of a manifest: `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs`.

The numbers at the end of the files' names are the channels that dataset.json names. Cases of `imagesTs` are for testing.
"""

import logging
from pathlib import Path

from medseg_diff.data.tables.channel_names import DATASET
from medseg_diff.data.tables.inputs import case_name, numbered, stem_of
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted, in_short
from medseg_diff.data.tables.sources.dataset_json import columns_by_number, say_labels
from medseg_diff.errors import ImageError, counted

PARTS = {"Tr": "", "Ts": "test"}  # what its folders' names end in → split; where it is empty, `prepare` draws one

logger = logging.getLogger(__name__)


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row a case. Raises: ImageError where channels have no names or a case is incomplete, Problems of all cases."""
    columns = columns_by_number(folder)
    cases = Cases(folder, wanted, columns)
    for part, split in PARTS.items():
        labels = labels_in(folder / f"labels{part}")
        found: dict[str, dict[str, Path]] = {}
        for item in numbered(images_in(folder / f"images{part}")):
            if int(item.channel) >= len(columns):
                fault = f"has number {item.channel}, but {DATASET} names {len(columns)} channels"
                cases.problems.append(ImageError(fault, fix=f"name it in {DATASET}", file=item.path.name))
                continue
            files = found.setdefault(item.prefix, {})
            column = columns[int(item.channel)]
            if column in files:
                both = f"{files[column].name} and {item.path.name} are the same channel"
                cases.problems.append(ImageError(both, fix="keep one of them", case=case_name(item.prefix)))
            files[column] = item.path
        for name, files in found.items():
            ordered = {column: files[column] for column in columns if column in files}
            seg = {"seg": labels[name]} if name in labels else {}
            cases.add(case_name(name), ordered | seg, split=split)
        if not split:
            say_unlabelled([name for name in found if name not in labels])
    found_rows = cases.rows(
        nothing="no image with a number of a channel", fix="give a raw dataset, with imagesTr/CASE_0000.nii.gz"
    )
    say_labels(folder)
    return found_rows


def images_in(folder: Path) -> list[Path]:
    """The images of one folder, in order of name; none where it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and stem_of(path) is not None)


def labels_in(folder: Path) -> dict[str, Path]:
    """The masks of a folder by the names of their cases."""
    return {stem_of(path) or "": path for path in images_in(folder)}


def say_unlabelled(names: list[str]) -> None:
    """A word on training cases that training will leave out."""
    if names:
        logger.warning("no reference in labelsTr for %s: %s", counted(len(names), "training case"), in_short(names))
