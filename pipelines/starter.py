"""The starter model that comes with the package: a recipe trained on a few patients, cut down to what inference needs.

python pipelines/starter.py --data PATH/cases.csv [--run RUN] [--out DIR] [key=value …]

With --run a finished training is cut down again, and none begins. MODEL_CARD.md in DIR is written by hand, and stays.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from medseg_diff import train_seg
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.files import write_json, write_text
from medseg_diff.run import Run
from medseg_diff.runs import STARTER
from medseg_diff.training.weights import read_finite, save_tensors

CONFIG, WEIGHTS = "quick/mask_logits", "best"
NOT_NEEDED = ("started", "ended")  # of run.json: the same training then gives the same files, whenever it is


def train(data: Path, runs: Path, *, overrides: Sequence[str] = (), device: str = "auto") -> Run:
    """RUNS/starter, trained on the cases of the table. Raises: what `train_seg` raises."""
    out = runs / STARTER
    return train_seg(data, config=CONFIG, out=out, overrides=overrides, runs=runs, device=device, mlflow=False)


def cut_down(run: Run, out: Path, *, patients: int) -> Run:
    """A finished run as one in `out` that `segment` opens: weights in bf16, no checkpoints, curves or pictures, sealed anew.

    Raises: CheckpointError where the run is not whole, EnvironmentFault where `out` cannot be written.
    """
    run.verified(run.recipe_file, run.weights(WEIGHTS))
    small = Run(out)
    for file in (run.recipe_file, run.folder / "environment.json", run.calibration_file, run.typicality_file):
        if file.is_file():
            write_text(out / file.name, file.read_text(encoding="utf-8"))
    facts = {name: value for name, value in run.facts.items() if name not in NOT_NEEDED}
    write_json(out / "run.json", facts | {"patients": patients})
    state = read_finite(run.weights(WEIGHTS))
    rounded = {name: each.bfloat16() if each.is_floating_point() else each for name, each in state.items()}
    save_tensors(rounded, small.weights(WEIGHTS))
    small.seal()
    return small


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="table of the patients to learn from")
    parser.add_argument("--run", type=Path, help="a finished training on them, to be cut down again")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where a new training goes")
    parser.add_argument("--out", type=Path, default=Path("medseg_diff") / STARTER)
    parser.add_argument("--device", default="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {"overrides": chosen.overrides, "device": chosen.device}
    run = Run(chosen.run) if chosen.run else train(chosen.data, chosen.runs, **options)
    small = cut_down(run, chosen.out, patients=len({case.patient for case in read_manifest(chosen.data).cases}))
    size = sum(path.stat().st_size for path in small.folder.rglob("*") if path.is_file())
    print(f"{small.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
