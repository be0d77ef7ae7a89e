"""`validate`: read every file of a manifest as training and segmentation would, and list all that is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_diff.data.manifest import Case, scan_manifest
from medseg_diff.data.reading import read_case
from medseg_diff.errors import ExitCode, ManifestError, MedsegError, Problems


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
    warnings: list[str] = []
    for case in manifest.cases:
        try:
            warnings += [f"[{case.name}] {text}" for text in _warnings_of(case, channels)]
        except Problems as error:
            problems += error.problems
        except MedsegError as error:
            problems.append(error)
    problems.sort(key=lambda problem: problem.exit_code)  # stable: by line within each kind
    return Report(len(manifest.cases), tuple(problems), tuple(warnings))


def _warnings_of(case: Case, channels: Sequence[str] | None) -> tuple[str, ...]:
    missing = [channel for channel in channels or () if channel not in case.channels]
    if missing:
        has = ", ".join(case.channels)
        raise ManifestError(f"has no {', '.join(missing)} (its channels: {has})", fix="add them", case=case.name)
    return read_case(case, channels).warnings
