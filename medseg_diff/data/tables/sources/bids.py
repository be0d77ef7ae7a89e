"""A BIDS dataset → rows of a manifest: anatomical images, lesion masks of its derivatives, age and sex of participants.

Names are taken apart as BIDS puts them together: `sub-01_ses-1_ce-gadolinium_T1w` is entities, then a suffix. A patient is
a `sub`, a case one of its `ses`. Brain Imaging Data Structure, bids-specification.readthedocs.io.
"""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_diff.data.tables.channel_names import SYNONYMS, channel_called, column_of
from medseg_diff.data.tables.inputs import case_name, stem_of
from medseg_diff.data.tables.sources.collect import Cases, Row, Wanted, preferred, walk
from medseg_diff.errors import ImageError, UsageError, counted

SUFFIXES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair"}
LESIONS = re.compile(r".*_(label|desc)-lesions?_(mask|roi)", re.IGNORECASE)
LABELS = re.compile(r"(?!.*_desc-\w*aseg_).*_dseg")  # not what FreeSurfer parcels
OWN_SPACES = (None, "orig", "individual", *SUFFIXES)  # `space` of a mask that lies on an image as it was taken
LARGEST = 32 * 2**20  # bytes of participants.tsv
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _File:
    """An image with what its name says; `pipeline` is the folder of derivatives that it is from."""

    path: Path
    stem: str
    entities: dict[str, str]
    suffix: str
    pipeline: str = ""


def rows(folder: Path, wanted: Wanted) -> list[Row]:
    """One row for every session of every subject, in order of name.

    Raises: ImageError where one lacks a channel that others have or has two images of one, Problems of all.
    """
    cases, people, masks = Cases(folder, wanted), _participants(folder), Counter[str]()
    for subject in sorted(path for path in folder.glob("sub-*") if path.is_dir() and not path.is_symlink()):
        sessions: dict[str, list[_File]] = {}
        raw = list(_files(subject))
        for file in raw:
            sessions.setdefault(file.entities.get("ses", ""), []).append(file)
        made = [file for place in sorted(folder.glob(f"derivatives/*/{subject.name}")) for file in _files(place)]
        for session, files in sessions.items():
            case = case_name(subject.name + (f"_ses-{session}" if session else ""))
            of_session = (None, session) if len(sessions) == 1 else (session or None,)
            candidates = [file for file in [*files, *made] if file.entities.get("ses") in of_session]
            try:
                images = _images(files, wanted, case)
                mask = _mask(candidates, images, wanted, case) if images else None
            except ImageError as error:
                cases.problems.append(error)
                continue
            if images:
                seg = {"seg": mask.path} if mask else {}
                masks.update([f"{_kind(mask, wanted)} of {mask.pipeline or 'the subjects'}"] if mask else [])
                paths = {channel: file.path for channel, file in images.items()}
                cases.add(case, paths | seg, case_name(subject.name), **people.get(subject.name, {}))
    table = cases.rows(
        nothing="no sub-…/anat/ with a T1w, T2w or FLAIR", fix="give the folder that holds the sub-… folders"
    )
    _say(masks)
    return table


def _files(place: Path) -> Iterator[_File]:
    """The images below a folder of a subject, in order of name."""
    pipeline = place.parent.name if place.parent.parent.name == "derivatives" else ""
    for _, _, paths in walk(place):
        for path in paths:
            stem = stem_of(path) or ""
            *pairs, suffix = stem.split("_")
            if stem and pairs and pairs[0] == place.name:
                entities = {key: value for key, _, value in (pair.partition("-") for pair in pairs)}
                yield _File(path, stem, entities, suffix, pipeline)


