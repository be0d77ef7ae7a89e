"""How good is the default recipe on phantoms, beside the paper's recipe and a supervised U-Net of equal size and time?

    python -m benchmarks.quality [--quick] [--out DIR]

Then steps against members, on the same trained model. Phantoms are easier than patients: the numbers compare methods,
they promise nothing about a hospital.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.reporting import machine, number, table, with_interval
from benchmarks.supervised import pace_of, parameters, same_unet, segment_baseline, train_baseline
from medseg_diff import evaluate, phantom, segment, train_seg
from medseg_diff.console import configure, log
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.files import write_json, write_text
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.run import Run
from medseg_diff.settings import write_yaml
from medseg_diff.tasks.train.study import prepare_study, with_splits

RATERS = 3
TIMED_CASES = 2
SHOWN = ("dice", "ged2", "ece", "auroc_error")
CONVENTIONS = {
    "dice, ged2, ece, auroc_error": "test phantoms, as `medseg-diff evaluate` defines them, 95 % intervals over cases",
    "training_seconds": "steps × seconds of a step (median, loading included, measured in turn with the other network)",
    "wall_seconds": "the training as it ran; for `train-seg` with its validation and figures",
    "seconds_per_case": f"reading to writing without members, mean of {TIMED_CASES} test cases",
    "supervised": "same U-Net without noise and time, BCE, same slices, augmentation and optimiser; last averaged weights",
    "nested masks": "the supervised probability cut at evenly spaced thresholds, as many as the ensemble has members",
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 60
    shape: tuple[int, int, int] = (64, 64, 48)
    overrides: tuple[str, ...] = ()  # of both recipes, key=value
    paper_steps: int = 50
    sweep: tuple[tuple[int, int], ...] = ((1, 5), (2, 5), (3, 5), (5, 5), (10, 5), (3, 25))  # (steps, members)


QUICK = Size(
    cases=12,
    overrides=("training.steps=100", "training.validate_every=100"),
    paper_steps=10,
    sweep=((1, 5), (3, 5), (3, 10)),
)


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and on what it runs."""

    out: Path
    data: Path
    device: str
    seed: int

    def score(self, model: Path, name: str, *, steps: int, members: int) -> dict[str, Any]:
        """Segment the test cases with members written, evaluate; and a few cases more without, for the time."""
        common: dict[str, Any] = {
            "data": self.data,
            "split": "test",
            "model": model,
            "steps": steps,
            "members": members,
            "seed": self.seed,
            "overwrite": True,
            "device": self.device,
        }
        folder, timed = self.out / "predictions" / name, self.out / "predictions" / f"{name}_timed"
        segment(**common, out=folder, save_members=True)
        tested = len(read_manifest(self.data).of("test"))
        segment(**common, out=timed, shard=(1, -(-tested // TIMED_CASES)))
        return {
            "steps": steps,
            "members": members,
            "passes_per_slice": steps * members,
            "seconds_per_case": _seconds_per_case(timed),
            "metrics": _measured(evaluate(folder, self.data, split="test")),
        }


def measure(out: Path, *, size: Size = Size(), seed: int = 0, device: str = "auto") -> dict[str, Any]:
    """Make phantoms in `out`, train all three, score them, sweep. Returns what goes into quality.json."""
    data = phantom(out / "phantoms", cases=size.cases, shape=size.shape, raters=RATERS, seed=seed)
    bench = Bench(out, data, device, seed)
    ours = load_recipe("quick/phantom", task="segment", overrides=size.overrides)
    paper = at_the_size_of(ours, load_recipe("quick/wolleb", task="segment"), steps=size.paper_steps)
    models = {name: _train(bench, recipe, name) for name, recipe in (("default", ours), ("paper", paper))}
    supervised = _supervised_rows(bench, ours)
    default = (ours.sampling.steps, ours.sampling.members)
    scored = {}
    for steps, members in dict.fromkeys([default, *size.sweep]):
        log.info("default recipe: %d steps × %d members", steps, members)
        name = f"default_{steps}x{members}"
        scored[steps, members] = bench.score(models["default"].folder, name, steps=steps, members=members)
    log.info("the paper's recipe: %d steps", paper.sampling.steps)
    papers = bench.score(models["paper"].folder, "paper", steps=paper.sampling.steps, members=paper.sampling.members)
    own_time = _training_of(models["default"], supervised[0]["pace"]["recipe_seconds_per_step"])
    rows = [
        {"name": "default recipe", **scored[default], **own_time},
        {"name": "the paper's recipe", **papers, **_training_of(models["paper"], None)},
        *supervised,
    ]
    return {
        "schema": 1,
        "benchmark": "quality",
        "data": f"{size.cases} phantoms, seed {seed}",
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "parameters": parameters(ours.build_denoiser()),
        "methods": rows,
        "sweep": [{"name": f"{steps} steps × {n} members", **scored[steps, n]} for steps, n in size.sweep],
        "ged2": verdict(rows),
        "conventions": CONVENTIONS,
    }


def at_the_size_of(ours: SegmentationRecipe, paper: SegmentationRecipe, *, steps: int) -> SegmentationRecipe:
    """The paper's schedule, target, network and sampler on our slices, augmentation and training."""
    borrowed = ("channels", "regions", "preparation", "view", "augmentation", "findings")
    training = ours.training.but(validate_every=ours.training.steps)  # one validation: its sampling takes many steps
    assert isinstance(ours.network, EncoderSettings) and isinstance(paper.network, UNetSettings)
    network = paper.network.but(width=ours.network.width, multipliers=ours.network.multipliers)
    changes = {
        **ours.model_dump(mode="json", include=set(borrowed)),
        "training": training.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
        "sampling": paper.sampling.but(steps=steps, members=ours.sampling.members).model_dump(mode="json"),
    }
    return paper.but(**changes)


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """GED² of the default recipe beside that of the supervised network, and whether it is lower."""
    values = {row["name"]: row["metrics"]["ged2"]["value"] for row in rows}
    ours = values["default recipe"]
    others = {name: value for name, value in values.items() if name.startswith("supervised")}
    return {
        "diffusion": ours,
        **{name: {"ged2": value, "diffusion_is_lower": bool(ours < value)} for name, value in others.items()},
    }


def _train(bench: Bench, recipe: SegmentationRecipe, name: str) -> Run:
    """Through the public verb, from a recipe file."""
    log.info("training: %s", name)
    config, folder = bench.out / f"{name}.yaml", bench.out / "runs" / name
    write_text(config, write_yaml(recipe))
    if (folder / "run.json").is_file():  # of an earlier call
        shutil.rmtree(folder)
    run = train_seg(
        bench.data, config=str(config), out=folder, device=bench.device, runs=bench.out / "runs", mlflow=False
    )
    assert isinstance(run, Run)
    return run


def _training_of(run: Run, seconds_per_step: float | None) -> dict[str, Any]:
    facts, steps = run.facts, _steps_of(run)
    return {
        "training_steps": steps,
        "training_seconds": None if seconds_per_step is None else round(steps * seconds_per_step, 1),
        "wall_seconds": round(facts["ended"] - facts["started"], 1),
    }


def _steps_of(run: Run) -> int:
    return int(run.metrics_file.read_text(encoding="utf-8").splitlines()[-1].partition(",")[0])


def _supervised_rows(bench: Bench, recipe: SegmentationRecipe) -> list[dict[str, Any]]:
    """The supervised network, once with its one mask and once as nested masks."""
    device = find_device(bench.device)
    precision = find_precision(recipe.training.precision, device)
    fabric = make_fabric(device, precision)
    manifest = with_splits(read_manifest(bench.data))
    study = prepare_study(manifest, recipe, cache=bench.out / "runs" / "cache")
    pace = pace_of(recipe, study, same_unet, fabric)
    log.info("training: supervised, %d steps in the seconds of %d", pace.baseline_steps, pace.recipe_steps)
    trained = train_baseline(same_unet(recipe), recipe, study, fabric, steps=pace.baseline_steps)
    rows = []
    for name, members in ((trained.name, 1), ("supervised, nested masks", recipe.sampling.members)):
        folder = bench.out / "predictions" / f"supervised_{members}"
        cases = manifest.of("test")
        segment_baseline(trained, cases, recipe, folder, fabric, precision=precision, level_sets=members)
        rows.append(
            {
                "name": name,
                "steps": 1,
                "members": members,
                "passes_per_slice": 1,
                "seconds_per_case": _seconds_per_case(folder),
                "metrics": _measured(evaluate(folder, bench.data, split="test")),
                "training_steps": trained.steps,
                "training_seconds": pace.seconds["baseline"],
                "wall_seconds": round(trained.seconds, 1),
                "pace": asdict(pace),
                "parameters": parameters(trained.network),
            }
        )
    return rows


def _measured(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary["metrics"][name] for name in SHOWN}


def _seconds_per_case(folder: Path) -> float:
    found = [json.loads(path.read_text(encoding="utf-8"))["seconds"]["all"] for path in folder.glob("*/case.json")]
    return round(sum(found) / len(found), 3)


def show(result: dict[str, Any]) -> str:
    """The tables and the sentence that say it all."""
    columns = ["", "Dice", "GED²", "ECE", "AUROC err.", "passes", "s/case", "training s", "wall s"]
    methods = [
        [*_cells(row), number(row["training_seconds"], 1), number(row["wall_seconds"], 1)] for row in result["methods"]
    ]
    sweep = [_cells(row) for row in result["sweep"]]
    ours = result["ged2"]["diffusion"]
    sentences = [
        f"GED²: diffusion {ours:.3f}, {name} {other['ged2']:.3f}: diffusion's is "
        + ("lower." if other["diffusion_is_lower"] else "NOT lower.")
        for name, other in result["ged2"].items()
        if name != "diffusion"
    ]
    parts = [f"{result['data']}; {result['parameters']:,} parameters", table(columns, methods), *sentences]
    return "\n\n".join([*parts, "The default recipe, one trained model:", table(columns[:-2], sweep)])


def _cells(row: dict[str, Any]) -> list[str]:
    metrics = row["metrics"]
    return [
        row["name"],
        with_interval(metrics["dice"]),
        with_interval(metrics["ged2"]),
        number(metrics["ece"]["value"], 4),
        number(metrics["auroc_error"]["value"]),
        str(row["passes_per_slice"]),
        number(row["seconds_per_case"], 2),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/quality"))
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--cases", type=int, help="phantoms in all; one in five is for testing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    size = replace(size, cases=chosen.cases) if chosen.cases else size
    result = measure(chosen.out, size=size, seed=chosen.seed, device=chosen.device)
    write_json(chosen.out / "quality.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
