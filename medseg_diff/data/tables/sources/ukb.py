"""Bulk files of UK Biobank, zipped as they come or unpacked → rows of a manifest: T1 and FLAIR brains, in T1's space.

Field 20252 holds T1, field 20253 T2_FLAIR; `1234567_20252_2_0.zip` is participant, field, visit and number. Only the
images that are needed are unpacked, under names of our own, into a folder beside the table.
Alfaro-Almagro et al. 2018, Image processing and quality control for the first 10,000 brain imaging datasets from UK Biobank.
"""

import logging
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg_diff import files
from medseg_diff.console import bar
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted, in_short, is_inside, place_file, preferred, walk
from medseg_diff.data.tables.sources.ukb_fields import covariates_of
from medseg_diff.errors import ImageError, UsageError

BULK = re.compile(r"(?P<eid>\d{7})_(?P<field>2025[23])_(?P<visit>\d)_\d\.zip", re.ASCII)
UNPACKED = re.compile(r"(?P<eid>\d{7})(_2025[23])?(_(?P<visit>\d))?(_\d)?", re.ASCII)
MEMBERS = {
    "t1": ("T1/T1_brain.nii.gz", "T1/T1_unbiased_brain.nii.gz"),
    "flair": ("T2_FLAIR/T2_FLAIR_brain.nii.gz", "T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz"),
}
LESIONS = "T2_FLAIR/lesions"  # final_mask and others of BIANCA
FIRST_IMAGING = "2"  # the visit of a folder whose name does not say
LARGEST = 512 * 2**20  # bytes of one image; theirs have 20
PIECE = 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Image:
    """One image: a file in a folder, or a member of an archive."""

    container: Path
    member: str

    def size(self) -> int:
        """In bytes. Raises: ImageError where it is no plain file of reasonable size."""
        if self.container.is_dir():
            return (self.container / self.member).stat().st_size
        with zipfile.ZipFile(self.container) as archive:
            found = [info for info in archive.infolist() if info.filename == self.member]
        if len(found) > 1 or found[0].flag_bits & 1 or stat.S_ISLNK(found[0].external_attr >> 16):
            raise self.fault("is in the archive twice, is encrypted or is a link")
        if found[0].file_size > LARGEST:
            raise self.fault(f"unpacks to {found[0].file_size / 1e9:.1f} GB")
        return found[0].file_size

    def unpack(self, target: Path) -> None:
        """Write it whole or not at all; the archive's check sum is compared. Raises: ImageError, EnvironmentFault."""
        if self.container.is_dir():
            place_file(self.container / self.member, target)
            return
        with files.whole_file(target) as temporary, temporary.open("wb") as out:
            try:
                with zipfile.ZipFile(self.container) as archive, archive.open(self.member) as packed:
                    left = LARGEST
                    while piece := packed.read(min(PIECE, left)):
                        left -= len(piece)
                        out.write(piece)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise self.fault("is damaged") from error

    def fault(self, found: str) -> ImageError:
        """That the image cannot be used."""
        return ImageError(f"{self.member} {found}", fix="download it again", file=self.container.name)


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row for every visit of every participant; its images are unpacked when all of them are known to be there.

    Raises: UsageError for channels that the fields do not hold; ImageError where a visit lacks one, or an archive or an
    image is at fault, Problems of them; ManifestError for the table of covariates.
    """
    if unknown := [channel for channel in wanted.channels if channel not in MEMBERS]:
        raise UsageError(f"UK Biobank has no {unknown[0]}", fix=f"use --channels {','.join(MEMBERS)}")
    cases, images = Cases(folder, wanted), dict[Path, _Image]()
    for (eid, visit), parts in sorted(_visits(folder, wanted, cases).items()):
        case = f"{eid}_{visit}"
        paths = {column: wanted.into / case / f"{column}.nii.gz" for column in (*MEMBERS, "seg") if column in parts}
        images |= {path: parts[column] for column, path in paths.items()}
        cases.add(case, paths, eid)
    table = cases.rows(nothing="no bulk file such as 1234567_20252_2_0.zip", fix="give the folder of the downloads")
    if wanted.seg and (without := [str(row["case"]) for row in table if "seg" not in row]):
        logger.warning("%d visits have no %s/%s: %s", len(without), LESIONS, wanted.seg, in_short(without))
    known = covariates_of(wanted.covariates, table) if wanted.covariates else {}
    needed = {cell: images[cell] for row in table for cell in row.values() if isinstance(cell, Path)}
    _unpack(needed, wanted.into)
    return [{**row, **known.get(str(row["case"]), {})} for row in table]


def _visits(folder: Path, wanted: Wanted, cases: Cases) -> dict[tuple[str, str], dict[str, _Image]]:
    """The images of each visit by column; `cases.problems` grows by what cannot be read or is there twice."""
    visits: dict[tuple[str, str], dict[str, _Image]] = {}
    for container, match in _containers(folder):
        visit = visits.setdefault((match["eid"], match["visit"] or FIRST_IMAGING), {})
        try:
            members = _members(container)
        except (zipfile.BadZipFile, OSError):
            cases.problems.append(
                ImageError("is not an intact .zip archive", fix="download it again", file=container.name)
            )
            continue
        for column, names in (MEMBERS | {"seg": (f"{LESIONS}/{wanted.seg}.nii.gz",)}).items():
            there = preferred([name for name in names if name in members], wanted.prefer, str)
            if there and column in visit:
                found = f"{visit[column].container.name} holds its {column} too"
                cases.problems.append(ImageError(found, fix="keep one of them", file=container.name))
            elif there:
                visit[column] = _Image(container, there[0])
    return visits


def _containers(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Archives and unpacked folders whose names say whose they are."""
    for place, inside, paths in walk(folder):
        for path in paths:
            if (match := BULK.fullmatch(path.name)) and path.is_file() and is_inside(path, folder):
                yield path, match
        for name in inside:
            if match := UNPACKED.fullmatch(name):
                yield place / name, match


def _members(container: Path) -> set[str]:
    """The names of what an archive or a folder holds, as far as they could be of use."""
    if container.is_dir():
        known = [*(name for names in MEMBERS.values() for name in names)]
        known += [f"{LESIONS}/{path.name}" for path in (container / LESIONS).glob("*.nii.gz")]
        return {name for name in known if (container / name).is_file() and is_inside(container / name, container)}
    with zipfile.ZipFile(container) as archive:
        return set(archive.namelist())


def _unpack(images: Mapping[Path, _Image], into: Path) -> None:
    """Raises: ImageError, EnvironmentFault where there is no room."""
    files.check_room(into, sum(image.size() for image in images.values()))
    with bar("unpacking", len(images)) as advance:
        for target, image in images.items():
            image.unpack(target)
            advance(note=target.parent.name)
