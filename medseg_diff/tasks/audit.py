"""`audit`: whether synthetic scans obey what they are asked for, are like real ones, and are no copies."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from medseg_diff.console import bar, log
from medseg_diff.data.tables.case import Case
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.data.views import AxialSlices
from medseg_diff.errors import UsageError
from medseg_diff.evaluation.synthesis import memory
from medseg_diff.evenly import evenly_spaced
from medseg_diff.files import check_room, check_writable, write_json, write_table
from medseg_diff.metrics.obedience import Line, Of, obedience
from medseg_diff.phantoms.make import is_phantom
from medseg_diff.tasks.apply.audited import Audited, RealScans, check_splits, scan_name
from medseg_diff.tasks.apply.synthesis_system import SynthesisSystem, open_synthesis
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Model
from medseg_diff.tasks.synthesis_options import AuditOptions

SCHEMA = 1
SCANS = "scans"  # folder of an audit, of the scans that were measured
ANYBODY, UNCONDITIONAL, NOISE = "anybody", "unconditional", "decoded noise"
CONVENTIONS = {
    "obedience": "Pearson's r of what was asked for and what was measured, interval of 95 % by Fisher's z; one covariate is "
    "swept evenly over its range, the others are as usual for it; n: scans that could be measured",
    "real": "the same measurement on held-out real scans against what the table says",
    "by": "regressor: the network of the run that learned it on real training scans; intensity: dark voxels deep in the "
    "brain, and the brain without fluid; any other word: masks of another program, counted by `audit-volumes`",
    "features": "the regressor's, standardised; distances by other features cannot be compared with these",
    "frechet_distance": "of drawn and held-out real scans, and frechet_floor of two sets of real ones, at the same number "
    "of scans, frechet_images: they fall with it. frechet_corrected: of endlessly many, interval of 95 % by a jackknife",
    "memory": "distances in x_0 to the nearest of `trained` scans trained on, mirrored as training mirrors them, medians; "
    "favoured: share of drawn ones nearer to one trained on than to any of equally many held out (a half is expected); "
    "copies: those more than twice as near; near: share nearer than all but 5 % of held-out scans are, which smooth ones "
    "always are",
}


@with_plain_keywords
def audit(
    data: Annotated[Path, "Table of cases (CSV)."],
    out: Annotated[Path, "Folder for audit.json, audit.csv and audit.png, and with `keep_scans` for scans."],
    model: Model,
    options: AuditOptions,
    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps."] = "auto",
    data_root: Annotated[Path | None, "Folder that paths in the table are relative to [the table's]."] = None,
) -> dict[str, Any]:
    """Sweep every covariate of a trained run, measure it in what is drawn, and compare with held-out scans of the table.

    With `keep_scans` the scans of the sweeps and the held-out ones, as they were measured, lie in OUT/scans: segment them
    with another program, and give its masks to `audit_volumes`. Returns what audit.json says.
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    options.check()
    check_writable(out)
    system = open_synthesis(model, options.drawing, device=device)
    if system.covariates is None:
        raise UsageError(
            "the model was trained without covariates: there is nothing to obey", fix="train one with covariates"
        )
    if options.keep_scans and isinstance(system.recipe.view, AxialSlices):
        raise UsageError("the model draws slices, which have no volumes to measure", fix="leave out --keep-scans")
    scales = options.guidance or (system.drawing.guidance or 1.0,)
    systems = {scale: system.at(scale) for scale in scales}
    manifest = read_manifest(Path(data), data_root=data_root)
    splits = {name: manifest.of(name) for name in (options.split, "train")}  # type: ignore[arg-type]  # checked
    check_splits(splits, manifest.file)
    held = RealScans.of(splits[options.split], system, most=options.real)
    trained = evenly_spaced(list(splits["train"]), options.trained or len(splits["train"]))
    if len(trained) < len(splits["train"]):
        log.warning("copies are looked for among %d of %d scans trained on", len(trained), len(splits["train"]))
    kept = out / SCANS if options.keep_scans else None
    if kept is not None:
        volumes = options.number * len(scales) * len(system.covariates.names) + len(held.images)
        check_room(out, volumes * 2 * int(np.prod(system.recipe.view.size)))
    found, lines = _audit(Audited(system, held, options.number, options.seed), systems, trained, kept)
    found |= {
        "schema": SCHEMA,
        "task": "synthesise",
        "data": "phantom" if all(map(is_phantom, splits[options.split])) else "scans",
        "model": {name: system.facts[name] for name in ("model", "sha256", "recipe")},
        "steps": system.facts["steps"],
        "seed": options.seed,
        "conventions": CONVENTIONS,
    }
    write_audit(out, found, lines)
    return found


def write_audit(out: Path, found: Mapping[str, Any], lines: Sequence[Line]) -> None:
    """audit.csv, audit.json and audit.png."""
    from medseg_diff.reporting.audit import draw_audit

    write_table(out / "audit.csv", Line._fields, lines)  # every number as it is: others may be measured beside it later
    write_json(out / "audit.json", found)
    draw_audit(found, lines, out / "audit.png")
    log.info("audit.json, audit.csv and audit.png in %s", out)


def read_lines(path: Path) -> list[Line]:
    """audit.csv as `write_audit` left it. Raises: UsageError where that is not what it is."""
    try:
        rows = list(csv.DictReader(StringIO(path.read_text(encoding="utf-8"))))
        return [_line(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "holds no audit that can be read", fix="run `audit` into it first", file=path.parent.name
        ) from error


def _line(row: dict[str, str]) -> Line:
    of: Of = "real" if row["of"] == "real" else "drawn"
    guidance = float(row["guidance"]) if row["guidance"] else None
    asked, measured = float(row["asked"]), float(row["measured"])
    return Line(row["scan"], of, guidance, row["covariate"], int(row["number"]), asked, row["by"], measured)


def _audit(
    audited: Audited, systems: Mapping[float, SynthesisSystem], trained: Sequence[Case], kept: Path | None
) -> tuple[dict[str, Any], list[Line]]:
    """Obedience and likeness at every guidance, what was remembered at the first, and every value; scans that are swept,
    and the real ones, go into `kept`."""
    names, held, null = audited.known.names, audited.held, audited.system.at(0.0)
    lines = [line for name in names for line in audited.lines(name, held.covariates[name], audited.real)]
    if kept is not None:
        audited.keep(kept, list(map(scan_name, range(len(held.images)))), held.images)
    likeness: list[dict[str, Any]] = []
    anybody: list[Tensor] = []
    with bar("drawing", audited.number * (len(systems) * (len(names) + 1) + 1)) as advance:
        for scale, system in systems.items():
            for name in names:
                images, asked = audited.sweep(name, system, advance)
                swept = audited.lines(name, asked, audited.measure(images), guidance=scale)
                if kept is not None:
                    audited.keep(kept, [scan_name(number, name, scale) for number in range(len(images))], images)
                lines += swept
            anybody.append(audited.anybody(system, advance))
            likeness.append({"drawn": ANYBODY, "guidance": scale} | audited.like_real(anybody[-1]))
        drawn = audited.anybody(null, advance)
    likeness.append({"drawn": UNCONDITIONAL, "guidance": 0.0} | audited.like_real(drawn))
    likeness.append({"drawn": NOISE, "guidance": None} | audited.like_real(audited.noise()))
    with bar("looking for copies", len(trained)) as advance:
        remembered = memory(audited.apart(anybody[0], trained, advance))
    return {"obedience": obedience(lines), "likeness": likeness, "memory": remembered}, lines
