"""Layouts of one case, as `--volume` is given them."""

import gzip
import json
from pathlib import Path

import numpy as np

from tests.dicom_series import write_series
from tests.layouts.doors import FOUR, Layout, Outcome, volume
from tests.layouts.scans import lay, plain, save, scan, stack

BRATS = [f"BraTS2021_00006_{channel}.nii.gz" for channel in FOUR]
GLI = [f"BraTS-GLI-00009-000-{ending}.nii.gz" for ending in ("t1n", "t1c", "t2w", "t2f")]
NUMBERED = [f"GLIOMA_001_000{number}.nii.gz" for number in range(4)]


def dataset(folder: Path, *words: str) -> Path:
    names = {str(number): word for number, word in enumerate(words)}
    (folder / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": {"background": 0}}))
    return folder


def folder(*names: str, given: str = "") -> "Layout.build":
    """The four channels under such names, the folder (or one file of it) given."""
    return lambda place: volume(lay(place / "P7", names) / given)


def numbered(*words: str, order: tuple[str, ...] = ()) -> "Layout.build":
    def build(place: Path) -> Outcome:
        lay(place / "P7", NUMBERED)
        if words:
            dataset(place, *words)
        return volume(place / "P7", order=order)

    return build


def four_dimensional(*words: str, order: tuple[str, ...] = ()) -> "Layout.build":
    def build(place: Path) -> Outcome:
        path = stack(place / "imagesTr" / "BRATS_001.nii.gz")
        if words:
            dataset(place, *words)
        return volume(path, order=order)

    return build


def changed(channel: str, change, affine=None) -> "Layout.build":
    """A plain folder in which the voxels of one channel, and their affine, are others."""

    def build(place: Path) -> Outcome:
        lay(place / "P7", plain())
        save(place / "P7" / f"{channel}.nii.gz", change(scan().images[channel]), affine and affine(scan().affine))
        return volume(place / "P7")

    return build


def beside(**others: bytes) -> "Layout.build":
    """A plain folder with other files in it (`__` is a dot)."""

    def build(place: Path) -> Outcome:
        lay(place / "P7", plain())
        for name, content in others.items():
            (place / "P7" / name.replace("__", ".")).write_bytes(content)
        return volume(place / "P7")

    return build


def broken(damage) -> "Layout.build":
    """A plain folder in which the bytes of t2.nii.gz are others."""

    def build(place: Path) -> Outcome:
        path = lay(place / "P7", plain()) / "t2.nii.gz"
        path.write_bytes(damage(path.read_bytes()))
        return volume(place / "P7")

    return build


def flipped(affine: np.ndarray) -> np.ndarray:
    """As the voxels of [::-1] lie."""
    turned = affine.copy()
    turned[:3, 3] += affine[:3, 0] * (SIZE - 1)
    turned[:3, 0] *= -1
    return turned


def thicker(affine: np.ndarray) -> np.ndarray:
    return affine @ np.diag([1, 1, 2, 1])


def with_nan(voxels: np.ndarray) -> np.ndarray:
    found = voxels.astype(np.float32)
    found[20:22, 20, 10] = np.nan
    return found


def with_skull(voxels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).rayleigh(30, voxels.shape)
    x, y, z = np.ogrid[[slice(-1, 1, complex(size)) for size in voxels.shape]]
    skull = (x**2 + y**2 + z**2 < 0.95) * 300.0
    return np.where(voxels > 0, voxels, skull + noise).astype(np.int16)


def patients(place: Path) -> Outcome:
    for number, name in enumerate(("P1", "P2")):
        lay(place / "all" / name, plain(), number=number)
    return volume(place / "all")


def nested(place: Path) -> Outcome:
    return volume(lay(place / "P7" / "nifti", plain()).parent)


def slices(place: Path) -> Outcome:
    for channel in FOUR:
        save(place / "P7" / f"{channel}.nii.gz", scan().images[channel][:, :, 16])
    return volume(place / "P7")


def interchanged(one: str, other: str) -> "Layout.build":
    names = plain()
    return lambda place: volume(lay(place / "P7", names | {one: names[other], other: names[one]}))


def one_file(name: str, channel: str, word: str = "") -> "Layout.build":
    """The file of one channel for a model of T1 alone."""

    def build(place: Path) -> Outcome:
        return volume(f"{word}{lay(place / 'P7', {channel: name}) / name}", channels=("t1",))

    return build


def linked(inside: bool) -> "Layout.build":
    def build(place: Path) -> Outcome:
        lay(place / "P7", {channel: name for channel, name in plain().items() if channel != "t2"})
        lay(place / ("P7/raw" if inside else "other"), {"t2": "t2.nii.gz"})
        (place / "P7" / "t2.nii.gz").symlink_to(place / ("P7/raw" if inside else "other") / "t2.nii.gz")
        return volume(place / "P7")

    return build


def series(place: Path, channel: str, **header: object) -> Path:
    voxels = np.ascontiguousarray(scan().images[channel].transpose(2, 1, 0)).clip(0).astype(np.uint16)
    return write_series(place, voxels, spacing=(4.0, 4.0), heights=5.0 * np.arange(len(voxels)), **header)


def dicom_folders(place: Path) -> Outcome:
    for number, name in enumerate(("T1", "T1 post contrast", "T2w", "FLAIR")):
        series(place / "P7" / name, FOUR[number], series=f"1.2.{number}")
    return volume(place / "P7")


def dicom_mixed(place: Path) -> Outcome:
    series(place / "a", "t1", series="1.2.1")
    series(place / "b", "t2", series="1.2.2")
    (place / "P7").mkdir()
    for path in (*(place / "a").iterdir(), *(place / "b").iterdir()):
        path.rename(place / "P7" / f"{path.parent.name}{path.name}")
    return volume(place / "P7", channels=("t1",))


def dicom_hole(place: Path) -> Outcome:
    folder = series(place / "P7", "t1")
    (folder / "IM007").unlink()
    return volume(folder, channels=("t1",))


def formats(place: Path) -> Outcome:
    import nibabel
    import SimpleITK

    lay(place / "P7", {"t1": "t1.nii", "t1ce": "t1ce.nii.gz", "t2": "t2.nii"})
    image = nibabel.load(place / "P7" / "t2.nii")
    nibabel.save(nibabel.MGHImage(np.asarray(image.dataobj).astype(np.float32), image.affine), place / "P7" / "t2.mgz")
    (place / "P7" / "t2.nii").unlink()
    lay(place, {"flair": "flair.nii.gz"})
    SimpleITK.WriteImage(SimpleITK.ReadImage(place / "flair.nii.gz"), place / "P7" / "flair.mha")
    return volume(place / "P7")


def words(place: Path) -> Outcome:
    names = {channel: f"series{number}.nii.gz" for number, channel in enumerate(FOUR)}
    lay(place / "P7", names)
    return volume(*(f"{channel}={place / 'P7' / name}" for channel, name in names.items()))


def twice(place: Path) -> Outcome:
    lay(place / "P7", plain())
    (place / "P7" / "t1.nii.gz").replace(place / "P7" / "t1ce.nii.gz")
    lay(place / "P7", {"t1": "t1.nii.gz"})
    return volume(place / "P7")


def double(*names: str) -> "Layout.build":
    """A plain folder, T1 also under these names and not under its own."""

    def build(place: Path) -> Outcome:
        lay(place / "P7", plain())
        (place / "P7" / "t1.nii.gz").unlink()
        for number, name in enumerate(names):
            lay(place / "P7", {"t1": name}, number=number)
        return volume(place / "P7")

    return build


def nothing(place: Path) -> Outcome:
    (place / "P7").mkdir()
    return volume(place / "P7")


def zipped(place: Path) -> Outcome:
    (place / "P7.zip").write_bytes(b"PK\3\4" + bytes(64))
    return volume(place / "P7.zip")


SIZE = 48
LAYOUTS = [
    Layout("BraTS 2018 to 2021: `BraTS2021_00006_t1ce.nii.gz` …", folder(*BRATS)),
    Layout("BraTS 2023: `BraTS-GLI-00009-000-t1c.nii.gz` …", folder(*GLI)),
    Layout("`t1.nii.gz`, `t1ce.nii.gz` …", folder(*plain().values())),
    Layout("one file of a BraTS case", folder(*BRATS, given=BRATS[2])),
    Layout(
        "capital letters: `P7_T1.nii`, `P7_T1-Gd.nii`, `P7_T2.nii`, `P7_T2_FLAIR.nii`",
        folder("P7_T1.nii", "P7_T1-Gd.nii", "P7_T2.nii", "P7_T2_FLAIR.nii"),
    ),
    Layout(
        "blanks: `P7 T1.nii`, `P7 T1 Gd.nii`, `P7 T2.nii`, `P7 FLAIR.nii`",
        folder("P7 T1.nii", "P7 T1 Gd.nii", "P7 T2.nii", "P7 FLAIR.nii"),
    ),
    Layout(
        "BIDS: `sub-1_T1w.nii`, `sub-1_ce-gadolinium_T1w.nii`, `sub-1_T2w.nii`, `sub-1_FLAIR.nii`",
        folder("sub-1_T1w.nii", "sub-1_ce-gadolinium_T1w.nii", "sub-1_T2w.nii", "sub-1_FLAIR.nii"),
    ),
    Layout(
        "scanner's names: `3_t1_mprage_sag.nii` …",
        folder("3_t1_mprage_sag.nii", "9_t1_mprage_sag_km.nii", "5_t2_tse_tra.nii", "6_t2_flair_tra.nii"),
    ),
    Layout("nnU-Net numbers, `dataset.json` above", numbered("T1", "T1ce", "T2", "FLAIR")),
    Layout("nnU-Net numbers, `dataset.json` with another order", numbered("FLAIR", "T2", "T1ce", "T1")),
    Layout("nnU-Net numbers, no `dataset.json`", numbered()),
    Layout("nnU-Net numbers, `--channels t1,t1ce,t2,flair`", numbered(order=FOUR)),
    Layout(
        "nnU-Net numbers, `--channels` against `dataset.json`",
        numbered("T1", "T1ce", "T2", "FLAIR", order=("flair", "t1", "t1ce", "t2")),
    ),
    Layout("4D, `dataset.json` above", four_dimensional("T1w", "t1gd", "T2w", "FLAIR")),
    Layout("4D, no `dataset.json`", four_dimensional()),
    Layout("4D, `dataset.json` names three of four volumes", four_dimensional("T1w", "t1gd", "T2w")),
    Layout("4D, `dataset.json` says `MRI` only", four_dimensional("MRI", "MRI2", "MRI3", "MRI4")),
    Layout("`t1=series0.nii.gz t1ce=series1.nii.gz` …", words),
    Layout(
        "a channel missing",
        lambda place: volume(lay(place / "P7", {"t1": "t1.nii.gz", "t1ce": "t1ce.nii.gz", "t2": "t2.nii.gz"})),
    ),
    Layout(
        "`t1ce` and `t1gd` both there",
        lambda place: volume(lay(lay(place / "P7", plain()), {"t1ce": "t1gd.nii.gz"}, number=1)),
    ),
    Layout("two T1 of two dates: `2019_t1`, `2021_t1`", double("2019_t1.nii.gz", "2021_t1.nii.gz")),
    Layout("`t1.nii` beside `t1.nii.gz`", double("t1.nii", "t1.nii.gz")),
    Layout("T1 also bias-corrected: `t1.nii.gz`, `t1_n4.nii.gz`", double("t1.nii.gz", "t1_n4.nii.gz")),
    Layout("FLAIR and T2 interchanged in their names", interchanged("flair", "t2")),
    Layout("T1 and FLAIR interchanged in their names", interchanged("t1", "flair")),
    Layout("T1 without contrast medium under both names", twice),
    Layout("model of T1: `P7_t1.nii.gz`", one_file("P7_t1.nii.gz", "t1")),
    Layout("model of T1: `scan.nii.gz`", one_file("scan.nii.gz", "t1")),
    Layout("model of T1: `P7_flair.nii.gz`", one_file("P7_flair.nii.gz", "flair")),
    Layout("model of T1: FLAIR called `scan.nii.gz`", one_file("scan.nii.gz", "flair")),
    Layout("model of T1: `t1=P7_flair.nii.gz`", one_file("P7_flair.nii.gz", "flair", "t1=")),
    Layout("model of T1: a mask called `P7_t1.nii.gz`", one_file("P7_t1.nii.gz", "seg")),
    Layout(
        "Windows' and macOS's own files: `desktop.ini`, `Thumbs.db`, `.DS_Store`, `._t1.nii.gz`",
        beside(desktop__ini=b"[x]", Thumbs__db=b"x", __DS_Store=b"x", ___t1__nii__gz=b"x"),
    ),
    Layout("notes and reports in the folder", beside(report__pdf=b"%PDF", cases__xlsx=b"PK", t1__json=b"{}")),
    Layout("a folder of patients instead of one", patients),
    Layout("the images one folder further down", nested),
    Layout("an empty folder", nothing),
    Layout("a path that is not there", lambda place: volume(place / "P8")),
    Layout("a `.zip`", zipped),
    Layout("t2 is a link to a file in the folder", linked(inside=True)),
    Layout("t2 is a link to a file elsewhere", linked(inside=False)),
    Layout("a `.gz` cut short", broken(lambda content: content[: len(content) // 2])),
    Layout(
        "a `.gz` with one byte changed",
        broken(lambda content: content[:-900] + bytes([content[-900] ^ 8]) + content[-899:]),
    ),
    Layout("a `.nii.gz` that is not zipped", broken(gzip.decompress)),
    Layout("an empty file", broken(lambda _: b"")),
    Layout("a web page saved as `t2.nii.gz`", broken(lambda _: b"<!DOCTYPE html><html>Sign in</html>")),
    Layout("one channel on another grid", changed("flair", lambda voxels: voxels[:, :, ::2], thicker)),
    Layout("one channel with its axes the other way round", changed("flair", lambda voxels: voxels[::-1], flipped)),
    Layout("2D slices", slices),
    Layout(
        "voxels below zero: brightness less its mean",
        changed("t1", lambda voxels: np.where(voxels > 0, voxels - 500, 0).astype(np.int16)),
    ),
    Layout(
        "voxels beyond 16 bits that ran over",
        changed("t1", lambda voxels: (voxels.astype(np.int32) * 60).astype(np.int16)),
    ),
    Layout("NaN in some voxels", changed("t1", with_nan)),
    Layout("nothing but one value", changed("t1", np.zeros_like)),
    Layout("skull not stripped, one channel", changed("t1", with_skull)),
    Layout("`.nii`, `.nii.gz`, `.mgz` and `.mha` mixed", formats),
    Layout("DICOM: a folder for each channel", dicom_folders),
    Layout(
        "DICOM: one folder of one series, model of T1",
        lambda place: volume(series(place / "P7", "t1"), channels=("t1",)),
    ),
    Layout("DICOM: one folder of two series, model of T1", dicom_mixed),
    Layout("DICOM: a slice missing, model of T1", dicom_hole),
    Layout("DICOM: one folder of one series, model of four channels", lambda place: volume(series(place / "P7", "t1"))),
    Layout(
        "DICOM: one file, model of T1", lambda place: volume(series(place / "P7", "t1") / "IM007", channels=("t1",))
    ),
]
