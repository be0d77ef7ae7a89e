"""The folder of one case's results: whether it is what a call would make, and how a new result takes an old one's place."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.console import log
from medseg_diff.data.digests import is_same_scan
from medseg_diff.data.results import FACTS, PAGE, SCHEMA
from medseg_diff.data.tables.case import Case
from medseg_diff.data.transforms import present_channels
from medseg_diff.errors import EnvironmentFault, MedsegError, UsageError
from medseg_diff.files import TEMPORARY, flush, read_facts, sha256_of, write_json
from medseg_diff.tasks.apply.pseudonyms import without_names

# What versions before schema 2 wrote and did not list, as far as nobody else would call a file so.
UNLISTED = re.compile(
    r"(mask|probability|calibrated|spread|ambiguity|uncertainty|members/\d+|anomaly|anomaly_mask|baselines/\w+"
    r"|healed_(t1|t1ce|t2|flair))\.nii\.gz|lesions\.csv"
)


def nothing(case: Case) -> dict[str, Any]:
    """What case.json must say of a case beside what it says of all: no more than that."""
    return {}


@dataclass(frozen=True)
class Identity:
    """What two calls must have in common for their results to stand in one folder: keys of case.json and their values.
    `of_case` says what a case must have besides, to be complete."""

    facts: Mapping[str, Any]
    of_case: Callable[[Case], Mapping[str, Any]] = nothing

    def check(self, known: Mapping[str, Any], name: str) -> None:
        """Raises: UsageError where case.json says other things: mixing two settings in one folder helps nobody."""
        for key, wanted in self.facts.items():
            if known.get(key) != wanted:
                raise UsageError(
                    f"was made with {key} {known.get(key)}, not {wanted}",
                    fix="use --overwrite, or another --out",
                    case=name,
                    file=FACTS,
                )


class OtherScan(UsageError):
    """The case of this name was made from other images."""


def is_complete(folder: Path, case: Case, identity: Identity, source: str | None) -> bool:
    """Whether the folder holds this very scan, done with the same model and numbers, and every file as it was written.

    Raises: UsageError where it was done with others; OtherScan, which names `source`.
    """
    known = read_facts(folder / FACTS)
    if not known:
        return False
    identity.check(known, folder.name)
    if known.get("schema") != SCHEMA:
        return False  # of an earlier version
    if changed := [key for key, wanted in identity.of_case(case).items() if known.get(key) != wanted]:
        log.info("[%s] its %s changed: redoing the case", case.name, " and ".join(changed))
        return False
    inputs, outputs, channels = (known.get(key) for key in ("inputs", "outputs", "channels"))
    if not (isinstance(inputs, dict) and isinstance(outputs, dict) and isinstance(channels, list)):
        return False  # not as it was written
    try:
        same = is_same_scan(case, present_channels(case, channels), inputs, resample_to=known.get("resample_to"))
    except MedsegError:
        return False  # what is wrong with the images is told when it is their turn
    if not same:
        before = known.get("source")
        found = f"was made from the images of {before}, not of {source}"
        if source is None or before in (None, source):
            found = "was made from other images" + (f" than {source} holds now" if source else "")
        raise OtherScan(found, fix="use another --out, or --overwrite", case=folder.name, file=FACTS)
    for name, digest in outputs.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            log.info("[%s] %s is missing or has changed: redoing the case", case.name, name)
            return False
    return True


def source_of(case: Case, root: Path | None = None) -> str | None:
    """The last two folder names of where a case lies, none of them from above `root` (its table's folder), or a home."""
    path = next(iter(case.paths.values()), None)
    if path is None:
        return None
    place = path if path.name == case.name else path.parent
    root = root or Path("~").expanduser()
    above = next((each for each in (root.absolute(), root.resolve()) if place.is_relative_to(each)), Path(place.anchor))
    return "/".join(place.relative_to(above).parts[-2:]) or path.name


def tell(folder: Path, case: Case, name: str, source: str | None, facts: Mapping[str, Any]) -> None:
    """Write case.json: what the case is called, where it came from, `facts`, and every other file below the folder."""
    written = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    known = {"case": name, "schema": SCHEMA} | ({} if source is None else {"source": source}) | dict(facts)
    known["warnings"] = [without_names(warning, case, name) for warning in facts.get("warnings", ())]
    known["outputs"] = {relative: sha256_of(path) for relative, path in written.items()}
    write_json(folder / FACTS, known)


@contextmanager
def made_anew(folder: Path) -> Iterator[Path]:
    """Yield a folder to write a case into, which at the end takes the place of `folder` in one step; on failure, or where
    the process is killed, `folder` is as it was, or is not there.

    Raises: UsageError where `folder` is a link or holds what this tool did not write; EnvironmentFault.
    """
    _refuse_others(folder, folder.name)
    place = folder.with_name(f".{os.getpid()}.{folder.name}")  # as `files.clean` knows them
    new, old = place / "new", place / "old"
    try:
        yield new
        try:
            if folder.exists():
                folder.rename(old)
                _refuse_others(old, folder.name)  # nobody puts a file there any more
            new.rename(folder)
            flush(folder.parent)
        except OSError as error:
            found = f"cannot be replaced ({error.strerror})"
            raise EnvironmentFault(found, fix="choose another --out", file=folder.name) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(place, ignore_errors=True)


def _refuse_others(folder: Path, name: str) -> None:
    """Raises: UsageError where the folder of the case `name` holds a file that this tool did not write, or is or holds a
    link, which may lead anywhere."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError("is not a folder but a link or a file", fix="use another --out", file=name)
    facts = read_facts(folder / FACTS)
    outputs = facts.get("outputs")
    ours = isinstance(outputs, dict) or "medseg_diff" in str(facts.get("versions"))
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / each for each in (*files, *folders)):
            file = path.relative_to(folder).as_posix()
            listed = file in outputs if isinstance(outputs, dict) else ours and UNLISTED.fullmatch(file)
            known = listed or TEMPORARY.fullmatch(path.name) or (file == FACTS and (ours or not facts))
            known = known or (file == PAGE and ours)  # of the result that goes, so it goes as well
            if path.is_symlink() or not (known or path.is_dir()):
                found = f"holds the link {file}" if path.is_symlink() else f"holds {file}, which no {FACTS} lists"
                raise UsageError(found, fix="move it elsewhere, or use another --out", case=name)
