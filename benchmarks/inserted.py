"""What can be found on T1 alone? Lesions of known size and contrast, put into healthy brains that a system has never seen.

    python -m benchmarks.inserted --data healthy_t1/cases.csv [--config CONFIG …] [--set KEY=VALUE …] [--out DIR]

The last patients of a table of healthy T1 scans are left out of the training. Balls are put into each of them, brighter or
darker than what was there by so many standard deviations of its brain, and the fluid deep in it is widened, as by atrophy.
Every column is a recipe that learns from healthy slices alone. A lesion is found where a tenth of it is above the stored
threshold.
"""

import argparse
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from benchmarks.anomaly_family import check_same
from benchmarks.reporting import machine, number, table
from medseg_diff import train_anomaly
from medseg_diff.console import configure, log
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.case import Split
from medseg_diff.data.tables.manifest import Case, Manifest, read_manifest, write_manifest
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.device import find_device
from medseg_diff.files import write_json
from medseg_diff.methods.anomaly.normative import OWN, depth_of
from medseg_diff.metrics.anomaly import rank
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.anomaly_ensemble import finished
from medseg_diff.tasks.apply.anomaly_volume import AnomalySystem, map_volume, open_system
from medseg_diff.tasks.options import Compute

TESTED = 3  # patients
PLACES = 4  # for balls of one size in one of them
RADII_MM = (3.0, 6.0, 12.0)
CONTRASTS = (-2.0, -1.0, 1.0, 2.0)  # standard deviations of the brain
WIDENED_MM = (2.0, 4.0)
DEEP_MM = 15.0  # below the surface: dark voxels that lie deeper are the ventricles'
DARKEST = 0.1  # of the deep voxels
FOUND = 0.1  # of a lesion
CONFIGS = ("quick/dae", "quick/inpainting")
ALWAYS = ("channels=[t1]",)  # of every recipe, and of some more:
OVERRIDES = {"quick/inpainting": ("engine.witness=false", "engine.directions={}", "engine.agreeing=null")}

Voxels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Inserted:
    """A lesion: what it is called, and where it lies in the image [1, *S] that holds it."""

    name: str
    image: torch.Tensor
    lesion: Mask


def lesions_of(prepared: Prepared) -> Iterator[Inserted]:
    """Every lesion in a brain of its own, at the same place for every recipe of the same grid."""
    image, brain = prepared.image[0].numpy(), prepared.brain[0].numpy()
    depth_mm, deviation = depth_of(prepared.brain, prepared.spacing_mm), float(image[brain].std())
    generator = np.random.default_rng(seed_of(0, "inserted", prepared.name))
    for radius in RADII_MM:
        places = np.argwhere(depth_mm > radius / 2 + 4)
        for place in places[generator.integers(len(places), size=PLACES)]:
            lesion = ball(place, radius, image.shape, prepared.spacing_mm) & brain
            soft = ndimage.gaussian_filter(lesion.astype(np.float32), 0.7) * brain
            for contrast in CONTRASTS:
                changed = np.clip(image + soft * contrast * deviation, -1, 1)
                yield Inserted(f"{radius:g} mm, {contrast:+g} SD", torch.from_numpy(changed)[None], lesion)
    deep = depth_mm > DEEP_MM
    fluid = ndimage.binary_opening(deep & (image < np.quantile(image[deep], DARKEST)))
    dark = float(np.median(image[fluid]))
    for widened in WIDENED_MM:
        away = ndimage.distance_transform_edt(~fluid, sampling=prepared.spacing_mm)
        lesion = (away <= widened) & ~fluid & brain
        yield Inserted(
            f"deep fluid {widened:g} mm wider", torch.from_numpy(np.where(lesion, dark, image))[None], lesion
        )


def ball(centre: Sequence[int], radius_mm: float, size: Sequence[int], spacing_mm: Sequence[float]) -> Mask:
    """Where a ball lies in a volume."""
    axes = [(np.arange(n) - c) * mm for n, c, mm in zip(size, centre, spacing_mm, strict=True)]
    squared: Voxels = sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij"))
    return squared <= radius_mm**2


def measure(
    data: Path, out: Path, *, configs: Sequence[str] = CONFIGS, overrides: Sequence[str] = (), device: str = "auto"
) -> dict[str, Any]:
    """Every recipe trained and tried. Returns what goes into inserted.json."""
    rows, manifest = {}, split_of(read_manifest(data))
    out.mkdir(parents=True, exist_ok=True)
    split, tested = out / "split.csv", manifest.of("test")
    check_same(out, {"overrides": list(overrides), "cases": [case.name for case in manifest.cases]})
    write_manifest(split, manifest.rows())
    for config in configs:
        log.info("%s", config)
        words = [*ALWAYS, *OVERRIDES.get(config, ()), *overrides]
        run = _trained(split, data.parent, config, words, out=out / "runs", device=device)
        system = open_system(run, compute=Compute(device=device))
        rows[config] = [{"case": case.name, **row} for case in tested for row in _try(case, system)]
    return {
        "schema": 1,
        "benchmark": "inserted",
        "machine": machine(str(find_device(device))),
        "tested": len(tested),
        "trained": len(manifest.of("train")),
        "overrides": list(overrides),
        "rows": rows,
    }


