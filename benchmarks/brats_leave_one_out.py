"""Leave one patient out: train on the others, segment it wholly; beside it MONAI's U-Net, given the same seconds.

python -m benchmarks.brats_leave_one_out --data PATH/cases.csv [--config quick/mask_logits] [--out DIR]
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.reporting import machine, number, table
from benchmarks.supervised import monai_unet, pace_of, parameters, segment_baseline, train_baseline
from medseg_diff import evaluate, segment, train_seg
from medseg_diff.console import configure, log
from medseg_diff.data.tables.manifest import Manifest, read_manifest, write_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.errors import UsageError
from medseg_diff.files import write_json
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.run import new_name
from medseg_diff.tasks.train.study import prepare_study, with_splits

FEW_PATIENTS = 20
SHOWN = ("dice", "hd95_mm", "ece", "auroc_error")
CONVENTIONS = {
    "training_seconds": "steps × seconds of a step (median, loading included, measured in turn with the other network)",
    "wall_seconds": "the training as it ran; for `train-seg` with its validation and figures",
    "seconds_per_case": "reading to writing, on each scan's own grid",
    "MONAI U-Net": "2D, instance norm, Dice + cross-entropy, same slices, augmentation, optimiser and component rule; "
    "last averaged weights",
}


@dataclass(frozen=True)
class Fold:
    """One patient held out. `table` names all cases with their split; its images lie below `root`."""

    patient: str
    folder: Path
    table: Path
    root: Path


def folds_of(manifest: Manifest, out: Path) -> list[Fold]:
    """A table for each patient, who is its `test`, all others being `train`. Raises: UsageError for a single patient."""
    patients = list(dict.fromkeys(case.patient for case in manifest.cases))
    if len(patients) < 2:
        raise UsageError("one patient cannot be left out of one", fix="use a table of two patients or more")
    folds = []
    for place, patient in enumerate(patients):
        folder = out / f"fold_{place + 1}"
        rows = manifest.rows()
        for case, row in zip(manifest.cases, rows, strict=True):
            row["split"] = "test" if case.patient == patient else "train"
        write_manifest(folder / "cases.csv", rows)
        folds.append(Fold(patient, folder, folder / "cases.csv", manifest.root))
    return folds


def measure(
    data: Path,
    out: Path,
    *,
    config: str = "quick/mask_logits",
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    patients: Sequence[str] = (),
    device: str = "auto",
    mlflow: bool = False,
) -> dict[str, Any]:
    """All folds of the table `data`, or those of some `patients`; with `mlflow` they hang below one run there. Returns what
    goes into leave_one_out.json. Raises: UsageError for a patient who is not there; what the verbs raise."""
    recipe = load_recipe(config, task="segment", overrides=overrides)
    folds = folds_of(read_manifest(data, data_root=data_root), out)
    if unknown := [name for name in patients if name not in {fold.patient for fold in folds}]:
        raise UsageError(f"no patient is called {unknown[0]}", fix="use a name of the table's column `patient`")
    folds = [fold for fold in folds if not patients or fold.patient in patients]
    rows: list[dict[str, Any]] = []
    told = {"mlflow": mlflow, "parent": new_name("leave_one_out")}
    for fold in folds:
        log.info("left out: %s", fold.patient)
        diffusion, baseline = _run_fold(fold, recipe, config, overrides, runs=out / "runs", device=device, told=told)
        rows.append({"patient": fold.patient, "diffusion": diffusion, "monai": baseline})
    return {
        "schema": 1,
        "benchmark": "brats_leave_one_out",
        "config": config,
        "overrides": list(overrides),
        "machine": machine(str(find_device(device))),
        "patients": len(folds),
        "folds": rows,
        "mean": {name: _means([row[name] for row in rows]) for name in ("diffusion", "monai")},
        "reading": how_to_read(len(folds)),
        "conventions": CONVENTIONS,
    }


def how_to_read(patients: int) -> str:
    """What so many patients can tell."""
    if patients >= FEW_PATIENTS:
        return f"{patients} patients, each segmented by a model that never saw them."
    return (
        f"{patients} patients: this shows that the pipeline works on real scans, not how good it would be on a whole "
        "data set. Patients differ far more than methods do."
    )


def _run_fold(
    fold: Fold,
    recipe: SegmentationRecipe,
    config: str,
    overrides: Sequence[str],
    *,
    runs: Path,
    device: str,
    told: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both methods on one fold: the public verbs, `told` to MLflow, then MONAI's network on the very same slices."""
    place = find_device(device)
    precision = find_precision(recipe.training.precision, place)
    fabric = make_fabric(place, precision)
    manifest = with_splits(read_manifest(fold.table, data_root=fold.root))
    study = prepare_study(manifest, recipe, cache=runs / "cache")
    pace = pace_of(recipe, study, monai_unet, fabric)

    model, folder = fold.folder / "run", fold.folder / "diffusion"
    if (model / "run.json").is_file():  # of an earlier call
        shutil.rmtree(model)
    common: dict[str, Any] = {"data_root": fold.root, "device": device}
    run = train_seg(fold.table, config=config, out=model, overrides=overrides, runs=runs, **told, **common)
    segment(data=fold.table, split="test", model=model, out=folder, overwrite=True, **common)
    diffusion = {
        "parameters": parameters(recipe.build_denoiser()),
        "training_steps": recipe.training.steps,
        "training_seconds": pace.seconds["recipe"],
        "wall_seconds": round(run.facts["ended"] - run.facts["started"], 1),
        **_scores(folder, fold),
    }

    log.info("MONAI U-Net: %d steps in the seconds of %d", pace.baseline_steps, pace.recipe_steps)
    folder = fold.folder / "monai"
    trained = train_baseline(monai_unet(recipe), recipe, study, fabric, steps=pace.baseline_steps)
    segment_baseline(trained, manifest.of("test"), recipe, folder, fabric, precision=precision)
    baseline = {
        "parameters": parameters(trained.network),
        "training_steps": trained.steps,
        "training_seconds": pace.seconds["baseline"],
        "wall_seconds": round(trained.seconds, 1),
        "pace": asdict(pace),
        **_scores(folder, fold),
    }
    return diffusion, baseline


