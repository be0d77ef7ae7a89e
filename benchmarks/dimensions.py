"""Two dimensions, two and a half, or three: the same phantoms and the same training seconds for each, in one table.

    python -m benchmarks.dimensions [--minutes 3] [--quick] [--out DIR]

All see the same prepared volumes, mirror augmentation and the quick recipe's network; each trains as many steps as fit
into the minutes at the pace measured here, the contenders in turn. The 2D model is sampled twice: with noise of each
slice's own, and with one noise a member along the axis. Phantoms compare views; they promise nothing about a hospital.
"""

import argparse
import gc
import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import machine, number, table, with_interval
from benchmarks.supervised import parameters, slices_of
from medseg_diff import evaluate, phantom, segment, train_seg
from medseg_diff.console import configure, log
from medseg_diff.data.reading import read_labels, read_map
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.files import write_json, write_text
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.settings import write_yaml
from medseg_diff.tasks.train.study import prepare_study, with_splits
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.fit import fit

SHOWN = ("dice", "hd95_mm", "volume_error_ml", "ged2", "ece")
NATIVE = "preparation={spacing_mm: [null, null, null]}"
MIRROR = (
    "augmentation={flips: [0], rotation_degrees: 0, scaling: 0, translation: 0, contrast: 0, brightness: 0, "
    "gamma: 0, noise: 0}"
)
CONVENTIONS = {
    "dice, hd95_mm, volume_error_ml, ged2, ece": "test phantoms, as `medseg-diff evaluate` defines them",
    "flicker": "how much less adjacent axial slices of a member's mask overlap than those of the reference: the "
    "difference of 1 - Dice, pooled over the pairs of a case; mean over members and cases with a lesion",
    "flicker_mean": "the same of the ensemble's mask",
    "training_seconds": "steps × median seconds of a step, loading included, measured in turn",
    "seconds_per_case": "reading to writing with members written, mean of the test cases",
    "peak_memory_mb": "largest resident memory of the process while it segments, libraries included (Linux only)",
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 40
    shape: tuple[int, int, int] = (64, 64, 48)
    minutes: float = 3.0
    warm_up_steps: int = 2
    timed_steps: int = 6
    overrides: tuple[str, ...] = ()  # of every recipe, key=value
    slices: tuple[str, ...] = ("view={kind: axial_slices, size: [56, 64]}",)  # of those that see slices
    patches: tuple[str, ...] = ()


QUICK = Size(cases=12, minutes=0.25, timed_steps=2)


def recipes_of(size: Size) -> dict[str, SegmentationRecipe]:
    """The contenders: what they do not share is how they see a volume, and what follows from it."""
    common = (NATIVE, MIRROR, "sampling.mirrors=[]", "validation.calibration_slices=0", *size.overrides)

    def made(name: str, *words: str) -> SegmentationRecipe:
        return load_recipe(name, task="segment", overrides=[*common, *words])

    deep = made("quick/mask_logits_3d", *size.patches)
    alike = deep.model_dump(mode="json", include={"network", "denoiser", "sampling"})
    return {
        "2D": made("quick/mask_logits", *size.slices).but(**alike),
        "2.5D": made("quick/mask_logits", *size.slices, "view.context=1").but(**alike),
        "3D": deep,
    }


def measure(out: Path, *, size: Size = Size(), seed: int = 0, device: str = "auto") -> dict[str, Any]:
    """Make phantoms in `out`, train each view for the same seconds, score all. Returns what goes into dimensions.json."""
    data = phantom(out / "phantoms", cases=size.cases, shape=size.shape, raters=0, seed=seed, overwrite=True)
    recipes = recipes_of(size)
    paces = seconds_per_step(recipes, data, out / "runs" / "cache", size=size, device=device)
    trained = {}
    for name, recipe in recipes.items():
        steps = max(2, round(size.minutes * 60 / paces[name]))
        log.info("training: %s, %d steps of %.2f s", name, steps, paces[name])
        trained[name] = _train(recipe, steps, data, out, name, device) | {"seconds_per_step": round(paces[name], 3)}
    rows = []
    for name, model, noise in (
        ("2D", "2D", "independent"),
        ("2D, shared noise", "2D", "shared"),
        ("2.5D", "2.5D", "independent"),
        ("2.5D, shared noise", "2.5D", "shared"),
        ("3D", "3D", None),
    ):
        log.info("segmenting: %s", name)
        row = _score(
            data, Path(trained[model]["run"]), out / "predictions" / name.replace(" ", "_"), noise, seed, device
        )
        rows.append({"name": name, **{key: value for key, value in trained[model].items() if key != "run"}, **row})
    return {
        "schema": 1,
        "benchmark": "dimensions",
        "data": f"{size.cases} phantoms, seed {seed}",
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "rows": rows,
        "conventions": CONVENTIONS,
    }


def seconds_per_step(
    recipes: Mapping[str, SegmentationRecipe], data: Path, cache: Path, *, size: Size, device: str
) -> dict[str, float]:
    """Median seconds of a training step of each recipe, loading included; taken in turn, on networks thrown away."""
    manifest = with_splits(read_manifest(data))
    place = find_device(device)
    steps = size.warm_up_steps + size.timed_steps
    walks = {}
    for name, recipe in recipes.items():
        fabric = make_fabric(place, find_precision(recipe.training.precision, place))
        study = prepare_study(manifest, recipe, cache=cache)
        objective = Denoising(recipe.build_denoiser(), MaskAndImage(recipe.space), seed=0)
        walks[name] = fit(objective, slices_of(recipe, study.training, steps), recipe.training.but(steps=steps), fabric)
    seconds: dict[str, list[float]] = {name: [] for name in walks}
    for _ in range(steps):
        for name, walk in walks.items():
            start = time.perf_counter()
            next(walk).read()  # reading waits for the device
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[size.warm_up_steps :]) for name, taken in seconds.items()}


