"""`validate`: read every file of a manifest as training and segmentation would; what there is, and all that is wrong."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.data.geometry import shape_text
from medseg_diff.data.reading import CaseImages, read_case
from medseg_diff.data.survey import NO_SPLIT, CaseFacts, facts_of, mixed_conventions, table_facts
from medseg_diff.data.tables.columns import doubtful_columns
from medseg_diff.data.tables.manifest import Case, scan_manifest
from medseg_diff.data.tables.sources.brats import ENHANCING
from medseg_diff.errors import ExitCode, ManifestError, MedsegError, Problems, counted
from medseg_diff.tasks.parallel import in_parallel

SHOWN_GRIDS, SHOWN_LABELS = 5, 12


@dataclass(frozen=True)
class Report:
    """What `validate` found: cases read, every problem, what was doubtful but could be handled; what the `table` holds
    and, of each case that could be read, its `facts`."""

    cases: int
    problems: tuple[MedsegError, ...]
    warnings: tuple[str, ...]
    table: Mapping[str, Any]
    facts: tuple[CaseFacts, ...]

    @property
    def exit_code(self) -> ExitCode:
        """That of the first problem; a fault of the table comes before one of an image."""
        return self.problems[0].exit_code if self.problems else ExitCode.OK

    @property
    def lines(self) -> list[str]:
        """The table of cases in a few lines."""
        table = self.table
        parts = [f"{split} {count}" for split, count in table["splits"].items() if split != NO_SPLIT]
        splits = ", ".join(parts) or NO_SPLIT
        lines = [f"{counted(table['cases'], 'case')} of {counted(table['patients'], 'patient')}: {splits}"]
        counts = {**table["channels"], "seg": table["references"]}
        parts = [name if count == table["cases"] else f"{name} ({count})" for name, count in counts.items() if count]
        lines.append(f"  channels  {', '.join(parts)}")
        grids = [
            f"{grid}: {counted(each['cases'], 'case')}, {_range(each)} voxels" for grid, each in table["grids"].items()
        ]
        lines += _listed("grid", grids, SHOWN_GRIDS)
        labels = [
            f"{label}: {counted(each['cases'], 'case')}, median {each['median_ml']:.3g} ml "
            f"({each['smallest_ml']:.3g} to {each['largest_ml']:.3g} ml)"
            for label, each in table["labels"].items()
        ]
        return lines + _listed("label", labels, SHOWN_LABELS)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        fields = ("case", "channel", "file", "found", "fix")
        problems = [
            {"exit_code": int(problem.exit_code)} | {field: getattr(problem, field) for field in fields}
            for problem in self.problems
        ]
        return {
            "cases": self.cases,
            "table": dict(self.table),
            "per_case": [each.as_dict() for each in self.facts],
            "problems": problems,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Read:
    """Of one case: what it is and what is doubtful, or why it cannot be read; `digests` are of its channels' voxels."""

    problems: tuple[MedsegError, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: CaseFacts | None = None
    digests: Mapping[str, bytes] | None = None


def validate(
    data: Path,
    *,
    data_root: Path | None = None,
    channels: Sequence[str] | None = None,
    resample_to: str | None = None,
    workers: int | None = None,
) -> Report:
    """Check the table and every file it names; so many `workers` read a case each at once [the processors, at most 8].

    `channels` are those that a recipe needs (default: whatever each case has); with `resample_to` channels may lie on
    several grids, as in a training with it. The report is the same for any number of workers. No torch is imported.
    Raises: ManifestError where the file as a whole is no table of cases; UsageError for less than one worker.
    """
    manifest, problems = scan_manifest(Path(data), data_root=data_root)
    warnings, facts, seen = doubtful_columns(manifest), list[CaseFacts](), dict[bytes, str]()

    def read(case: Case) -> _Read:
        return _read(case, channels, resample_to)

    for case, found in zip(manifest.cases, in_parallel("reading", manifest.cases, read, workers=workers), strict=True):
        problems += found.problems
        warnings += [f"[{case.name}] {text}" for text in found.warnings]
        problems += _copies(case.name, found.digests or {}, manifest.file, seen)
        facts += [found.facts] if found.facts else []
    problems.sort(key=lambda problem: problem.exit_code)  # stable: by line within each kind
    warnings += mixed_conventions(facts)
    table = table_facts(manifest.cases, facts)
    return Report(len(manifest.cases), tuple(problems), tuple(warnings), table, tuple(facts))


def _read(case: Case, channels: Sequence[str] | None, resample_to: str | None) -> _Read:
    """Everything that is wanted of a case, so that its voxels are no longer held when this returns."""
    try:
        missing = [channel for channel in channels or () if channel not in case.channels]
        if missing:
            has = ", ".join(case.channels)
            raise ManifestError(f"has no {', '.join(missing)} (its channels: {has})", fix="add them", case=case.name)
        images = read_case(case, channels, resample_to=resample_to)
        facts = facts_of(case, images)
    except MedsegError as error:
        kept = error.without_trace()
        return _Read(problems=kept.problems if isinstance(kept, Problems) else (kept,))
    return _Read((), (*images.warnings, *_unusual_labels(facts)), facts, dict(_digests(images)))


def _unusual_labels(facts: CaseFacts) -> list[str]:
    """Labels beyond those of the recipes that come with the package: training refuses what its recipe does not name."""
    unusual = sorted(label for label in facts.labels_ml or () if label > ENHANCING)
    names = ", ".join(map(str, unusual[:8])) + (" …" if len(unusual) > 8 else "")
    return [f"seg holds the labels {names}: the recipe has to name them"] if unusual else []


def _digests(images: CaseImages) -> Iterator[tuple[str, bytes]]:
    for channel, voxels in zip(images.channels, images.image, strict=True):
        yield channel, hashlib.blake2b(voxels.data, digest_size=16).digest()


def _copies(case: str, digests: Mapping[str, bytes], file: str, seen: dict[bytes, str]) -> list[MedsegError]:
    """Channels that hold the very voxels of another case: the same scan under two names is leakage."""
    found: list[MedsegError] = []
    for channel, digest in digests.items():
        other = seen.setdefault(digest, case)
        if other != case:
            said = f"holds the same voxels as a channel of case {other}"
            fix = "keep one of the two cases; the same scan in both is leakage"
            found.append(ManifestError(said, fix=fix, case=case, channel=channel, file=file))
    return found


def _range(grid: Mapping[str, Any]) -> str:
    """`160×200×155`, or `151×195×163 to 162×215×174` where shapes differ."""
    return " to ".join(dict.fromkeys(shape_text(grid[end]) for end in ("smallest", "largest")))


def _listed(title: str, lines: Sequence[str], most: int) -> list[str]:
    """Lines under a title, and how many there are besides."""
    shown = [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]
    return [f"  {title if number == 0 else '':<8}  {line}" for number, line in enumerate(shown)]