def _images(files: Sequence[_File], wanted: Wanted, case: str) -> dict[str, _File]:
    """The image of each channel. Raises: ImageError where there are several."""
    found: dict[str, list[_File]] = {}
    for file in files:
        if (channel := _channel(file, wanted)) and file.path.parent.name == "anat":
            found.setdefault(channel, []).append(file)
    order = [*wanted.channels, *(channel for channel in SYNONYMS if channel not in wanted.channels)]
    return {channel: _only(found[channel], channel, wanted, case) for channel in order if channel in found}


def _channel(file: _File, wanted: Wanted) -> str | None:
    """What an image is by its suffix; after contrast medium only T1 is a channel, and of other suffixes those asked for."""
    if "ce" in file.entities:
        return "t1ce" if file.suffix == "T1w" else None
    if file.entities.get("part", "mag") != "mag":
        return None
    if file.suffix in SUFFIXES:
        return SUFFIXES[file.suffix]
    try:
        column = column_of(file.suffix)
    except UsageError:
        return None
    return column if column in wanted.channels and channel_called(file.suffix, SYNONYMS) is None else None


def _mask(files: Sequence[_File], images: dict[str, _File], wanted: Wanted, case: str) -> _File | None:
    """The reference of a case: a lesion mask, or else a segmentation; none on another grid. Raises: ImageError for two."""
    spaces = {*OWN_SPACES, *(image.entities.get("space") for image in images.values())}
    here = [file for file in files if file.entities.get("space") in spaces and file.path not in _paths(images)]
    if wanted.seg:
        found = [file for file in here if file.stem.lower().endswith(wanted.seg.lower())]
    else:
        found = [file for file in here if LESIONS.fullmatch(file.stem)]
        found = found or [file for file in here if LABELS.fullmatch(file.stem)]
    return _only(found, "seg", wanted, case) if found else None


def _paths(images: dict[str, _File]) -> set[Path]:
    return {image.path for image in images.values()}


def _only(files: Sequence[_File], channel: str, wanted: Wanted, case: str) -> _File:
    """The one file, chosen by whole entities of its name or the name of its pipeline. Raises: ImageError."""
    words = [f"_{word}_" for word in wanted.prefer]
    first, *others = preferred(files, words, lambda file: f"_{file.pipeline}_{file.stem}_")
    if others:
        found = f"{first.path.name} and {others[0].path.name} are both {channel}"
        fix = "choose with --prefer and a part of the name, as in --prefer run-01,acq-highres"
        raise ImageError(found, fix=fix, case=case)
    return first


def _kind(mask: _File, wanted: Wanted) -> str:
    return (
        f"*{wanted.seg}"
        if wanted.seg
        else "*" + "_".join(mask.stem.split("_")[-2 if LESIONS.fullmatch(mask.stem) else -1 :])
    )


def _say(masks: Counter[str]) -> None:
    for kind, count in sorted(masks.items()):
        logger.info("references of %s: %s", counted(count, "case"), kind)
        if kind.startswith("*dseg"):
            logger.warning("are the labels of %s lesions? They may be tissues: then name the masks with --seg", kind)
    if not masks:
        logger.info("its derivatives hold no lesion mask: the table has no references (--seg names them)")


def _participants(folder: Path) -> dict[str, dict[str, str]]:
    """Age and sex by subject, as far as participants.tsv tells them in words that a table takes."""
    path = folder / "participants.tsv"
    if not path.is_file() or path.stat().st_size > LARGEST:
        return {}
    reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig", errors="replace")), delimiter="\t")
    header, *lines = [[cell.strip() for cell in line] for line in reader if line] or [[]]
    names = [name.lower() for name in header]
    people = {}
    for line in lines:
        cells = dict(zip(names, line, strict=False))
        subject = cells.get("participant_id", "")
        age, sex = cells.get("age", ""), (cells.get("sex") or cells.get("gender", "")).lower()
        known = {"age_years": age if re.fullmatch(r"\d{1,3}(\.\d+)?", age) else "", "sex": SEXES.get(sex, "")}
        people[subject if subject.startswith("sub-") else f"sub-{subject}"] = known
    return people
