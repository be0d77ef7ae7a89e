"""Phantoms: made-up brains with gliomas of known extent, four MR contrasts and raters, for demos, tests and teaching.

Nothing in them comes from a person. They are easier than patients: a score on them says that a method works, not how
well it would do in a hospital.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.tables.case import TWIN
from medseg_diff.data.tables.manifest import Case, Split, draw_splits, write_manifest
from medseg_diff.files import write_json
from medseg_diff.phantoms.anatomy import Person, build_anatomy
from medseg_diff.phantoms.geometry import Grid
from medseg_diff.phantoms.lesion import GliomaPlan, draw_labels, grow_glioma, hyperintensities
from medseg_diff.phantoms.scanner import acquire, any_scanner, seen_by, usual_scanner
from medseg_diff.phantoms.signal import CHANNELS, any_oedema, tissue_shares
from medseg_diff.settings import Settings

Edge = Annotated[int, Field(ge=32, le=512)]
TABLE, MARKER, PREFIX = "cases.csv", "phantom.json", "phantom_"
SCANNER, OEDEMA = 2**32, 2**33  # no case's number of a stream: scanners draw from generators of their own, and oedemas
WORKERS = 2  # more would only wait for one another, and each holds a whole case


class PhantomSettings(Settings):
    """A set of phantoms. `shape` in voxels; the voxel size follows, because a head always fills the field of view.

    `held_out` of the cases are for testing, half as many for validation. `scanners`: that many, each unlike the others in
    field, protocol, coil, noise, resolution and skull stripping, take the cases in turn, and each patient's oedema is as
    wet as patients' are; 0: one kind of scanner, and of oedema. `twins`: of each case with a lesion also its lesion-free
    twin, the same brain, displaced as it is, with the same noise.
    """

    cases: int = Field(ge=1, le=100_000)
    shape: tuple[Edge, Edge, Edge] = (64, 64, 48)
    raters: int = Field(default=0, ge=0, le=99)
    healthy: float = Field(default=0.25, ge=0, le=1)
    held_out: float = Field(default=0.2, gt=0, lt=0.5)
    seed: int = Field(default=0, ge=0, lt=2**63)
    noise: float = Field(default=0.045, ge=0, le=1)
    scanners: int = Field(default=0, ge=0, le=100_000)
    twins: bool = False


@dataclass(frozen=True)
class PhantomCase:
    """One made-up examination, perhaps with its lesion-free `twin`. Images int16 and labels uint8 (0, 1, 2, 4), all
    [X, Y, Z]; covariates with units."""

    name: str
    images: dict[str, NDArray[np.int16]]
    twin: dict[str, NDArray[np.int16]]
    seg: NDArray[np.uint8]
    raters: tuple[NDArray[np.uint8], ...]
    affine: NDArray[np.float64]
    label: str
    covariates: dict[str, float | str]


def is_healthy(settings: PhantomSettings, index: int) -> bool:
    """Whether case `index` has no glioma: spread evenly, so that any N cases hold the wanted fraction to within one."""
    return int((index + 1) * settings.healthy + 1e-9) > int(index * settings.healthy + 1e-9)


def make_case(settings: PhantomSettings, index: int) -> PhantomCase:
    """Case `index` of a set. It depends on the seed and its index, not on the number of cases; no files are touched.

    Anatomy, lesion, scanner and each rater draw from generators of their own: more raters, other scanners, twins or another
    noise level leave the rest as it was.
    """
    streams = [np.random.default_rng([settings.seed, index, stream]) for stream in range(5)]
    person_rng, anatomy_rng, lesion_rng, distractor_rng, scanner_rng = streams
    person = Person.draw(person_rng)
    plan = None if is_healthy(settings, index) else GliomaPlan.draw(lesion_rng)
    push = plan.mass_effect(lesion_rng) if plan else None
    anatomy = build_anatomy(Grid.over_head(settings.shape), person, push, anatomy_rng)
    glioma = grow_glioma(plan, anatomy, lesion_rng) if plan else None
    harmless = hyperintensities(anatomy, person.age_years, distractor_rng)
    if settings.scanners:
        own = np.random.default_rng([settings.seed, index % settings.scanners, SCANNER])
        oedema = any_oedema(np.random.default_rng([settings.seed, index, OEDEMA]))
        scanner = any_scanner(own, noise=settings.noise, oedema=oedema)
    else:
        scanner = usual_scanner(scanner_rng, noise=settings.noise)
    inside, again = seen_by(scanner, anatomy), deepcopy(scanner_rng)
    raters = [np.random.default_rng([settings.seed, index, len(streams), r]) for r in range(settings.raters)]
    return PhantomCase(
        name=f"{PREFIX}{index:04d}",
        images=acquire(tissue_shares(anatomy, harmless, glioma), anatomy, scanner, scanner_rng),
        twin=acquire(tissue_shares(anatomy, harmless, None), anatomy, scanner, again)
        if glioma and settings.twins
        else {},
        seg=inside * draw_labels(glioma, anatomy),
        raters=tuple(inside * draw_labels(glioma, anatomy, rng) for rng in raters),
        affine=anatomy.grid.affine,
        label="diseased" if glioma else "healthy",
        covariates={
            "age_years": person.age_years,
            "sex": person.sex,
            "ventricle_volume_ml": round(anatomy.ventricle_volume_ml, 2),
            "brain_volume_ml": round(anatomy.brain_volume_ml, 1),
        },
    )


def write_phantoms(settings: PhantomSettings, out: Path, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write OUT/<case>/{t1,t1ce,t2,flair,seg,seg_1 …,healthy_t1 …}.nii.gz, OUT/phantom.json and last OUT/cases.csv, whose
    path it returns.

    The same settings give the same bytes. Cases of an earlier set that this one does not have are removed.
    `progress` is told (cases done, cases in all). Raises: EnvironmentFault where OUT cannot be written.
    """
    cases = [f"{PREFIX}{index:04d}" for index in range(settings.cases)]
    _forget(out, cases, settings.raters)
    write_json(out / MARKER, {"schema": 1, **settings.model_dump(mode="json")})
    # Threads, because NumPy, SciPy and zlib let others run meanwhile; a case depends on its index alone.
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        rows = []
        for row in pool.map(lambda index: _write_case(make_case(settings, index), out), range(settings.cases)):
            rows.append(row)
            if progress:
                progress(len(rows), settings.cases)
    shares: dict[Split, float] = {"test": settings.held_out, "val": settings.held_out / 2}
    splits = draw_splits({row["patient"]: row["label"] for row in rows}, shares, seed=settings.seed)
    for row in rows:
        row["split"] = splits[row["patient"]] if splits else ""
    write_manifest(out / TABLE, rows)
    return out / TABLE


