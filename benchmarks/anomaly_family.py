"""Which anomaly engine finds most on scanners that it has never met? Every engine on the same phantoms, in one table.

    python -m benchmarks.anomaly_family [--quick] [--seed N] [--only NAME …] [--cases N] [--out DIR]

Every phantom comes from a scanner of its own. Every recipe is trained on the same ones for as many steps, a classifier's
included, with the same augmentation, and mapped with the same smoothing; engines whose networks learn alike share them. Each
row is kept in DIR/rows as soon as it is measured, and a call that is repeated goes on where the last one stopped.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.anomaly import (
    AGAINST_TWIN,
    AS_SMALL,
    CONVENTIONS,
    MOST_TESTS,
    PATCHES,
    SHOWN,
    TINY,
    Bench,
    baseline_row,
    fresh,
)
from benchmarks.reporting import machine, number, table, with_interval
from medseg_diff import phantom, train_anomaly
from medseg_diff.console import configure, log
from medseg_diff.device import find_device
from medseg_diff.errors import UsageError
from medseg_diff.files import write_json
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.run import Run

# As strong as another scanner's contrast: what `quick/inpainting` learns with.
VARIED = (
    "augmentation={flips: [0], contrast: 0.6, brightness: 0.3, histogram: 0.5, bias: 0.2, blur: 1.0, noise: 0.1}",
    "findings.smoothing_mm=4",
)
BASELINES_OF = "inversion"  # whose classifier gives the saliency, and whose denoiser the unguided round trip


@dataclass(frozen=True)
class Member:
    """An engine of the family: the recipe that it is trained by, or the member whose networks it takes over."""

    config: str
    overrides: tuple[str, ...] = ()
    shares: str | None = None


FAMILY = {
    "inpainting": Member("quick/inpainting", PATCHES),
    "inversion": Member("quick/guided", ("engine.scale=20", "engine.scale_at=null")),
    "salient inversion": Member(
        "quick/salient",
        ("engine={kind: salient_inversion, depth: 300, steps: 10, scale: 20.0, share: 0.2, blur: 1.3}",),
        shares="inversion",
    ),
    "classifier-free": Member(
        "quick/classifier_free",
        ("engine={kind: classifier_free, depth: 300, steps: 10, scale: 3.0}",),
        shares="inversion",
    ),
    "conditional difference": Member(
        "quick/conditional_difference",
        ("engine={kind: conditional_difference, depth: 300, steps: 3, noises: 2}",),
        shares="inversion",
    ),
    "AnoDDPM": Member("quick/anoddpm"),
    "AutoDDPM": Member("quick/autoddpm", ("engine.blur=1.3",)),
    "patched DDPM": Member("quick/patched"),
    "cDDPM": Member("quick/cddpm"),
    "Mahalanobis": Member("quick/mahalanobis", ("engine.draws=10", "engine.distance=mahalanobis"), shares="cDDPM"),
    "denoising autoencoder": Member("quick/dae"),
    "autoencoder": Member("quick/autoencoder"),
    "latent": Member("quick/pinaya_latent"),  # its autoencoder learns its own 600 steps before
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 60
    shape: tuple[int, int, int] = (64, 64, 48)
    steps: int = 900
    classifier_steps: int = 300  # of recipes without one the denoiser learns as many steps longer
    overrides: tuple[str, ...] = AS_SMALL


QUICK = Size(12, (32, 32, 32), 10, 300, (*TINY, "training.batch=8", "validation.slices=8", "fewest_voxels=1"))


def measure(
    out: Path, *, size: Size = Size(), seed: int = 0, device: str = "auto", only: Sequence[str] = ()
) -> dict[str, Any]:
    """Make phantoms in `out`, train what is to be trained, and score the engines named (none: all) and the baselines."""
    held_out = min(0.2, MOST_TESTS / size.cases)
    made: dict[str, Any] = {"cases": size.cases, "shape": size.shape, "scanners": size.cases}
    data = phantom(out / "phantoms", **made, held_out=held_out, twins=True, seed=seed)
    bench = Bench(out, data, device)
    rows = []
    asked = {"size": asdict(size), "seed": seed}
    check_same(out, asked)
    for name in only or FAMILY:
        kept = out / "rows" / f"{_word(name)}.json"
        if not kept.is_file():
            log.info("%s", name)
            write_json(kept, _rows(bench, name, size, seed))
        rows += json.loads(kept.read_text(encoding="utf-8"))
    return {
        "schema": 1,
        "benchmark": "anomaly_family",
        "data": f"{size.cases} phantoms, each of a scanner of its own, seed {seed}",
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "methods": rows,
        "conventions": {name: said for name, said in CONVENTIONS.items() if name != "curve"},
    }


def _rows(bench: Bench, name: str, size: Size, seed: int) -> list[dict[str, Any]]:
    """One engine, with networks of its own or another's; with the one that has them the baselines."""
    member = FAMILY[name]
    run = _trained(bench, member.shares or name, size, seed)
    seconds = round(run.facts["ended"] - run.facts["started"], 1)
    if member.shares:
        run = bench.system(run, _word(name), member.overrides)
    own = bench.score(run, baselines=name == BASELINES_OF)
    found = own.pop("baselines")
    others = [baseline_row(title, each, own) for title, each in found.items()]
    return [{"name": name, "training_seconds": seconds, **own}, *others]