def _train(recipe: SegmentationRecipe, steps: int, data: Path, out: Path, name: str, device: str) -> dict[str, Any]:
    """Through the public verb, from a recipe file."""
    recipe = recipe.but(training=recipe.training.but(steps=steps, validate_every=steps).model_dump(mode="json"))
    config, folder = out / f"{name}.yaml", out / "runs" / name
    write_text(config, write_yaml(recipe))
    if (folder / "run.json").is_file():  # of an earlier call
        shutil.rmtree(folder)
    run = train_seg(data, config=str(config), out=folder, device=device, runs=out / "runs", mlflow=False)
    return {
        "run": str(folder),
        "parameters": parameters(recipe.build_denoiser()),
        "training_steps": steps,
        "wall_seconds": round(run.facts["ended"] - run.facts["started"], 1),
    }


def _score(data: Path, model: Path, folder: Path, noise: str | None, seed: int, device: str) -> dict[str, Any]:
    """Segment the test cases with members written, watching the memory; evaluate; compare adjacent slices."""
    gc.collect()
    watched = reset_peak_memory()
    segment(
        data=data,
        split="test",
        model=model,
        out=folder,
        noise=noise,
        seed=seed,
        device=device,
        save_members=True,
        overwrite=True,
    )
    peak = peak_memory_mb() if watched else None
    metrics = evaluate(folder, data, split="test", figure=False)["metrics"]
    cases = read_manifest(data).of("test")
    reports = [json.loads((folder / case.name / "case.json").read_text(encoding="utf-8")) for case in cases]
    flickers = [found for case in cases if (found := flicker_of(case, folder / case.name)) is not None]
    return {
        "metrics": {name: metrics[name] for name in SHOWN if name in metrics},
        "flicker": _mean([members for members, _ in flickers]),
        "flicker_mean": _mean([ensemble for _, ensemble in flickers]),
        "network_passes": _mean([report["network_passes"] for report in reports]),
        "seconds_per_case": _mean([report["seconds"]["all"] for report in reports]),
        "peak_memory_mb": peak,
    }


def flicker_of(case: Case, folder: Path) -> tuple[float, float] | None:
    """How much more adjacent slices of the members' masks, and of the ensemble's, differ than the reference's; None
    where the reference is empty."""
    assert case.seg is not None
    reference = unlikeness(read_labels(case.seg).voxels > 0)
    if reference is None:
        return None
    members = [unlikeness(read_map(path).voxels > 0.5) for path in sorted((folder / "members").glob("*.nii.gz"))]
    mean = unlikeness(read_map(folder / "probability.nii.gz").voxels > 0.5)
    # A member without a lesion has no slices that could differ: it counts as the reference does.
    found = [reference if value is None else value for value in members]
    return statistics.mean(found) - reference, (reference if mean is None else mean) - reference


def unlikeness(mask: np.ndarray) -> float | None:
    """1 - Dice of slices [:, :, z] and [:, :, z + 1], overlaps and sizes pooled over z; None for an empty mask."""
    shared = np.count_nonzero(mask[:, :, 1:] & mask[:, :, :-1])
    size = np.count_nonzero(mask[:, :, 1:]) + np.count_nonzero(mask[:, :, :-1])
    return 1 - 2 * shared / size if size else None


def reset_peak_memory() -> bool:
    """Let the kernel forget the largest memory so far; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory_mb() -> float | None:
    """The largest resident memory since `reset_peak_memory`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return round(int(found[0]) / 1024, 0) if found else None


def _mean(values: list[float]) -> float | None:
    return round(statistics.mean(values), 4) if values else None


def show(result: Mapping[str, Any]) -> str:
    """The table."""
    columns = ["", "Dice", "HD95 mm", "flicker", "of mean", "steps", "train s", "s/case", "passes", "peak MB"]
    rows = [
        [
            row["name"],
            with_interval(row["metrics"]["dice"]),
            with_interval(row["metrics"]["hd95_mm"], 1),
            number(row["flicker"], 4),
            number(row["flicker_mean"], 4),
            str(row["training_steps"]),
            number(row["training_steps"] * row["seconds_per_step"], 0),
            number(row["seconds_per_case"], 1),
            number(row["network_passes"], 0),
            number(row["peak_memory_mb"], 0),
        ]
        for row in result["rows"]
    ]
    minutes = result["size"]["minutes"]
    return f"{result['data']}; {minutes:g} minutes of training each\n\n{table(columns, rows)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dimensions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/dimensions"))
    parser.add_argument("--minutes", type=float, help="of training for each view")
    parser.add_argument("--cases", type=int, help="phantoms in all; one in five is for testing")
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    size = replace(size, cases=chosen.cases or size.cases, minutes=chosen.minutes or size.minutes)
    result = measure(chosen.out, size=size, seed=chosen.seed, device=chosen.device)
    write_json(chosen.out / "dimensions.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
