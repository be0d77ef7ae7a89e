"""What is an anomaly map worth? Settings of one engine and free baselines on held-out phantoms, and AUROC against NFE.

    python -m benchmarks.anomaly [--quick | --paper] [--unseen] [--cases N] [--out DIR] [--alone CONFIG [KEY=VALUE …]]

With `--unseen` every phantom comes from a scanner of its own, so that none of the test's was learned from. With `--alone`
one recipe is compared with the free baselines. Else one system is trained; every row maps with it, thresholds and normative
means measured anew for each. Rows that go deeper than it has learned map with a second one, trained for as many steps.
`benchmarks.anomaly_family` compares the engines. Phantoms are easier than patients: nothing is promised about a hospital.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.reporting import machine, number, table, with_interval
from medseg_diff import anomaly, evaluate, phantom, train_anomaly
from medseg_diff.console import configure, log
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.device import find_device
from medseg_diff.files import write_json, write_text
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run
from medseg_diff.settings import apply_overrides, parse_settings, read_yaml, write_yaml
from medseg_diff.tasks.train.normative import calibrate
from medseg_diff.tasks.train.study import with_splits
from medseg_diff.training.classification import Skill

SHOWN = ("auroc", "average_precision", "dice_best", "dice_preset", "false_positives_ml", "lesion_sensitivity")
AGAINST_TWIN = ("lesion_left", "error_elsewhere")  # of what reconstructs
# Passes per slice; scale 0 costs what guided decoding does.
COSTS = {"saliency": 1, "flair": 0, "flair_t2": 0, "blur": 0}
CONVENTIONS = {
    "all rows": "test phantoms, as `medseg-diff evaluate` defines the measures: same smoothing, same brain, each map above "
    "its own normative mean and cut at its own threshold, both from healthy validation phantoms",
    "lesion_left": "how much of the lesion the reconstruction leaves, against the lesion-free twin of the phantom",
    "error_elsewhere": "what it changes in the other brain voxels, in standard deviations; compare it with the round trip's",
    "nfe": "evaluations of the denoiser for one slice, both ways; passes add the classifier's",
    "seconds_per_slice": "mean over the test cases, reading and writing left out; the recipe's as in the curve",
    "curve": "other depths and steps, on the first test phantoms with a lesion, calibrated on two phantoms; down to the "
    "recipe's `deepest` all with one trained system, beyond it with another, which learned every time down to the paper's "
    "depth in as many steps",
}


# Recipes for 2 mm, on phantoms of 3.
AS_SMALL = ("preparation.spacing_mm=[null,null,null]", "view.size=[56,64]", "fewest_voxels=10")
PATCHES = ("engine.patch=4", "engine.blur=1.3")
TINY = (AS_SMALL[0], "view.size=[32,32]", "training.steps=10", "network.width=8", "network.groups=4")


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 60
    shape: tuple[int, int, int] = (64, 64, 48)
    unseen: bool = False  # a scanner of its own for each case
    config: str = "quick/phantom"
    overrides: tuple[str, ...] = (
        "training.steps=900",
        "training.validate_every=225",
        "classifier_training.steps=1000",
        "classifier_training.validate_every=125",
        "engine.steps=10",
    )
    deeper: tuple[str, ...] = ("deepest=500",)
    # Depth, and steps each way.
    curve: tuple[tuple[int, int], ...] = ((300, 2), (300, 5), (300, 25), (300, 50), (500, 10), (500, 50))
    curve_cases: int = 2
    other: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("classifier-free", ("engine={kind: classifier_free, depth: 300, steps: 10, scale: 3.0, network_batch: 16}",)),
        ("not conditioned on healthy", ("engine.condition_on_healthy=false",)),
        ("round trip", ("engine.condition_on_healthy=false", "engine.scale=0")),
    )


QUICK = Size(
    cases=12,
    shape=(32, 32, 32),
    overrides=(
        *TINY,
        "training.batch=8",
        "classifier_training.steps=300",
        "classifier_training.batch=8",
        "classifier.width=8",
        "classifier.groups=4",
        "validation.slices=8",
        "engine.steps=2",
    ),
    curve=((250, 2), (500, 2)),
)

MOST_TESTS = 12
PAPER = (500, 500)  # Wolleb et al. 2022: L = 500 of 1000, a step for every time


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and on what it runs."""

    out: Path
    data: Path
    device: str

    def system(self, trained: Run, name: str, overrides: Sequence[str]) -> Run:
        """The trained system with other settings of its engine, calibrated for them."""
        folder = self.out / "runs" / name
        if folder.exists():  # of an earlier call
            shutil.rmtree(folder)
        shutil.copytree(trained.folder, folder)
        run = Run(folder)
        changed = apply_overrides(read_yaml(run.recipe_file), overrides)
        write_text(run.recipe_file, write_yaml(parse_settings(AnomalyRecipe, changed, source=name)))
        known = json.loads((trained.folder / "calibration.json").read_text(encoding="utf-8"))["classifier"]["by_time"]
        manifest = with_splits(read_manifest(self.data))
        calibrate(run, manifest, skill=[Skill(**each) for each in known], device=self.device)
        return run

    def score(self, run: Run, *, baselines: bool) -> dict[str, Any]:
        """Map and evaluate the test cases: cost, metrics, and the baselines' where asked for."""
        folder = self.out / "maps" / run.name
        anomaly(
            data=self.data,
            split="test",
            model=run.folder,
            out=folder,
            baselines=baselines,
            overwrite=True,
            device=self.device,
        )
        found = evaluate(folder, self.data, split="test")
        return _cost(folder) | {
            "metrics": {
                name: found["metrics"][name]
                for name in (*SHOWN, *AGAINST_TWIN, "auroc_of_slices", "auroc_of_volumes")
                if name in found["metrics"]
            },
            "baselines": found["baselines"],
        }


