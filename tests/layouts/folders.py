"""Datasets as they were downloaded or exported, as `prepare` is given them."""

import json
from pathlib import Path

import numpy as np

from tests.layouts.doors import FOUR, Layout, Outcome, prepare
from tests.layouts.scans import lay, plain, save, scan, stack

ENDINGS = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}


def brats(
    names: list[str], ending: dict[str, str], *, without: tuple[str, ...] = (), **options: object
) -> "Layout.build":
    """Cases of these names; the last lacks some channels."""

    def build(place: Path) -> Outcome:
        for number, name in enumerate(names):
            between = "-" if "GLI" in name else "_"
            files = {channel: f"{Path(name).name}{between}{word}.nii.gz" for channel, word in ending.items()}
            left = {key: file for key, file in files.items() if number + 1 < len(names) or key not in without}
            lay(place / "data" / name, left, number=number)
        return prepare(place / "data", "brats", **options)

    return build


def nnunet(*, named: bool = True, labels: object = None, source: str = "nnunet", files: int = 2) -> "Layout.build":
    def build(place: Path) -> Outcome:
        root = place / "Dataset501_Glioma"
        for number in range(files):
            lay(root / "imagesTr", [f"G_{number}_000{channel}.nii.gz" for channel in range(4)], number=number)
            save(root / "labelsTr" / f"G_{number}.nii.gz", scan(number).seg)
        if named:
            facts = {"channel_names": dict(enumerate(("T1", "T1ce", "T2", "FLAIR"))), "labels": labels}
            (root / "dataset.json").write_text(json.dumps(facts))
        return prepare(root, source)

    return build


def decathlon(place: Path) -> Outcome:
    root = place / "Task01_BrainTumour"
    for number in range(2):
        stack(root / "imagesTr" / f"BRATS_00{number}.nii.gz", ("flair", "t1", "t1ce", "t2"), number=number)
        save(root / "labelsTr" / f"BRATS_00{number}.nii.gz", scan(number).seg)
        (root / "imagesTr" / f"._BRATS_00{number}.nii.gz").write_bytes(b"macOS")
    names = ("FLAIR", "T1w", "t1gd", "T2w")
    training = [
        {"image": f"./imagesTr/BRATS_00{n}.nii.gz", "label": f"./labelsTr/BRATS_00{n}.nii.gz"} for n in range(2)
    ]
    facts = {"modality": {str(number): name for number, name in enumerate(names)}, "training": training}
    facts["labels"] = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "4": "enhancing tumour"}
    (root / "dataset.json").write_text(json.dumps(facts))
    return prepare(root, "msd")


def visits(**options: object) -> "Layout.build":
    """Two patients, the first of two visits."""

    def build(place: Path) -> Outcome:
        for number, name in enumerate(("P1/2019", "P1/2021", "P2/2020")):
            lay(place / "data" / name, plain() | {"seg": "lesion.nii.gz"}, number=number)
        return prepare(place / "data", "folders", **options)

    return build


def bids(*runs: str, source: str = "bids", **options: object) -> "Layout.build":
    def build(place: Path) -> Outcome:
        for number, name in enumerate(("sub-01", "sub-02")):
            for run in runs:
                lay(place / "ds" / name / "anat", {"t1": f"{name}{run}_T1w.nii.gz"}, number=number + len(run))
            lay(place / "ds" / name / "anat", {"flair": f"{name}_FLAIR.nii.gz"}, number=number)
            mask = place / "ds" / "derivatives" / "manual" / name / "anat" / f"{name}_label-lesion_mask.nii.gz"
            save(mask, (scan(number).seg > 0).astype(np.uint8))
        return prepare(place / "ds", source, **options)

    return build


def dicom(place: Path) -> Outcome:
    from tests.layouts.volumes import series

    for number, (channel, words) in enumerate(
        (("t1", "t1_mprage_sag"), ("flair", "t2_flair_tra"), ("t2", "localizer"))
    ):
        tags = {"SeriesDescription": words, "SeriesNumber": number, "ImageType": ["ORIGINAL", "PRIMARY"]}
        series(place / "export" / f"S{number}", channel, series=f"1.2.3.{number}", seed=number, **tags)
    return prepare(place / "export", "dicom")


