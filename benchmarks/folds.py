"""`python -m benchmarks.folds`: does what a study of folds promises hold, on phantoms of its scanners and of others?

A study of three folds learns from phantoms of three scanners. New ones of the same scanners, and of as many other scanners
as there are cases, are segmented by the study, by its first fold alone with as many samples, and by as many supervised
networks that were trained on the same folds for as many seconds each. Do intervals of volumes hold the true one as often as
they say, do guaranteed masks miss no more of the lesions than they say, is the probability of a lesion one, is the
uncertainty where the errors are, and which scans are called unlike those trained on? Phantoms are easier than patients: the
numbers say that the mathematics works, they promise nothing about a hospital.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.reporting import machine, number, table
from benchmarks.supervised import Trained, pace_of, same_unet, segment_baseline, train_baseline
from benchmarks.unseen import AT_3_MM, CONFIG, TEST_SEED
from medseg_diff import evaluate, phantom, segment, train_seg
from medseg_diff.console import configure, log
from medseg_diff.data.results import holds_result
from medseg_diff.data.tables.manifest import folds_by_patient, read_manifest, write_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.files import write_json
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.train.study import prepare_study

LEVEL, RISK = 0.9, 0.1
NEAR, FAR = "the training's scanners", "other scanners"
WHOLE, ALONE, RIVAL = "the study", "one fold", "supervised"
SHOWN = (
    "dice",
    "auroc_error",
    "ece",
    "ece_band",
    "auroc_error_band",
    "coverage90",
    "width90_ml",
    "guaranteed_missed",
    "guaranteed_ratio",
    "presence_brier",
    "atypical",
)
CONVENTIONS = {
    "metrics": "means over cases as `medseg-diff evaluate` defines them, then over seeds; ± is the deviation over seeds",
    "one fold": "the first fold's run with as many samples as the study's models draw together",
    "supervised": "the recipe's prior by itself, once a fold, each trained for the seconds of its run; the mean of all",
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    patients: int = 60
    near: int = 45
    far: int = 36
    healthy: float = 0.2
    folds: int = 3
    members: int = 5
    seeds: int = 3
    shape: tuple[int, int, int] = (64, 64, 48)
    overrides: tuple[str, ...] = AT_3_MM


QUICK = Size(patients=15, near=3, far=3, seeds=1, overrides=(*AT_3_MM[:-2], "training.steps=20"))


class Tables(NamedTuple):
    """Who is learned from, and who tested, of the same scanners."""

    learned: Path
    near: Path


def tables_of(out: Path, size: Size, seed: int) -> Tables:
    """Phantoms of one set of three scanners, in two tables."""
    cases, shape = size.patients + size.near, size.shape
    made = phantom(out / f"phantoms_{seed}", cases=cases, shape=shape, healthy=size.healthy, scanners=3, seed=seed)
    rows = read_manifest(made).rows()
    tables = Tables(made.with_name("learned.csv"), made.with_name("near.csv"))
    write_manifest(tables.learned, [row | {"split": "train"} for row in rows[: size.patients]])
    write_manifest(tables.near, [row | {"split": "test"} for row in rows[size.patients :]])
    return tables


def measure(out: Path, *, size: Size = Size(), device: str = "auto") -> dict[str, Any]:
    """Train and test with every seed. Returns what goes into folds.json, written after each; what is there is kept."""
    shape = size.shape
    far = phantom(out / "far", cases=size.far, shape=shape, healthy=size.healthy, scanners=size.far, seed=TEST_SEED)
    result: dict[str, Any] = {
        "schema": 1,
        "benchmark": "folds",
        "config": CONFIG,
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "rows": [],
        "conventions": CONVENTIONS,
    }
    for seed in range(size.seeds):
        tables = tables_of(out, size, seed)
        overrides = [*size.overrides, f"training.validate_every={_steps(size)}", f"training.seed={seed}"]
        runs, place = out / "runs", out / f"study_{seed}"
        options: dict[str, Any] = {"runs": runs, "device": device, "mlflow": False, "resume": "auto"}
        train_seg(tables.learned, config=CONFIG, overrides=overrides, folds=size.folds, out=place, **options)
        study = FoldStudy(place)
        folders = {where: out / "predictions" / f"{seed}_{word}" for where, word in ((NEAR, "near"), (FAR, "far"))}
        tested_on = {folders[NEAR]: tables.near, folders[FAR]: far}
        _rivals(study, tables, tested_on, overrides, cache=runs / "cache", device=device)
        for where, folder in folders.items():
            tested = tested_on[folder]
            _segment(study, tested, folder, size, device=device)
            for name, part in ((WHOLE, "study"), (ALONE, "alone"), (RIVAL, "supervised")):
                found = evaluate(folder / part, tested, figure=False, mlflow=False)["metrics"]
                row = {"seed": seed, "where": where, "model": name}
                result["rows"].append(row | {each: found[each]["value"] for each in SHOWN if each in found})
        write_json(out / "folds.json", result)
    return result


def _steps(size: Size) -> int:
    return load_recipe(CONFIG, task="segment", overrides=list(size.overrides)).training.steps


def _segment(study: FoldStudy, tested: Path, folder: Path, size: Size, *, device: str) -> None:
    """By the study, with all that it promises, and by its first fold alone."""
    common: dict[str, Any] = {"level": LEVEL, "device": device}
    segment(data=tested, model=study.folder, out=folder / "study", members=size.members, guarantee=RISK, **common)
    members = size.members * size.folds
    segment(data=tested, model=study.run(1).folder, out=folder / "alone", members=members, **common)


class Averaged(nn.Module):
    """Several networks image → logits as one, whose probability is the mean of theirs."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, *S] → [B, R, *S]."""
        return torch.stack([network(image).float().sigmoid() for network in self.networks]).mean(0).logit(eps=1e-6)