def measure(out: Path, *, size: Size = Size(), seed: int = 0, device: str = "auto") -> dict[str, Any]:
    """Make phantoms in `out`, train, score every engine and every baseline. Returns what goes into anomaly.json."""
    held_out = min(0.2, MOST_TESTS / size.cases)
    made: dict[str, Any] = {"cases": size.cases, "shape": size.shape, "scanners": size.cases if size.unseen else 0}
    data = phantom(out / "phantoms", **made, held_out=held_out, twins=True, seed=seed)
    bench, model = Bench(out, data, device), fresh(out / "runs" / "trained")
    common: dict[str, Any] = {"runs": out / "runs", "device": device, "mlflow": False}
    trained = train_anomaly(data, config=size.config, out=model, overrides=size.overrides, **common)
    assert isinstance(trained, Run)
    learned = load_recipe(size.config, task="anomaly", overrides=size.overrides).deepest
    log.info("the recipe as it is, and the baselines")
    own = bench.score(trained, baselines=True)
    few = replace(bench, data=_with_few_cases(data, size.curve_cases), out=out / "curve")
    curve = [{"name": "the recipe", **few.score(few.system(trained, "recipe", ()), baselines=False)}]
    own["seconds_per_slice"] = curve[0]["seconds_per_slice"]  # without the baselines' own work
    rows = [{"name": "the recipe", **own}]
    for name, overrides in size.other:
        log.info("%s", name)
        changed = bench.system(trained, re.sub(r"\W+", "_", name), overrides)
        rows.append({"name": name, **bench.score(changed, baselines=False)})
    rows += [baseline_row(name, found, own) for name, found in own["baselines"].items()]
    deep: Run | None = None
    for depth, steps in size.curve:
        log.info("depth %d in %d steps", depth, steps)
        shallow = learned is None or depth <= learned
        if not shallow and deep is None:
            again = (*size.overrides, *size.deeper)
            deeper = train_anomaly(
                data, config=size.config, out=fresh(out / "runs" / "deep"), overrides=again, **common
            )
            assert isinstance(deeper, Run)
            deep = deeper
        system = trained if shallow or deep is None else deep
        other = few.system(system, f"L{depth}_{steps}", (f"engine.depth={depth}", f"engine.steps={steps}"))
        curve.append({"name": f"L = {depth}, {steps} steps", **few.score(other, baselines=False)})
    return {
        "schema": 1,
        "benchmark": "anomaly",
        "data": f"{size.cases} phantoms{', each of a scanner of its own' if size.unseen else ''}, seed {seed}",
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "classifier": json.loads((model / "calibration.json").read_text(encoding="utf-8"))["classifier"],
        "wall_seconds": round(trained.facts["ended"] - trained.facts["started"], 1),
        "methods": [{name: value for name, value in row.items() if name != "baselines"} for row in rows],
        "curve": [{name: value for name, value in row.items() if name != "baselines"} for row in curve],
        "conventions": CONVENTIONS,
    }


