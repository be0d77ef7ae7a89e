"""`audit-volumes`: volumes of an audit's scans as masks of another program have them, beside what was asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from medseg_diff.console import bar, log
from medseg_diff.data.geometry import voxel_ml
from medseg_diff.data.reading import read_labels
from medseg_diff.data.tables.inputs import stem_of
from medseg_diff.errors import UsageError, counted
from medseg_diff.evaluation.synthesis import BY_INTENSITY, REGRESSOR
from medseg_diff.files import check_writable, read_facts
from medseg_diff.metrics.obedience import obedience
from medseg_diff.tasks.audit import read_lines, write_audit

OURS = (REGRESSOR, BY_INTENSITY)  # who measured: never replaced


def audit_volumes(
    folder: Annotated[Path, "What `audit --keep-scans` wrote."],
    segmentations: Annotated[Path, "Masks of its scans, one file each: SCAN.nii.gz, or SCAN_… .nii.gz."],
    structures: Annotated[Sequence[str], "Labels of a covariate, such as ventricle_volume_ml=4,5,43,44."],
    by: Annotated[str, "Name of who measured, in tables and figure."] = "masks",
) -> dict[str, Any]:
    """Count the voxels of each structure in masks of an audit's scans, and add how they agree with what was asked for.

    Masks may have any grid of their own. audit.json, audit.csv and audit.png are written anew; what the same name had
    measured before is replaced. Returns what audit.json says. Raises: UsageError, ImageError, EnvironmentFault.
    """
    folder = Path(folder)
    check_writable(folder)
    lines, found = read_lines(folder / "audit.csv"), read_facts(folder / "audit.json")
    if not found:
        raise UsageError("holds no audit.json that can be read", fix="run `audit` into it again", file=folder.name)
    if not by or by in OURS:
        raise UsageError(f"--by {by}: that name is taken", fix="name the program that made the masks")
    asked = {(line.scan, line.covariate): line for line in lines}
    labels = _labels_of(structures, known=list(dict.fromkeys(name for _, name in asked)))
    wanted = [line for (_, name), line in asked.items() if name in labels]
    files = _files_of(list(dict.fromkeys(line.scan for line in wanted)), Path(segmentations))
    volumes = _measured(files, labels)
    added = [line._replace(by=by, measured=volumes[line.scan][line.covariate]) for line in wanted]
    kept = [line for line in lines if line.by != by]
    log.info("%s measured by %s", counted(len(files), "scan"), by)
    whole = [row for row in found["obedience"] if row["by"] != by] + obedience(added)
    found |= {"obedience": whole, "structures": {**found.get("structures", {}), by: labels}}
    write_audit(folder, found, kept + added)
    return found


def _labels_of(structures: Sequence[str], *, known: Sequence[str]) -> dict[str, list[int]]:
    """Covariate → labels of its structure. Raises: UsageError."""
    found: dict[str, list[int]] = {}
    for word in structures:
        name, _, numbers = word.partition("=")
        parts = [part.strip() for part in numbers.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(f"`{word}` names no labels", fix="write it as ventricle_volume_ml=4,43")
        if name not in known:
            raise UsageError(f"the audit has no covariate {name}", fix=f"use one of {', '.join(known)}")
        if name in found:
            raise UsageError(f"{name} is given twice", fix="put its labels into one --structure")
        found[name] = [int(part) for part in parts]
    if not found:
        raise UsageError("no structure is given", fix="add --structure, such as ventricle_volume_ml=4,43")
    return found


def _files_of(scans: Sequence[str], folder: Path) -> dict[str, Path]:
    """The mask of each scan. Raises: UsageError where one has none, or several."""
    stems = {path: stem for path in sorted(folder.glob("*")) if (stem := stem_of(path)) is not None}
    found = {
        scan: [path for path, stem in stems.items() if stem == scan or stem.startswith(f"{scan}_")] for scan in scans
    }
    if without := [scan for scan, paths in found.items() if not paths]:
        said = f"has no mask of {counted(len(without), 'scan')} of {len(scans)}, such as {without[0]}"
        raise UsageError(said, fix="segment all of the audit's scans/ (`audit --keep-scans`)", file=folder.name)
    if several := [paths for paths in found.values() if len(paths) > 1]:
        said = f"has several masks of one scan: {', '.join(path.name for path in several[0][:3])}"
        raise UsageError(said, fix="keep one of them", file=folder.name)
    return {scan: paths[0] for scan, paths in found.items()}


def _measured(files: Mapping[str, Path], labels: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Millilitres of each structure in each mask. Raises: ImageError."""
    volumes = {}
    with bar("measuring", len(files)) as advance:
        for scan, path in files.items():
            mask = read_labels(path, case=scan)
            ml = voxel_ml(mask.affine)
            volumes[scan] = {name: float(np.isin(mask.voxels, each).sum()) * ml for name, each in labels.items()}
            advance(note=scan)
    return volumes
