"""What is a threshold of slices without lesion worth on whole healthy brains? Few phantoms to learn from, others to map.

    python -m benchmarks.thresholds [--config quick/phantom_inpainting] [--seeds 3] [--out DIR] [KEY=VALUE …]

Each seed trains the recipe on three phantoms with lesions, so that its threshold rests on their slices without one, and maps
six healthy phantoms. Which share of their voxels is above so many times that threshold, and which is promised?
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.anomaly import fresh
from benchmarks.reporting import machine, table
from medseg_diff import anomaly, phantom, train_anomaly
from medseg_diff.console import configure, log
from medseg_diff.data.reading import read_map
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.device import find_device
from medseg_diff.files import write_json
from medseg_diff.recipes.calibration import AnomalyCalibration, read_calibration
from medseg_diff.run import Run

LEARNED, TESTED = 3, 6
FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0)


def measure(
    out: Path, *, config: str, overrides: Sequence[str] = (), seeds: int = 3, device: str = "auto"
) -> dict[str, Any]:
    """One row for each seed. Returns what goes into thresholds.json."""
    return {
        "schema": 1,
        "benchmark": "thresholds",
        "config": config,
        "overrides": list(overrides),
        "machine": machine(str(find_device(device))),
        "rows": [_measured(out / f"seed_{seed}", config, overrides, seed, device) for seed in range(1, seeds + 1)],
    }


def _measured(out: Path, config: str, overrides: Sequence[str], seed: int, device: str) -> dict[str, Any]:
    """Train, map healthy brains, and count."""
    log.info("seed %d", seed)
    learned = phantom(out / "learned", cases=LEARNED, healthy=0.0, seed=seed)
    tested = phantom(out / "tested", cases=TESTED, healthy=1.0, seed=seed + 1000)
    words = [*overrides, f"training.seed={seed}"]
    where: dict[str, Any] = {"runs": out / "runs", "device": device}
    run = train_anomaly(learned, config=config, out=fresh(out / "runs" / "run"), overrides=words, mlflow=False, **where)
    assert isinstance(run, Run)
    known = read_calibration(run, AnomalyCalibration)
    assert known is not None and known.own is not None, "slices without lesion were there"
    anomaly(data=tested, model=run.folder, out=out / "maps", overwrite=True, **where)
    brains = [
        read_map(out / "maps" / case.name / "anomaly.nii.gz").voxels[read_map(case.images["t1"]).voxels != 0]
        for case in read_manifest(tested).cases
    ]
    own, promised = known.own.threshold / known.widened, known.findings.false_positive_rate
    voxels = np.concatenate(brains)
    return {
        "seed": seed,
        "threshold": own,
        "promised": promised,
        "shares": {f"{factor:g}": float((voxels > factor * own).mean()) for factor in FACTORS},
        "needed": float(np.quantile(voxels, 1 - promised) / own),
        "needed_by_brain": [round(float(np.quantile(brain, 1 - promised) / own), 2) for brain in brains],
    }


def show(result: dict[str, Any]) -> str:
    """The table: a row for each seed."""
    columns = ["seed", *(f"{factor:g} times" for factor in FACTORS), "promised", "factor needed", "brain by brain"]
    lines = [_cells(row) for row in result["rows"]]
    return f"{result['config']}: share of healthy voxels above so many times the threshold\n\n" + table(columns, lines)


def _cells(row: dict[str, Any]) -> list[str]:
    shares = (*row["shares"].values(), row["promised"])
    by_brain = ", ".join(f"{factor:.1f}" for factor in row["needed_by_brain"])
    return [str(row["seed"]), *(f"{share:.2%}" for share in shares), f"{row['needed']:.1f}", by_brain]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.thresholds", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="laid over the recipe")
    parser.add_argument("--config", default="quick/phantom_inpainting")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/thresholds"))
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    result = measure(
        chosen.out, config=chosen.config, overrides=chosen.overrides, seeds=chosen.seeds, device=chosen.device
    )
    write_json(chosen.out / "thresholds.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
