"""`validate`: read every file of a manifest as training and segmentation would, and list all that is wrong."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.data.formats.stored import values_in
from medseg_diff.data.reading import CaseImages, read_case
from medseg_diff.data.tables.channel_names import SYNONYMS, channel_called
from medseg_diff.data.tables.manifest import Case, Manifest, scan_manifest
from medseg_diff.data.tables.sources.brats import ENHANCING
from medseg_diff.data.tables.sources.collect import in_short
from medseg_diff.errors import ExitCode, ManifestError, MedsegError, Problems

MASKS = (
    "mask",
    "segmentation",
    "lesion",
    "lesions",
    "annotation",
    "groundtruth",
    "ground_truth",
    "gt",
    "reference",
    "roi",
)


@dataclass(frozen=True)
class Report:
    """What `validate` found: cases read, every problem, and what was doubtful but could be handled."""

    cases: int
    problems: tuple[MedsegError, ...]
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        """That of the first problem; a fault of the table comes before one of an image."""
        return self.problems[0].exit_code if self.problems else ExitCode.OK

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        fields = ("case", "channel", "file", "found", "fix")
        problems = [
            {"exit_code": int(problem.exit_code)} | {field: getattr(problem, field) for field in fields}
            for problem in self.problems
        ]
        return {"cases": self.cases, "problems": problems, "warnings": list(self.warnings)}


def validate(data: Path, *, data_root: Path | None = None, channels: Sequence[str] | None = None) -> Report:
    """Check the table and every file it names, one case in memory at a time.

    `channels` are those that a recipe needs (default: whatever each case has). No torch is imported.
    Raises: ManifestError where the file as a whole is no table of cases.
    """
    manifest, problems = scan_manifest(Path(data), data_root=data_root)
    warnings = [f"{manifest.file}: {text}" for text in (*_doubtful_columns(manifest), *_uneven(manifest.cases))]
    seen: dict[bytes, str] = {}
    for case in manifest.cases:
        try:
            images = _read(case, channels)
            warnings += [f"[{case.name}] {text}" for text in (*images.warnings, *_unusual_labels(images))]
            problems += _copies(images, manifest.file, seen)
            del images  # before the next is read
        except MedsegError as error:
            kept = error.without_trace()
            problems += kept.problems if isinstance(kept, Problems) else [kept]
    problems.sort(key=lambda problem: problem.exit_code)  # stable: by line within each kind
    return Report(len(manifest.cases), tuple(problems), tuple(warnings))


def _doubtful_columns(manifest: Manifest) -> list[str]:
    """Columns of images whose names say that they are a reference, or a channel that recipes call otherwise."""
    known = [(name, channel_called(name, SYNONYMS)) for name in manifest.channels]
    return [
        f"column `{name}` is read as a channel: if it is the reference, call it `seg`"
        for name, _ in known
        if name in MASKS
    ] + [
        f"column `{name}` is a channel of its own: recipes call it `{channel}`"
        for name, channel in known
        if channel not in (None, name)
    ]


def _uneven(cases: Sequence[Case]) -> list[str]:
    """Channels and references that some cases have and others lack."""
    columns = dict.fromkeys(column for case in cases for column in (*case.channels, *(["seg"] if case.seg else [])))
    lacking = {
        column: [case.name for case in cases if column not in case.channels and not (column == "seg" and case.seg)]
        for column in columns
    }
    return [
        f"{len(names)} of {len(cases)} cases have no {column}: {in_short(names)}"
        for column, names in lacking.items()
        if names
    ]


def _read(case: Case, channels: Sequence[str] | None) -> CaseImages:
    missing = [channel for channel in channels or () if channel not in case.channels]
    if missing:
        has = ", ".join(case.channels)
        raise ManifestError(f"has no {', '.join(missing)} (its channels: {has})", fix="add them", case=case.name)
    return read_case(case, channels)


def _unusual_labels(images: CaseImages) -> list[str]:
    """Labels beyond those of the recipes that come with the package: training refuses what its recipe does not name."""
    if images.reference is None:
        return []
    unusual = sorted(label for label in values_in(images.reference) if label > ENHANCING)
    names = ", ".join(map(str, unusual[:8])) + (" …" if len(unusual) > 8 else "")
    return [f"seg holds the labels {names}: the recipe has to name them"] if len(unusual) else []


def _copies(images: CaseImages, file: str, seen: dict[bytes, str]) -> list[MedsegError]:
    """Channels that hold the very voxels of another case: the same scan under two names is leakage."""
    found: list[MedsegError] = []
    for channel, voxels in zip(images.channels, images.image, strict=True):
        digest = hashlib.blake2b(voxels.data, digest_size=16).digest()
        other = seen.setdefault(digest, images.name)
        if other != images.name:
            said = f"holds the same voxels as a channel of case {other}"
            fix = "keep one of the two cases; the same scan in both is leakage"
            found.append(ManifestError(said, fix=fix, case=images.name, channel=channel, file=file))
    return found