def _scores(folder: Path, fold: Fold) -> dict[str, Any]:
    """The patient's numbers (means, where there are several scans) for each region, and the seconds of a case."""
    metrics = evaluate(folder, fold.table, split="test", data_root=fold.root)["metrics"]
    seconds = [json.loads(path.read_text(encoding="utf-8"))["seconds"]["all"] for path in folder.glob("*/case.json")]
    kept = {name: entry["value"] for name, entry in metrics.items() if name.endswith(SHOWN)}
    return {"metrics": kept, "seconds_per_case": round(mean(seconds), 2)}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Over patients; an undefined distance (nothing found) is left out and so makes the mean look better: see the rows."""
    names = list(rows[0]["metrics"])
    known = {name: [row["metrics"][name] for row in rows if row["metrics"][name] is not None] for name in names}
    return {name: mean(values) if values else None for name, values in known.items()}


def show(result: dict[str, Any]) -> str:
    """Both methods patient by patient."""
    region = next(name for name in result["mean"]["diffusion"] if name.endswith("dice"))
    distance = f"{region.removesuffix('dice')}hd95_mm"
    columns = ["patient left out", "Dice", "MONAI", "HD95 mm", "MONAI", "train s", "MONAI", "s/case", "MONAI"]
    rows = []
    for fold in [*result["folds"], {"patient": "mean"}]:
        methods = [fold.get(name, {"metrics": result["mean"][name]}) for name in ("diffusion", "monai")]
        rows.append(
            [
                fold["patient"],
                *(number(method["metrics"][region]) for method in methods),
                *(number(method["metrics"][distance], 1) for method in methods),
                *(number(method.get("training_seconds"), 0) for method in methods),
                *(number(method.get("seconds_per_case"), 1) for method in methods),
            ]
        )
    first = result["folds"][0]
    sizes = (
        f"{result['config']}: {first['diffusion']['parameters']:,} parameters; MONAI: {first['monai']['parameters']:,}"
    )
    return "\n\n".join([sizes, table(columns, rows), result["reading"]])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.brats_leave_one_out", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="table of cases with a column seg")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--patient", action="append", default=[], help="leave out only this one (repeat)")
    parser.add_argument("--config", default="quick/mask_logits")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/leave_one_out"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--mlflow", action="store_true", help="mirror the folds in MLflow, below one run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    result = measure(
        chosen.data,
        chosen.out,
        config=chosen.config,
        overrides=chosen.overrides,
        data_root=chosen.data_root,
        patients=chosen.patient,
        device=chosen.device,
        mlflow=chosen.mlflow,
    )
    write_json(chosen.out / "leave_one_out.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