def rubbish(place: Path) -> Outcome:
    for number, name in enumerate(("BraTS-GLI-00001-000", "BraTS-GLI-00002-000")):
        folder = lay(place / "data" / name, {c: f"{name}-{word}.nii.gz" for c, word in ENDINGS.items()}, number=number)
        for other in ("desktop.ini", "._" + f"{name}-t1n.nii.gz", "Thumbs.db", ".DS_Store"):
            (folder / other).write_bytes(b"x")
        lay(place / "data" / "__MACOSX" / name, {"t1": f"{name}-t1n.nii.gz"})
    return prepare(place / "data", "brats")


def linked(place: Path) -> Outcome:
    for number, name in enumerate(("P1", "P2")):
        lay(place / "data" / name, plain(seg=True), number=number)
    (place / "data" / "P2" / "t1.nii.gz").rename(place / "t1.nii.gz")
    (place / "data" / "P2" / "t1.nii.gz").symlink_to(place / "t1.nii.gz")
    return prepare(place / "data", "brats")


def empty(place: Path) -> Outcome:
    (place / "data").mkdir()
    return prepare(place / "data", "brats")


def same_twice(place: Path) -> Outcome:
    for name in ("P1", "P1_copy"):
        lay(place / "data" / name, plain(seg=True))
    return prepare(place / "data", "brats")


OLD = {channel: channel for channel in ENDINGS}
TWO = ["BraTS-GLI-00001-000", "BraTS-GLI-00002-000"]
REGIONS = {"background": 0, "whole tumor": [1, 2, 4], "tumor core": [1, 4], "enhancing tumor": 4}
LAYOUTS = [
    Layout(
        "`brats`: 2018, in folders `HGG` and `LGG`", brats(["HGG/Brats18_CBICA_AAB_1", "LGG/Brats18_TCIA09_141_1"], OLD)
    ),
    Layout("`brats`: 2021", brats(["BraTS2021_00000", "BraTS2021_00002"], OLD)),
    Layout("`brats`: 2023, two visits of a patient", brats([*TWO, "BraTS-GLI-00002-001"], ENDINGS)),
    Layout("`brats`: a case without FLAIR", brats(TWO, ENDINGS, without=("flair",))),
    Layout(
        "`brats`: the same, `--skip-incomplete`",
        brats([*TWO, "BraTS-GLI-00003-000"], ENDINGS, without=("flair",), skip_incomplete=True),
    ),
    Layout("`brats`: the same, `--channels t1,t1ce,t2`", brats(TWO, ENDINGS, without=("flair",), channels=FOUR[:3])),
    Layout("`brats`: a case without `seg`", brats(TWO, ENDINGS, without=("seg",))),
    Layout("`brats`: files of macOS and Windows among them", rubbish),
    Layout("`brats`: a link that leads out of the folder", linked),
    Layout("`brats`: one scan under two names", same_twice),
    Layout("`brats`: an empty folder", empty),
    Layout("`brats`: a raw dataset of nnU-Net", nnunet(source="brats", labels={})),
    Layout("`nnunet`: raw dataset", nnunet(labels={"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4})),
    Layout("`nnunet`: regions in `dataset.json`", nnunet(labels=REGIONS)),
    Layout("`nnunet`: no `dataset.json`", nnunet(named=False)),
    Layout("`nnunet`: a BraTS folder", lambda place: prepare(lay(place / "d" / "P1", plain()).parent, "nnunet")),
    Layout("`msd`: Task01 as downloaded, unpacked on macOS", decathlon),
    Layout("`folders`: patients with visits, masks `lesion.nii.gz`", visits(channels=FOUR, seg="lesion")),
    Layout("`folders`: the same without `--seg`", visits(channels=FOUR)),
    Layout("`folders`: the same without `--channels`", visits()),
    Layout("`bids`: T1 and FLAIR, masks in `derivatives`", bids("")),
    Layout("`bids`: two runs of T1", bids("_run-1", "_run-2")),
    Layout("`bids`: the same, `--prefer run-1`", bids("_run-1", "_run-2", prefer=("run-1",))),
    Layout("`brats`: a BIDS dataset", bids("", source="brats")),
    Layout("`dicom`: a study of T1, FLAIR and a localiser", dicom),
]
