"""Leave one patient out: train the anomaly maps on the others, map it wholly; beside it smoothed FLAIR and other baselines.

python -m benchmarks.anomaly_leave_one_out --data PATH/cases.csv [--config quick/inpainting] [--out DIR] [key=value …]
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.brats_leave_one_out import Fold, folds_of, how_to_read
from benchmarks.reporting import machine, number, table
from medseg_diff import anomaly, evaluate, train_anomaly
from medseg_diff.console import configure, log
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.device import find_device
from medseg_diff.files import write_json
from medseg_diff.reporting.montage import draw_montage

KEYS = ("auroc", "average_precision", "dice_best", "dice_preset")
OURS = "anomaly"


def measure(
    data: Path,
    out: Path,
    *,
    config: str = "quick/inpainting",
    overrides: Sequence[str] = (),
    data_root: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """All folds of the table `data`. Returns what goes into anomaly_leave_one_out.json. Raises: what the verbs raise."""
    rows = []
    for fold in folds_of(read_manifest(data, data_root=data_root), out):
        log.info("left out: %s", fold.patient)
        rows.append(_run_fold(fold, config, overrides, runs=out / "runs", device=device))
    return {
        "schema": 1,
        "benchmark": "anomaly_leave_one_out",
        "config": config,
        "overrides": list(overrides),
        "machine": machine(str(find_device(device))),
        "patients": len(rows),
        "folds": rows,
        "reading": how_to_read(len(rows)),
    }


def _run_fold(fold: Fold, config: str, overrides: Sequence[str], *, runs: Path, device: str) -> dict[str, Any]:
    """One patient: its numbers for every map, and how far the classifier and the map can be believed."""
    model, folder = fold.folder / "run", fold.folder / "maps"
    if model.exists():  # of an earlier call
        shutil.rmtree(model)
    where: dict[str, Any] = {"data_root": fold.root, "device": device}
    run = train_anomaly(fold.table, config=config, out=model, overrides=overrides, runs=runs, mlflow=False, **where)
    anomaly(data=fold.table, split="test", model=model, out=folder, baselines=True, overwrite=True, **where)
    found = evaluate(folder, fold.table, split="test", data_root=fold.root)
    draw_montage(folder, fold.table, fold.folder / "montage.png", data_root=fold.root)
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/case.json"))]
    known = json.loads((model / "calibration.json").read_text(encoding="utf-8"))
    maps = {OURS: found["metrics"], **found["baselines"]}
    return {
        "patient": fold.patient,
        "maps": {name: {key: numbers[key]["value"] for key in KEYS} for name, numbers in maps.items()},
        "classifier": {name: value for name, value in known["classifier"].items() if name != "by_time"},
        "quality_checks": [each["quality_checks"] for each in facts],
        "warnings": [warning for each in facts for warning in each["warnings"]],
        "wall_seconds": round(run.facts["ended"] - run.facts["started"], 1),
    }


def show(result: dict[str, Any]) -> str:
    """AUROC / average precision of every map, patient by patient."""
    names = list(result["folds"][0]["maps"])
    rows = []
    for fold in result["folds"]:
        cells = [f"{number(m['auroc'])} / {number(m['average_precision'])}" for m in fold["maps"].values()]
        rows.append([fold["patient"], *cells, number(fold["classifier"]["auroc"])])
    head = f"{result['config']}: AUROC / average precision over the brain voxels of the patient left out"
    return "\n\n".join([head, table(["patient left out", *names, "classifier"], rows), result["reading"]])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anomaly_leave_one_out", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="table of cases with a column seg")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--config", default="quick/inpainting")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/anomaly_leave_one_out"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    result = measure(
        chosen.data,
        chosen.out,
        config=chosen.config,
        overrides=chosen.overrides,
        data_root=chosen.data_root,
        device=chosen.device,
    )
    write_json(chosen.out / "anomaly_leave_one_out.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
