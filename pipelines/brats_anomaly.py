"""Anomaly maps of a BraTS folder on one page: table → trained system → maps of held-out patients → numbers and a picture.

python pipelines/brats_anomaly.py FOLDER [--quick] [--out DIR] [key=value …]
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_diff import anomaly, evaluate, prepare, train_anomaly, validate
from medseg_diff.errors import raise_all
from medseg_diff.reporting.montage import draw_montage
from medseg_diff.run import new_name
from medseg_diff.tasks.prepare import hold_out_last


def study(
    folder: Path,
    out: Path,
    *,
    config: str = "inpainting",
    overrides: Sequence[str] = (),
    device: str = "auto",
    mlflow: bool = True,
) -> dict[str, Any]:
    """Everything into `out`, which must be new; returns the metrics of the test patients. Raises: what the verbs raise."""
    where: dict[str, Any] = {"data_root": None if folder.resolve().is_relative_to(out.resolve()) else folder}
    table = prepare(folder, source="brats", out=out / "cases.csv")
    hold_out_last(table, **where)
    raise_all(validate(table, **where).problems)
    model = out / "runs" / "anomaly"
    train_anomaly(
        table,
        config=config,
        out=model,
        overrides=overrides,
        device=device,
        runs=model.parent,
        mlflow=mlflow,
        parent=new_name("brats_anomaly"),
        **where,
    )
    maps = out / "anomaly"
    anomaly(data=table, split="test", model=model, out=maps, baselines=True, device=device, **where)
    metrics = evaluate(maps, table, split="test", runs=model.parent, mlflow=mlflow, **where)
    draw_montage(maps, table, out / "montage.png", **where)
    return metrics


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder that holds the BraTS case folders")
    parser.add_argument("--out", type=Path, default=Path("runs/brats_anomaly"))
    parser.add_argument("--quick", action="store_true", help="2 mm and small networks: minutes on two cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = "quick/inpainting" if chosen.quick else "inpainting"
    found = study(chosen.folder, chosen.out, config=config, overrides=chosen.overrides, device=chosen.device)
    for name in ("auroc", "average_precision", "dice_preset", "lesion_sensitivity"):
        print(f"{name:18} {found['metrics'][name]['value']} over {found['metrics'][name]['cases']} cases")
    for name, numbers in found["baselines"].items():
        print(f"{name:18} auroc {numbers['auroc']['value']} average_precision {numbers['average_precision']['value']}")


if __name__ == "__main__":
    main()
