"""Does the ensemble earn its place? The demo's recipe beside its own network without noise, in the same training seconds.

    python -m benchmarks.ensembles [--seeds 3] [--quick] [--out DIR]

The rival's members cost nothing: its probability cut at evenly spaced levels, and at the surfaces that the recipe cuts its
members at. Differences are paired over the phantoms of all seeds. Phantoms are easier than patients, and their raters are
made up.
"""

import argparse
import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.reporting import machine, number, table, with_interval
from benchmarks.supervised import LEVELS, pace_of, parameters, same_unet, segment_baseline, train_baseline
from medseg_diff import evaluate, phantom, segment, train_seg
from medseg_diff.console import configure, log
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.files import read_facts, write_json
from medseg_diff.methods.cuts import SpreadCut
from medseg_diff.metrics.intervals import mean_interval
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.tasks.train.study import prepare_study, with_splits

CONFIG = "quick/phantom"
OURS, LEVEL_SETS, SURFACES = "diffusion", "supervised, level sets", "supervised, the same surfaces"
MEASURES = ("dice", "ged2", "ged2_unbiased", "ece_band", "auroc_error_band", "auroc_error")
DICE_MARGIN = 0.005  # what the ensemble's mask may lose to the rival's
CONVENTIONS = {
    "measures": "test phantoms of all seeds, as `medseg-diff evaluate` defines them; each seed's are its own",
    "difference": "diffusion less the rival on the same phantom, mean with a 95 % percentile bootstrap interval",
    "training_seconds": "steps × seconds of a step (median, loading included, measured in turn), the prior's part included",
    "seconds_per_case": "reading to writing, members written too",
    "rival": "the recipe's network (its prior, where it has one) without noise and time, with the same loss, slices and "
    "optimiser; last averaged weights",
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 72
    tested: int = 12
    seeds: int = 3
    members: int = 10
    shape: tuple[int, int, int] = (64, 64, 48)
    overrides: tuple[str, ...] = ("training.steps=500", "training.validate_every=500")


QUICK = Size(cases=12, tested=2, seeds=1, overrides=("training.steps=60", "training.validate_every=60"))


@dataclass(frozen=True)
class Bench:
    """Where one seed's phantoms, runs and predictions lie."""

    out: Path
    data: Path
    size: Size
    device: str
    seed: int

    def measured(self, name: str) -> dict[str, dict[str, float | None]]:
        """{case: {measure: value}} of a folder of predictions."""
        folder = self.out / name
        evaluate(folder, self.data, split="test", figure=False, mlflow=False)
        with (folder / "per_case.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            f"{self.seed}/{row['case']}": {each: float(row[each]) if row[each] else None for each in MEASURES}
            for row in rows
        }

    def seconds_per_case(self, name: str) -> float:
        """As the cases of a folder took."""
        return mean(read_facts(path)["seconds"]["all"] for path in (self.out / name).glob("*/case.json"))


def measure(out: Path, *, size: Size = Size(), device: str = "auto") -> dict[str, Any]:
    """Every method with every seed. Returns what goes into ensembles.json, written after each seed."""
    result: dict[str, Any] = {}
    seeds: list[dict[str, Any]] = []
    for seed in range(size.seeds):
        log.info("seed %d", seed)
        share = size.tested / size.cases
        data = phantom(
            out / f"phantoms_{seed}",
            cases=size.cases,
            shape=size.shape,
            raters=3,
            healthy=0.0,
            held_out=share,
            seed=seed,
        )
        seeds.append(_seed(Bench(out / f"seed_{seed}", data, size, device, seed)))
        result = {
            "schema": 1,
            "benchmark": "ensembles",
            "config": CONFIG,
            "machine": machine(device if device != "auto" else str(find_device("auto"))),
            "size": asdict(size),
            "seeds": seeds,
            **summary(seeds),
            "conventions": CONVENTIONS,
        }
        write_json(out / "ensembles.json", result)
    return result


def _seed(bench: Bench) -> dict[str, Any]:
    """All methods with one seed: steps, seconds, and every case's measures."""
    overrides = [*bench.size.overrides, f"training.seed={bench.seed}"]
    recipe = load_recipe(CONFIG, task="segment", overrides=overrides)
    device = find_device(bench.device)
    precision = find_precision(recipe.training.precision, device)
    fabric = make_fabric(device, precision)
    manifest = with_splits(read_manifest(bench.data))
    study = prepare_study(manifest, recipe, cache=bench.out / "runs" / "cache")
    pace = pace_of(recipe, study, same_unet, fabric)
    trained = train_baseline(same_unet(recipe), recipe, study, fabric, steps=pace.baseline_steps)
    assert isinstance(recipe.sampling.cut, SpreadCut)
    for name, cut in ((LEVEL_SETS, LEVELS), (SURFACES, recipe.sampling.cut)):
        folder, members = bench.out / name, bench.size.members
        given = (trained, manifest.of("test"), recipe, folder, fabric)
        segment_baseline(*given, precision=precision, level_sets=members, cut=cut)
    run = _trained(bench, overrides)
    segment(
        data=bench.data,
        split="test",
        model=run.folder,
        out=bench.out / OURS,
        members=bench.size.members,
        save_members=True,
        overwrite=True,
        seed=bench.seed,
        device=bench.device,
    )
    names = (OURS, LEVEL_SETS, SURFACES)
    return {
        "seed": bench.seed,
        "steps": {"diffusion": pace.recipe_steps, "supervised": pace.baseline_steps},
        "parameters": {"diffusion": parameters(recipe.build_denoiser()), "supervised": parameters(trained.network)},
        "training_seconds": pace.seconds,
        "seconds_per_case": {name: round(bench.seconds_per_case(name), 3) for name in names},
        "cases": {name: bench.measured(name) for name in names},
    }


def _trained(bench: Bench, overrides: Sequence[str]) -> Run:
    """Through the public verb."""
    folder = bench.out / "runs" / OURS
    if (folder / "run.json").is_file():  # of an earlier call
        shutil.rmtree(folder)
    run = train_seg(
        bench.data,
        config=CONFIG,
        overrides=overrides,
        out=folder,
        runs=bench.out / "runs",
        device=bench.device,
        mlflow=False,
    )
    assert isinstance(run, Run)
    return run


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of each method over the cases of all seeds, the paired differences, and the verdict."""
    cases = {name: {k: v for each in seeds for k, v in each["cases"][name].items()} for name in seeds[0]["cases"]}
    ours = cases[OURS]

    def over(values: Mapping[str, float | None]) -> dict[str, Any]:
        return asdict(mean_interval(list(values.values()), patients=list(values)))

    means = {
        name: {measure: over({k: case[measure] for k, case in found.items()}) for measure in MEASURES}
        for name, found in cases.items()
    }
    differences = {
        name: {
            measure: over({k: _less(ours[k][measure], case[measure]) for k, case in found.items()})
            for measure in ("dice", "ged2")
        }
        for name, found in cases.items()
        if name != OURS
    }
    apart = differences[LEVEL_SETS]
    return {
        "means": means,
        "differences": differences,
        "holds": {
            f"Dice at least the rival's less {DICE_MARGIN}": apart["dice"]["value"] >= -DICE_MARGIN,
            "GED² below its level sets": apart["ged2"]["value"] < 0,
            "GED² below it cut at the same surfaces": differences[SURFACES]["ged2"]["value"] < 0,
        },
    }


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def show(result: Mapping[str, Any]) -> str:
    """The table, the differences and what holds."""
    size, seeds = result["size"], result["seeds"]
    columns = ["", "Dice", "GED²", "unbiased", "ECE in doubt", "AUROC err. in doubt", "s/case"]
    rows = [
        [
            name,
            *(with_interval(means[measure]) for measure in ("dice", "ged2")),
            *(number(means[measure]["value"]) for measure in ("ged2_unbiased", "ece_band", "auroc_error_band")),
            number(mean(each["seconds_per_case"][name] for each in seeds), 2),
        ]
        for name, means in result["means"].items()
    ]
    apart = [
        [f"diffusion less {name}", with_interval(found["dice"], 4), with_interval(found["ged2"], 4)]
        for name, found in result["differences"].items()
    ]
    verdict = [f"{name}: {'yes' if holds else 'NO'}" for name, holds in result["holds"].items()]
    about = (
        f"{result['config']}, {len(seeds)} seeds, {size['members']} members; "
        f"{mean(each['training_seconds']['recipe'] for each in seeds):.0f} training seconds each"
    )
    return "\n\n".join([about, table(columns, rows), table(["", "Dice", "GED²"], apart), "\n".join(verdict)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensembles", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/ensembles"))
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    size = replace(size, seeds=chosen.seeds) if chosen.seeds else size
    print(show(measure(chosen.out, size=size, device=chosen.device)))


if __name__ == "__main__":
    main()
