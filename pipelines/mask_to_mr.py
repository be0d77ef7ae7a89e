"""Do painted scans help? A BraTS folder → a painter → scans painted into the training masks → two segmentation models, one
without and one with them, trained for as many steps → both on the same held-out patients.

python pipelines/mask_to_mr.py FOLDER [--quick] [--out DIR] [--painter key=value] [key=value …]
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_diff import evaluate, prepare, segment, synthesise, train_seg, train_synth, validate
from medseg_diff.data.tables.manifest import read_manifest, write_manifest
from medseg_diff.errors import raise_all
from medseg_diff.evaluation.comparison import compare_predictions
from medseg_diff.run import new_name
from medseg_diff.tasks.prepare import hold_out_last

WITHOUT, WITH = "real", "real_and_painted"


def study(
    folder: Path,
    out: Path,
    *,
    quick: bool = False,
    overrides: Sequence[str] = (),
    painter: Sequence[str] = (),
    **compute: Any,
) -> dict[str, Any]:
    """Everything into `out`, which must be new; returns the comparison of the test patients. `overrides` are laid over the
    segmentation recipe, `painter` over the painter's. Raises: what the verbs raise."""
    kind, runs = "quick/" if quick else "", out / "runs"
    training = {"runs": runs, "parent": new_name("mask_to_mr"), "device": "auto", "mlflow": True} | compute
    where: dict[str, Any] = {"data_root": None if folder.resolve().is_relative_to(out.resolve()) else folder}
    table = prepare(folder, source="brats", out=out / "cases.csv")
    hold_out_last(table, **where)
    raise_all(validate(table, **where).problems)
    model = train_synth(table, config=f"{kind}mask_to_mr", out=runs / "painter", overrides=painter, **training, **where)
    painted = out / "painted"
    synthesise(painted, training["device"], model=model.folder, masks=table, split="train", **where)
    together = joined(out / f"{WITH}.csv", {table: where["data_root"], painted / "cases.csv": None})
    for name, data, root in ((WITHOUT, table, where["data_root"]), (WITH, *together)):
        config, into = f"{kind}mask_logits", runs / name
        train_seg(data, config=config, out=into, overrides=overrides, data_root=root, **training)
        segment(data=table, split="test", model=into, out=out / name, device=training["device"], **where)
        evaluate(out / name, table, split="test", runs=runs, mlflow=training["mlflow"], **where)
    return compare_predictions(out / WITHOUT, out / WITH, out=out)


def joined(file: Path, tables: dict[Path, Path | None]) -> tuple[Path, Path]:
    """The rows of several tables, given with their roots, as one table, and the folder that its paths are relative to."""
    manifests = [read_manifest(table, data_root=root) for table, root in tables.items()]
    root = Path(os.path.commonpath([manifest.root.resolve() for manifest in manifests]))
    rows = [
        row | {name: os.path.relpath(path.resolve(), root) for name, path in case.paths.items()}
        for manifest in manifests
        for case, row in zip(manifest.cases, manifest.rows(), strict=True)
    ]
    write_manifest(file, rows)
    return file, root


def in_words(found: dict[str, Any]) -> str:
    """The answer, whichever way it falls."""
    dice = found["metrics"]["dice"]
    low, high = (dice[end] for end in ("low", "high"))
    interval = "" if low is None else f", 95 % {low:+.3f} … {high:+.3f}"
    sure = low is not None and low * high > 0 and found["patients"] > 1
    verdict = ("painted scans help" if low > 0 else "painted scans harm") if sure else "that may be chance"
    numbers = f"Dice {dice['first']:.3f} without painted scans, {dice['second']:.3f} with them"
    return f"{numbers}: {dice['difference']:+.3f}{interval}, {found['patients']} test patients: {verdict}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder that holds the BraTS case folders")
    parser.add_argument("--out", type=Path, default=Path("runs/mask_to_mr"))
    parser.add_argument("--quick", action="store_true", help="2 mm and small networks, for two cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--painter", action="append", default=[], metavar="key=value", help="laid over the painter")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the segmentation recipe")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {"quick": given.quick, "overrides": given.overrides, "painter": given.painter, "device": given.device}
    print(in_words(study(given.folder, given.out, **options)))


if __name__ == "__main__":
    main()