def _rivals(
    study: FoldStudy,
    tables: Tables,
    tested_on: Mapping[Path, Path],
    overrides: Sequence[str],
    *,
    cache: Path,
    device: str,
) -> None:
    """As many supervised networks, each trained on one fold's patients, segment the same cases, into FOLDER/supervised of
    each table; what is done stays."""
    wanted = {folder / "supervised": read_manifest(table).cases for folder, table in tested_on.items()}
    if all(holds_result(folder / case.name, "segment") for folder, cases in wanted.items() for case in cases):
        return
    recipe = load_recipe(CONFIG, task="segment", overrides=list(overrides))
    assert isinstance(recipe, SegmentationRecipe)
    place = find_device(device)
    precision = find_precision(recipe.training.precision, place)
    fabric = make_fabric(place, precision)
    found: list[Trained] = []
    for part in folds_by_patient(read_manifest(tables.learned), study.facts["folds"]):
        learned = prepare_study(part, recipe, cache=cache)
        steps = found[0].steps if found else pace_of(recipe, learned, same_unet, fabric).baseline_steps
        log.info("%s: %d steps", RIVAL, steps)
        found.append(train_baseline(same_unet(recipe), recipe, learned, fabric, steps=steps))
    network = Averaged([each.network for each in found])
    together = Trained(RIVAL, network, found[0].steps, sum(each.seconds for each in found))
    for folder, cases in wanted.items():
        segment_baseline(together, cases, recipe, folder, fabric, precision=precision)


def show(result: dict[str, Any]) -> str:
    """A line for each model and kind of scanners: means over seeds, the first of them with its deviation."""
    columns = ["", "", "Dice", "AUROC err.", "ECE", "ECE in doubt", "AUROC in doubt", "coverage", "width ml"]
    columns += ["missed", "× lesion", "Brier", "called unlike"]
    lines = []
    for where in (NEAR, FAR):
        for name in (WHOLE, ALONE, RIVAL):
            rows = [row for row in result["rows"] if (row["where"], row["model"]) == (where, name)]
            values = {each: [row[each] for row in rows if row.get(each) is not None] for each in SHOWN}
            spread = f" ± {stdev(values['dice']):.3f}" if len(values["dice"]) > 1 else ""
            digits = {"width90_ml": 1, "guaranteed_ratio": 2, "ece": 4}
            shown = [number(mean(own) if own else None, digits.get(each, 3)) for each, own in values.items()]
            lines.append([where, name, shown[0] + spread, *shown[1:]])
    size = result["size"]
    words = f"{result['config']}; {size['patients']} phantoms of three scanners in {size['folds']} folds; tested on "
    words += f"{size['near']} of the same and {size['far']} of as many others; {size['members']} members a model; "
    return "\n\n".join([f"{words}{size['seeds']} seeds; intervals of {LEVEL:.0%}, fnr={RISK:g}", table(columns, lines)])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folds", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/folds"))
    parser.add_argument("--quick", action="store_true", help="few cases and steps: to see it run, not to compare")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    size = replace(size, seeds=chosen.seeds) if chosen.seeds else size
    print(show(measure(chosen.out, size=size, device=chosen.device)))


if __name__ == "__main__":
    main()
