"""The whole study on one page: a BraTS folder → table → trained model → held-out masks → numbers and a picture.

python pipelines/brats_segmentation.py FOLDER [--quick] [--out DIR] [key=value …]
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_diff import evaluate, prepare, segment, train_seg, validate
from medseg_diff.errors import raise_all
from medseg_diff.reporting.montage import draw_montage
from medseg_diff.run import new_name
from medseg_diff.tasks.prepare import hold_out_last


def study(
    folder: Path,
    out: Path,
    *,
    config: str = "mask_logits",
    overrides: Sequence[str] = (),
    device: str = "auto",
    mlflow: bool = True,
) -> dict[str, Any]:
    """Everything into `out`, which must be new; returns the metrics of the test patients. Raises: what the verbs raise."""
    where: dict[str, Any] = {"data_root": None if folder.resolve().is_relative_to(out.resolve()) else folder}
    table = prepare(folder, source="brats", out=out / "cases.csv")
    hold_out_last(table, **where)
    raise_all(validate(table, **where).problems)
    model = out / "runs" / "segment"
    train_seg(
        table,
        config=config,
        out=model,
        overrides=overrides,
        device=device,
        runs=model.parent,
        mlflow=mlflow,
        parent=new_name("brats_segmentation"),
        **where,
    )
    segment(data=table, split="test", model=model, out=out / "segment", device=device, **where)
    metrics = evaluate(out / "segment", table, split="test", runs=model.parent, mlflow=mlflow, **where)
    draw_montage(out / "segment", table, out / "montage.png", **where)
    return metrics


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder that holds the BraTS case folders")
    parser.add_argument("--out", type=Path, default=Path("runs/brats"))
    parser.add_argument("--quick", action="store_true", help="2 mm and a small network: minutes on two cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = "quick/mask_logits" if chosen.quick else "mask_logits"
    found = study(chosen.folder, chosen.out, config=config, overrides=chosen.overrides, device=chosen.device)
    for name in ("dice", "hd95_mm", "volume_error_ml", "ece"):
        print(f"{name:16} {found['metrics'][name]['value']} over {found['metrics'][name]['cases']} cases")


if __name__ == "__main__":
    main()
