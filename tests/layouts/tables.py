"""Tables as people write them, and the files that they name, as `validate` is given them."""

import shutil
from pathlib import Path

import numpy as np

from tests.layouts.doors import FOUR, Layout, Outcome, validate
from tests.layouts.scans import save, scan, stack, table, two


def changed(**cells: object) -> "Layout.build":
    """Two patients; the second's row has other cells."""
    return lambda place: validate(table(place, two(place, **cells)))


def written(**style: str) -> "Layout.build":
    """Two patients, the table in another style of CSV."""
    return lambda place: validate(table(place, two(place), **style))


def renamed(**names: str) -> "Layout.build":
    """Two patients; columns have other names."""

    def build(place: Path) -> Outcome:
        return validate(table(place, [{names.get(key, key): cell for key, cell in row.items()} for row in two(place)]))

    return build


def marked(change, affine=None) -> "Layout.build":
    """Two patients; the voxels of the second's reference are others."""

    def build(place: Path) -> Outcome:
        rows = two(place)
        save(place / "p2" / "seg.nii.gz", change(scan(1).seg), affine and affine(scan().affine))
        return validate(table(place, rows))

    return build


def with_columns(first: dict[str, object], second: dict[str, object]) -> "Layout.build":
    """Two patients with further cells."""
    return lambda place: validate(
        table(place, [row | more for row, more in zip(two(place), (first, second), strict=True)])
    )


def copied(place: Path) -> Outcome:
    rows = two(place)
    shutil.copyfile(place / "p1" / "t1.nii.gz", place / "p2" / "t1.nii.gz")
    return validate(table(place, rows))


def linked(place: Path) -> Outcome:
    rows = two(place / "data")
    (place / "data" / "p2" / "t1.nii.gz").rename(place / "t1.nii.gz")
    (place / "data" / "p2" / "t1.nii.gz").symlink_to(place / "t1.nii.gz")
    return validate(table(place / "data", rows))


def no_data(place: Path) -> Outcome:
    return validate(table(place, [{"case": "p1", "t1": "p1/t1.nii.gz"}]))


def absolute(place: Path) -> Outcome:
    rows = two(place)
    return validate(table(place, [rows[0], rows[1] | {"t1": str(place / "p2" / "t1.nii.gz")}]))


def backslashes(place: Path) -> Outcome:
    rows = two(place)
    return validate(table(place, [rows[0], {key: str(cell).replace("/", "\\") for key, cell in rows[1].items()}]))


def stacked(channels: str) -> "Layout.build":
    def build(place: Path) -> Outcome:
        rows = []
        for number, case in enumerate(("p1", "p2")):
            stack(place / f"{case}.nii.gz", number=number)
            rows.append({"case": case, "stack": f"{case}.nii.gz", "stack_channels": channels})
        return validate(table(place, rows))

    return build


def spreadsheet(place: Path) -> Outcome:
    two(place)
    path = place / "cases.xlsx"
    path.write_bytes(b"PK\3\4" + bytes(range(256)) * 4)
    return validate(path)


def thicker(affine: np.ndarray) -> np.ndarray:
    return affine @ np.diag([1, 1, 2, 1])


SWAPPED = {"t1": "p2/flair.nii.gz", "flair": "p2/t1.nii.gz"}
LAYOUTS = [
    Layout("all as it should be", changed()),
    Layout(
        "labels 1, 2, 4 in one case, 1, 2, 3 in the other",
        marked(lambda seg: np.where(seg == 4, 3, seg).astype(np.uint8)),
    ),
    Layout("`seg` as float, whole numbers", marked(lambda seg: seg.astype(np.float64))),
    Layout("`seg` as float, 0 to 1 as a probability", marked(lambda seg: (seg / 8).astype(np.float32))),
    Layout("`seg` as 0 and 255", marked(lambda seg: ((seg > 0) * 255).astype(np.uint8))),
    Layout("`seg` upside down: background marked, lesion not", marked(lambda seg: (seg == 0).astype(np.uint8))),
    Layout("`seg` with no background at all", marked(lambda seg: seg + np.uint8(1))),
    Layout("`seg` empty", marked(np.zeros_like)),
    Layout("`seg` on another grid", marked(lambda seg: seg[:, :, ::2], thicker)),
    Layout("`seg` of the other patient", changed(seg="p1/seg.nii.gz")),
    Layout("`seg` is the FLAIR image", changed(seg="p1/flair.nii.gz")),
    Layout("cells of `t1` and `flair` interchanged in one row", changed(**SWAPPED)),
    Layout("columns `t1` and `flair` interchanged", renamed(t1="flair", flair="t1")),
    Layout(
        "columns `T1`, `T1CE`, `T2`, `FLAIR`, `SEG`", renamed(t1="T1", t1ce="T1CE", t2="T2", flair="FLAIR", seg="SEG")
    ),
    Layout("columns `subject` and `t1gd`", renamed(case="subject", t1ce="t1gd")),
    Layout("column `mask` in place of `seg`", renamed(seg="mask")),
    Layout("column `segmentation` in place of `seg`", renamed(seg="segmentation")),
    Layout("semicolons, as spreadsheets of some countries write", written(delimiter=";")),
    Layout("UTF-8 with a byte order mark", written(encoding="utf-8-sig")),
    Layout("the spreadsheet itself, `.xlsx`", spreadsheet),
    Layout("a file that is not there", changed(t1="p2/t1n.nii.gz")),
    Layout("a column with an empty cell", changed(t1ce="")),
    Layout("absolute paths", absolute),
    Layout("`\\` in paths, as on Windows", backslashes),
    Layout("paths that lead out of the folder", changed(t1="../p2/t1.nii.gz")),
    Layout("a link that leads out of the folder", linked),
    Layout("the same file for two patients", changed(t1="p1/t1.nii.gz")),
    Layout("a copy of the same scan under two patients", copied),
    Layout("the same name twice", changed(case="p1")),
    Layout("a name with a blank", changed(case="p 2")),
    Layout(
        "one patient in two splits", with_columns({"patient": "x", "split": "train"}, {"patient": "x", "split": "test"})
    ),
    Layout("`split` is `validation`", with_columns({"split": "train"}, {"split": "validation"})),
    Layout("`label` is `healthy`, but `seg` marks a lesion", with_columns({"label": "diseased"}, {"label": "healthy"})),
    Layout("`age_years` is `63 years`", with_columns({"age_years": 61}, {"age_years": "63 years"})),
    Layout("4D files, volumes named in `stack_channels`", stacked(",".join(FOUR))),
    Layout("4D files, volumes not named", stacked("")),
    Layout("4D files, three of four volumes named", stacked("t1,t1ce,t2")),
    Layout("files that are all not there", no_data),
]