def is_phantom_folder(folder: Path) -> bool:
    """Whether `write_phantoms` made this folder."""
    return (folder / MARKER).is_file()


def is_phantom(case: Case) -> bool:
    """Whether a case is made up: by its name, or by the folder of phantoms that it lies in."""
    folders = {folder for path in case.paths.values() for folder in path.parents[:2]}
    return case.name.startswith(PREFIX) or any(is_phantom_folder(folder) for folder in folders)


def _write_case(case: PhantomCase, out: Path) -> dict[str, str]:
    """Write the images of one case; return its row of the table, split still open."""
    volumes: dict[str, NDArray[np.int16] | NDArray[np.uint8]] = {**case.images, "seg": case.seg}
    volumes |= {f"seg_{number}": labels for number, labels in enumerate(case.raters, start=1)}
    volumes |= {TWIN + channel: voxels for channel, voxels in case.twin.items()}
    paths = {column: f"{case.name}/{column}.nii.gz" for column in volumes}
    for column, voxels in volumes.items():
        write_volume(out / paths[column], voxels, case.affine)
    covariates = {name: str(value) for name, value in case.covariates.items()}
    return {"case": case.name, "patient": case.name, "split": "", **paths, "label": case.label, **covariates}


def _forget(out: Path, cases: list[str], raters: int) -> None:
    """Remove what an earlier set wrote and this one will not: first the table, so that none names a missing file."""
    if not is_phantom_folder(out):
        return
    (out / TABLE).unlink(missing_ok=True)
    for folder in out.glob(f"{PREFIX}[0-9]*"):
        stale = [folder / f"{channel}.nii.gz" for channel in (*CHANNELS, "seg")] if folder.name not in cases else []
        stale += folder.glob(f"{TWIN}*.nii.gz")
        stale += [file for file in folder.glob("seg_*.nii.gz") if folder.name not in cases or _rater(file) > raters]
        for file in stale:
            file.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _rater(file: Path) -> int:
    number = file.name.removeprefix("seg_").removesuffix(".nii.gz")
    return int(number) if number.isdecimal() else 0