def fresh(folder: Path) -> Path:
    """A place for a run: that of an earlier call is removed."""
    if (folder / "run.json").is_file():
        shutil.rmtree(folder)
    return folder


def _with_few_cases(data: Path, count: int) -> Path:
    """A table beside `data` with `count` of its test cases, all diseased, and a healthy and a diseased one to calibrate on:
    a thousand evaluations a slice take hours."""
    manifest = read_manifest(data)
    test, val = (
        [[case.name for case in manifest.of(split) if case.label == label] for label in ("diseased", "healthy")]
        for split in ("test", "val")
    )
    kept = {*test[0][:count], *val[0][:1], *val[1][:1]}
    rows = [row for row in manifest.rows() if row["split"] == "train" or row["case"] in kept]
    write_manifest(table := data.with_name("curve.csv"), rows)
    return table


def baseline_row(name: str, found: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A free map, as the row of a method; its own gain is left out."""
    passes = COSTS.get(name, own["passes_per_slice"])
    nfe = own["nfe"] if name == "scale_0" else 0
    metrics = {key: value for key, value in found.items() if not key.endswith("gain")}
    return {"name": name, "nfe": nfe, "passes_per_slice": passes, "seconds_per_slice": None, "metrics": metrics}


def _cost(folder: Path) -> dict[str, Any]:
    """Calls and passes of the networks for one slice, and its seconds."""
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/case.json"))]
    evaluations = facts[0]["network_evaluations"]
    seconds = sum(each["seconds"]["map"] for each in facts) / sum(each["slices"] for each in facts)
    return {
        "nfe": evaluations["denoiser"],
        "passes_per_slice": sum(evaluations.values()),
        "seconds_per_slice": round(seconds, 4),
    }


def show(result: dict[str, Any]) -> str:
    """Both tables."""
    columns = ["", "AUROC", "AP", "best Dice", "Dice", "FP ml", "lesions", "left", "elsewhere"]
    columns += ["NFE", "passes", "s/slice"]
    parts = [table(columns, [_cells(row) for row in result[part]]) for part in ("methods", "curve")]
    skill = result["classifier"]
    first = (
        f"{result['data']}; classifier: balanced accuracy {number(skill['balanced_accuracy'])}, "
        f"AUROC {number(skill['auroc'])}"
    )
    return "\n\n".join([first, parts[0], "Other depths and steps, on a few diseased phantoms:", parts[1]])


def _cells(row: dict[str, Any]) -> list[str]:
    metrics = row["metrics"]
    return [
        row["name"],
        with_interval(metrics["auroc"]),
        *(number(metrics[name]["value"]) for name in SHOWN[1:4]),
        number(metrics["false_positives_ml"]["value"], 1),
        number(metrics["lesion_sensitivity"]["value"], 2),
        *(number(metrics.get(name, {}).get("value"), 2) for name in AGAINST_TWIN),
        str(row["nfe"]),
        str(row["passes_per_slice"]),
        number(row["seconds_per_slice"], 3),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anomaly", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/anomaly"))
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--paper", action="store_true", help="also a thousand evaluations a slice: hours on a CPU")
    parser.add_argument("--unseen", action="store_true", help="every phantom of a scanner of its own")
    parser.add_argument("--cases", type=int, help="phantoms in all; one in five, but no more than 12, for testing")
    parser.add_argument("--alone", metavar="CONFIG", help="one recipe beside the free baselines")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="with --alone: laid over the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    if (chosen.overrides and not chosen.alone) or (chosen.alone and chosen.paper):
        parser.error("KEY=VALUE goes with --alone, which has no curve for --paper to go on")
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    size = replace(size, unseen=chosen.unseen, cases=chosen.cases or size.cases)
    size = replace(size, curve=(*size.curve, PAPER)) if chosen.paper else size
    if chosen.alone:
        size = replace(size, config=chosen.alone, overrides=tuple(chosen.overrides), other=(), curve=())
    result = measure(chosen.out, size=size, seed=chosen.seed, device=chosen.device)
    write_json(chosen.out / "anomaly.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