def split_of(manifest: Manifest) -> Manifest:
    """The last patients to test on, those before them to calibrate on, all others to learn from."""
    patients = sorted({case.patient for case in manifest.cases})
    split: dict[str, Split] = dict.fromkeys(patients, "train")
    split |= dict.fromkeys(patients[-2 * TESTED : -TESTED], "val")
    split |= dict.fromkeys(patients[-TESTED:], "test")
    healthy = [replace(case, split=split[case.patient], label="healthy") for case in manifest.cases]
    return replace(manifest, cases=tuple(healthy))


def _trained(table: Path, root: Path, config: str, words: Sequence[str], *, out: Path, device: str) -> Run:
    folder = out / re.sub(r"\W+", "_", config)
    if (folder / "run.json").is_file() and Run(folder).state == "finished":
        return Run(folder)
    if folder.exists():
        shutil.rmtree(folder)
    where: dict[str, Any] = {"data_root": root, "runs": out, "device": device, "mlflow": False}
    run = train_anomaly(table, config=config, out=folder, overrides=words, **where)
    assert isinstance(run, Run)
    return run


def _try(case: Case, system: AnomalySystem) -> Iterator[dict[str, Any]]:
    """The healthy brain as it is, then with every lesion."""
    recipe = system.recipe
    prepared = prepare_case(read_case(case, recipe.channels), recipe.preparation)
    raw, threshold, inside = map_volume(prepared, system).score, _threshold(system), prepared.brain[0].numpy()
    ml = float(np.count_nonzero(_finished(raw, prepared, system) > threshold)) * prepared.voxel_ml
    yield {"lesion": "none", "marked_ml": round(ml, 2)}
    for each in lesions_of(prepared):
        score = _finished(with_lesion(raw, each, prepared, system), prepared, system)
        ranking = rank(score[inside], each.lesion[inside])
        yield {
            "lesion": each.name,
            "auroc": ranking.auroc(),
            "average_precision": ranking.average_precision(),
            "share": float(each.lesion[inside].mean()),
            "found": bool((score[each.lesion] > threshold).mean() > FOUND),
        }


def with_lesion(raw: torch.Tensor, inserted: Inserted, prepared: Prepared, system: AnomalySystem) -> torch.Tensor:
    """The raw map [1, *S] of the brain with a lesion: slices without it are mapped as they were."""
    changed = (inserted.image != prepared.image).flatten(0, 2).any(dim=0)
    slices = [z for z in system.recipe.view.for_sampling(prepared.brain) if changed[z]]
    again = map_volume(replace(prepared, image=inserted.image), system, slices=slices).score
    return torch.where(changed, again, raw)


def _finished(raw: torch.Tensor, prepared: Prepared, system: AnomalySystem) -> Voxels:
    """The map as it would be written, on the network's grid [*S]."""
    known = system.calibrated.own if system.calibrated else None
    depth_mm = depth_of(prepared.brain, prepared.spacing_mm)
    return finished(OWN, raw, prepared, depth_mm, system.recipe.findings, known)[0][0].numpy()


def _threshold(system: AnomalySystem) -> float:
    assert system.calibrated is not None and system.calibrated.own is not None, "it was calibrated on healthy brains"
    return float(system.calibrated.own.threshold)


def show(result: dict[str, Any]) -> str:
    """AUROC, average precision and how many were found, means over the patients."""
    first = next(iter(result["rows"].values()))
    names = [name for name in dict.fromkeys(row["lesion"] for row in first) if name != "none"]
    lines = [[name, *(_cell(rows, name) for rows in result["rows"].values())] for name in names]
    healthy = ["marked in a healthy brain, ml"]
    for rows in result["rows"].values():
        healthy.append(", ".join(f"{row['marked_ml']:.1f}" for row in rows if row["lesion"] == "none"))
    said = (
        f"AUROC / average precision / share found, {result['tested']} brains; learned from {result['trained']} others"
    )
    return f"{said}\n\n" + table(["", *result["rows"]], [*lines, healthy])


def _cell(rows: Sequence[dict[str, Any]], name: str) -> str:
    of = [row for row in rows if row["lesion"] == name]
    return " / ".join(
        number(float(np.mean([row[key] for row in of])), 2) for key in ("auroc", "average_precision", "found")
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inserted", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="table of healthy T1 scans")
    parser.add_argument("--config", nargs="+", default=list(CONFIGS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/inserted"))
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    result = measure(chosen.data, chosen.out, configs=chosen.config, overrides=chosen.overrides, device=chosen.device)
    write_json(chosen.out / "inserted.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