def _trained(bench: Bench, name: str, size: Size, seed: int) -> Run:
    """The run of a member: that of an earlier call if it was finished."""
    member, folder = FAMILY[name], bench.out / "runs" / _word(name)
    if (folder / "run.json").is_file() and Run(folder).state == "finished":
        return Run(folder)
    both = "classifier" in load_recipe(member.config, task="anomaly").engine.networks
    steps = size.steps if both else size.steps + size.classifier_steps
    words = [*VARIED, *member.overrides, *size.overrides, f"training.seed={seed}"]
    words += [f"training.steps={steps}", f"training.validate_every={steps}"]
    if both:
        learned = size.classifier_steps
        words += [f"classifier_training.steps={learned}", f"classifier_training.validate_every={learned // 2}"]
    common: dict[str, Any] = {"runs": bench.out / "runs", "device": bench.device, "mlflow": False}
    run = train_anomaly(bench.data, config=member.config, out=fresh(folder), overrides=words, **common)
    assert isinstance(run, Run)
    return run


def check_same(out: Path, asked: dict[str, Any]) -> None:
    """Raises: UsageError where `out` holds rows of other settings: a call goes on with its own alone."""
    note, wanted = out / "asked.json", json.loads(json.dumps(asked))
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != wanted:
        raise UsageError("holds rows of other settings", fix="use another --out, or remove it", file=out.name)
    write_json(note, wanted)


def _word(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def show(result: dict[str, Any]) -> str:
    """The table."""
    columns = ["", "AUROC", "AP", "best Dice", "Dice", "FP ml", "left", "elsewhere", "NFE", "s/slice", "training s"]
    return "\n\n".join([result["data"], table(columns, [_cells(row) for row in result["methods"]])])


def _cells(row: dict[str, Any]) -> list[str]:
    metrics = row["metrics"]
    return [
        row["name"],
        *(with_interval(metrics[name]) for name in SHOWN[:2]),
        *(number(metrics[name]["value"]) for name in SHOWN[2:4]),
        number(metrics["false_positives_ml"]["value"], 1),
        *(number(metrics.get(name, {}).get("value"), 2) for name in AGAINST_TWIN),
        str(row["nfe"]),
        number(row["seconds_per_slice"], 3),
        number(row.get("training_seconds"), 0),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.anomaly_family", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/anomaly_family"))
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--cases", type=int, help="phantoms in all; one in five, but no more than 12, for testing")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=FAMILY, help=f"of {', '.join(FAMILY)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    size = replace(size, cases=chosen.cases or size.cases)
    result = measure(chosen.out, size=size, seed=chosen.seed, device=chosen.device, only=chosen.only)
    write_json(chosen.out / "anomaly_family.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
