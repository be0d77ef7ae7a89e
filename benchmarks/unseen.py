"""How good is a recipe on scanners that it has never met? Trained on a few phantoms of three scanners, tested on others.

    python -m benchmarks.unseen [--lever NAME …] [--seeds 3] [--quick] [--out DIR]

A lever is a change of the recipe; each is trained anew with every seed, on other patients of other scanners, and tested on
the same cases, each of a scanner of its own. Defaults are chosen here, and confirmed on real patients, never the other way
round. Phantoms are easier than patients: the numbers compare methods, they promise nothing about a hospital.
"""

import argparse
import csv
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.reporting import machine, number, table
from benchmarks.supervised import (
    Baseline,
    few_steps,
    monai_unet,
    nnunet,
    pace_of,
    same_unet,
    segment_baseline,
    timed_in_turn,
    train_baseline,
)
from medseg_diff import evaluate, phantom, segment, train_seg
from medseg_diff.console import configure, log
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.files import read_facts, write_json
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.tasks.train.study import prepare_study, with_splits
from medseg_diff.training.denoising import Denoising, MaskAndImage

CONFIG = "quick/mask_logits"
AT_3_MM = (
    "preparation.spacing_mm=[3.0, 3.0, null]",
    "view.size=[56, 64]",
    "regions={whole_tumour: [1, 2, 4]}",
    "training.steps=400",
    "training.validate_every=400",
)
UNET = "kind: unet, width: 32, multipliers: [1, 2, 2], blocks: 1, time_embedding: adaptive, stem: 2"
ROBUST = ("preparation.intensity=robust", "preparation.background=-5.0")
MILD = "{contrast: 0.3, brightness: 0.2, noise: 0.05}"
MILD_ON_ROBUST = "{contrast: 0.3, brightness: 0.5, noise: 0.1}"
AS_IT_WAS = f"network={{{UNET}, attention: [2], groups: 8, resampling: residual}}"
# Each changes one thing of the recipe, and trains for as many seconds.
LEVERS: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "as it was": (
        AS_IT_WAS,
        *ROBUST,
        f"augmentation={MILD_ON_ROBUST}",
        "denoiser.dice=0",
        "sampling.cut={kind: half}",
        "sampling.mirrors=[]",
    ),
    "no prior": (f"network={{{UNET}, attention: [], groups: 32, resampling: plain}}",),
    "no Dice": ("denoiser.dice=0",),
    "little Dice": ("denoiser.dice=0.1",),
    "Dice as heavy as cross-entropy": ("denoiser.dice=1",),
    "norm of eight groups": ("network.groups=8", "network.correction.groups=8"),
    "residual resampling": ("network.resampling=residual",),
    "attention": ("network.attention=[2]",),
    "milder augmentation": (f"augmentation={MILD}", "sampling.mirrors=[0]"),
    "no gamma": ("augmentation.gamma=0",),
    "no histogram": ("augmentation.histogram=0",),
    "no bias field": ("augmentation.bias=0",),
    "no blur": ("augmentation.blur=0",),
    "fading channels": ("augmentation.dimming=0.25",),
    "turned and mirrored little": (
        "augmentation.flips=[0]",
        "augmentation.rotation_degrees=15",
        "augmentation.scaling=0.15",
        "augmentation.translation=4",
        "sampling.mirrors=[0]",
    ),
    "more noise": ("augmentation.noise=0.2",),
    "always augmented": ("augmentation.probability=0.8",),
    "lesions as bright as they are": ("augmentation.lesion_contrast=0",),
    "lesions where they are": ("augmentation.lesion_paste=0",),
    "a lesion pasted always": ("augmentation.lesion_paste=1",),
    "neighbouring slices": ("view.context=1",),
    "robust scale": (*ROBUST, "augmentation.brightness=1.0", "augmentation.noise=0.4"),
    "batch of 16": ("training.batch=16",),
    "averaged over fewer steps": ("training.ema=0.9",),  # within 400 steps no ema above 0.98 is reached
    "not mirrored in sampling": ("sampling.mirrors=[]",),
}
RIVALS = {"MONAI's U-Net": monai_unet, "nnU-Net's network": nnunet, "the prior alone": same_unet}
TEST_SEED = 10_000  # of the cases to be tested on; training seeds are 0, 1, 2 …
WORST_SHARE = 0.1
SHOWN = ("dice", "worst_tenth", "hd95_mm", "volume_error_ml", "auroc_error_band", "ece_band", "coverage")
CONVENTIONS = {
    "dice … ece_band": "means over cases as `medseg-diff evaluate` defines them, then over "
    "seeds; ± is the standard deviation over seeds",
    "worst_tenth": "mean Dice of the tenth of the cases with the lowest",
    "coverage": "share of cases whose reference volume lies among those of the members (low to high in case.json)",
    "seconds": "of the training as it ran, validation included",
    "steps": "as many as fit into the seconds of the recipe's, a step of both timed in turn, loading included",
    "rivals": "trained on the same slices with the same augmentation",
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    patients: int = 3
    tested: int = 24
    seeds: int = 3
    shape: tuple[int, int, int] = (64, 64, 48)
    overrides: tuple[str, ...] = AT_3_MM
    levers: tuple[str, ...] = tuple(LEVERS)
    rivals: tuple[str, ...] = tuple(RIVALS)


QUICK = Size(
    tested=3,
    seeds=1,
    overrides=(*AT_3_MM[:-2], "training.steps=40", "training.validate_every=40"),
    levers=("the recipe", "no gamma"),
)


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and on what it runs. `tested` is the table of the test cases."""

    out: Path
    tested: Path
    size: Size
    device: str

    def patients(self, seed: int) -> Path:
        """The table of the cases to learn from: each patient of a scanner of its own, as far as three go."""
        made = phantom(
            self.out / f"patients_{seed}",
            cases=self.size.patients,
            shape=self.size.shape,
            healthy=0.0,
            scanners=3,
            seed=seed,
        )
        rows = read_manifest(made).rows()
        write_manifest(made, [row | {"split": "train"} for row in rows])
        return made

    def measured(self, folder: Path) -> dict[str, float | None]:
        """What a folder of predictions is worth."""
        metrics = evaluate(folder, self.tested, figure=False, mlflow=False)["metrics"]
        with (folder / "per_case.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        dice = sorted(float(row["dice"]) for row in rows)
        worst = dice[: max(1, round(WORST_SHARE * len(dice)))]
        found = {name: metrics[name]["value"] for name in SHOWN if name in metrics}
        return found | {"worst_tenth": mean(worst), "coverage": coverage(folder, rows)}


def coverage(folder: Path, rows: Sequence[Mapping[str, str]]) -> float | None:
    """Share of the cases whose volume lies among those of their members; None where no case.json states any."""
    inside = []
    for row in rows:
        for volume in read_facts(folder / row["case"] / "case.json").get("volume_ml", {}).values():
            members = volume["members"]
            inside.append(members["low"] <= float(row["reference_ml"]) <= members["high"])
    return mean(inside) if inside else None


def measure(out: Path, *, size: Size = Size(), device: str = "auto") -> dict[str, Any]:
    """Train and test every lever and rival with every seed. Returns what goes into unseen.json, written after each row.

    What an earlier call measured with the same recipe on the same cases is not measured again.
    """
    tested = phantom(
        out / "tested", cases=size.tested, shape=size.shape, healthy=0.0, scanners=size.tested, seed=TEST_SEED
    )
    bench = Bench(out, tested, size, device)
    tables = [bench.patients(seed) for seed in range(size.seeds)]
    result: dict[str, Any] = {
        "schema": 1,
        "benchmark": "unseen",
        "config": CONFIG,
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "rows": [],
        "conventions": CONVENTIONS,
    }
    for name in (*size.levers, *size.rivals):
        runs = [_measured_once(bench, name, data, seed) for seed, data in enumerate(tables)]
        result["rows"].append({"name": name, "overrides": LEVERS.get(name), "seeds": runs})
        write_json(out / "unseen.json", result)
    return result


def _measured_once(bench: Bench, name: str, data: Path, seed: int) -> dict[str, Any]:
    """One training and its test, kept in OUT/measured."""
    kept = bench.out / "measured" / f"{_word(name, seed)}.json"
    recipes = [_recipe(bench, each, seed).model_dump(mode="json") for each in ("the recipe", name)]
    cases = {"patients": bench.size.patients, "tested": bench.size.tested, "shape": list(bench.size.shape)}
    asked = {"recipes": recipes, **cases}
    if kept.is_file() and (earlier := read_facts(kept))["asked"] == asked:
        return dict(earlier["run"])
    log.info("%s, seed %d", name, seed)
    run = _lever(bench, name, data, seed) if name in LEVERS else _rival(bench, name, data, seed)
    write_json(kept, {"asked": asked, "run": run})
    return run


def _word(name: str, seed: int) -> str:
    """A lever or rival and its seed as the name of a folder."""
    return f"{re.sub('[^a-z0-9]+', '_', name.lower())}_{seed}"


def _recipe(bench: Bench, name: str, seed: int) -> SegmentationRecipe:
    """The recipe with a lever; for a rival the recipe as it is."""
    return load_recipe(CONFIG, task="segment", overrides=_overrides(bench, name, seed))


def _overrides(bench: Bench, name: str, seed: int) -> list[str]:
    return [*LEVERS.get(name, ()), *bench.size.overrides, f"training.seed={seed}"]


def _lever(bench: Bench, name: str, data: Path, seed: int) -> dict[str, Any]:
    """Through the public verbs, for as long as the recipe as it is."""
    steps = _steps_in_equal_seconds(bench, name, data, seed)
    model, folder = (bench.out / kind / _word(name, seed) for kind in ("runs", "predictions"))
    if (model / "run.json").is_file():  # of an earlier call
        shutil.rmtree(model)
    runs, device = bench.out / "runs", bench.device
    overrides = [*_overrides(bench, name, seed), f"training.steps={steps}", f"training.validate_every={steps}"]
    run = train_seg(data, config=CONFIG, overrides=overrides, out=model, runs=runs, device=device, mlflow=False)
    segment(data=bench.tested, model=model, out=folder, device=device, overwrite=True)
    seconds = round(run.facts["ended"] - run.facts["started"], 1)
    return {"seed": seed, "seconds": seconds, "steps": steps, **bench.measured(folder)}


def _steps_in_equal_seconds(bench: Bench, name: str, data: Path, seed: int) -> int:
    """How many steps with this lever take as long as the recipe's, a step of both timed in turn."""
    recipes = {each: _recipe(bench, each, seed) for each in ("the recipe", name)}
    wanted = recipes["the recipe"].training.steps
    if len(recipes) == 1:
        return wanted
    device = find_device(bench.device)
    runs = {}
    for each, recipe in recipes.items():
        study = prepare_study(with_splits(read_manifest(data)), recipe, cache=bench.out / "runs" / "cache")
        fabric = make_fabric(device, find_precision(recipe.training.precision, device))
        objective = Denoising(recipe.build_denoiser(), MaskAndImage(recipe.space), seed=0)
        runs[each] = few_steps(recipe, study, objective, fabric)
    seconds = timed_in_turn(runs)
    return max(1, round(wanted * seconds["the recipe"] / seconds[name]))


def _rival(bench: Bench, name: str, data: Path, seed: int) -> dict[str, Any]:
    """A supervised network on the slices of the recipe as it is."""
    build, device = RIVALS[name], find_device(bench.device)
    recipe = _recipe(bench, name, seed)
    precision = find_precision(recipe.training.precision, device)
    fabric = make_fabric(device, precision)
    study = prepare_study(with_splits(read_manifest(data)), recipe, cache=bench.out / "runs" / "cache")
    pace = pace_of(recipe, study, build, fabric)
    baseline: Baseline = build(recipe)
    trained = train_baseline(baseline, recipe, study, fabric, steps=pace.baseline_steps)
    folder = bench.out / "predictions" / _word(name, seed)
    segment_baseline(trained, read_manifest(bench.tested).cases, recipe, folder, fabric, precision=precision)
    return {"seed": seed, "seconds": round(trained.seconds, 1), "steps": trained.steps, **bench.measured(folder)}


def show(result: dict[str, Any]) -> str:
    """A line for each lever: means over seeds, the first of them with its standard deviation."""
    doubt = ("AUROC err. in doubt", "ECE in doubt")
    columns = ["", "Dice", "worst tenth", "HD95 mm", "|volume| ml", *doubt, "coverage", "steps", "s"]
    rows = []
    for row in result["rows"]:
        values = {
            name: [run[name] for run in row["seeds"] if run.get(name) is not None]
            for name in (*SHOWN, "steps", "seconds")
        }
        means = {name: mean(known) if known else None for name, known in values.items()}
        spread = f" ± {stdev(values['dice']):.3f}" if len(values["dice"]) > 1 else ""
        rows.append(
            [
                row["name"],
                number(means["dice"]) + spread,
                number(means["worst_tenth"]),
                number(means["hd95_mm"], 1),
                number(means["volume_error_ml"], 1),
                number(means["auroc_error_band"]),
                number(means["ece_band"]),
                number(means["coverage"], 2),
                number(means["steps"], 0),
                number(means["seconds"], 0),
            ]
        )
    size = result["size"]
    words = (
        f"{result['config']}; {size['patients']} phantoms of three scanners to learn from, {size['tested']} of as many "
    )
    return "\n\n".join([f"{words}others to be tested on, {size['seeds']} seeds", table(columns, rows)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unseen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/unseen"))
    parser.add_argument("--quick", action="store_true", help="few cases and steps: to see it run, not to compare")
    parser.add_argument("--lever", action="append", choices=[*LEVERS, *RIVALS], help="only this one (repeat)")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    if chosen.lever:
        levers, rivals = (tuple(name for name in chosen.lever if name in known) for known in (LEVERS, RIVALS))
        size = replace(size, levers=levers, rivals=rivals)
    size = replace(size, seeds=chosen.seeds) if chosen.seeds else size
    result = measure(chosen.out, size=size, device=chosen.device)
    print(show(result))


if __name__ == "__main__":
    main()
