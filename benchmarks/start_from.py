"""What does `segment --start-from` make of masks that are there already? Good and bad ones, noised to several strengths.

    python -m benchmarks.start_from [--seed 0] [--quick] [--out DIR]

Three folders of masks of the same test phantoms: the reference shifted by two voxels, as a faulty registration leaves it;
the reference with false positives; and what nnU-Net's network makes of the phantoms after as many seconds of training.
Each is refined at every strength, beside the ensemble that starts from noise alone. Phantoms are easier than patients.
"""

import argparse
import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.reporting import DASH, machine, number, table, with_interval
from benchmarks.supervised import nnunet, pace_of, segment_baseline, train_baseline
from medseg_diff import evaluate, phantom, segment, train_seg
from medseg_diff.console import configure
from medseg_diff.data.brain import find_brain
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.device import find_device, find_precision, make_fabric
from medseg_diff.files import read_facts, write_json
from medseg_diff.metrics.intervals import mean_interval
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.train.study import prepare_study, with_splits

CONFIG = "quick/mask_logits"
SMALL = (
    "preparation.spacing_mm=[3.0, 3.0, null]",
    "view.size=[56, 64]",
    "regions={whole_tumour: [1, 2, 4]}",
    "training.batch=16",
)
MEASURES = ("dice", "ged2", "ece_band", "auroc_error_band")
NOISE, GIVEN = "from noise alone", "as given"
SHIFTED, FALSE_POSITIVES, SUPERVISED = "shifted by 6 mm", "with false positives", "nnU-Net's network"
SHIFT = 2  # voxels of 3 mm along the first axis
BALLS, RADIUS = 4, 3.0  # false positives of a case, and their radius in voxels
CONVENTIONS = {
    "measures": "test phantoms, as `medseg-diff evaluate` defines them; a mask as given is its own only member",
    "gain": "Dice less that of the mask as given, on the same phantom, mean with a 95 % percentile bootstrap interval",
    "seconds": "of a case, reading to writing, members written too",
}

Mask = npt.NDArray[np.bool_]
Cases = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 40
    tested: int = 8
    members: int = 10
    shape: tuple[int, int, int] = (64, 64, 48)
    strengths: tuple[float, ...] = (0.75, 0.5, 0.25, 0.1)
    overrides: tuple[str, ...] = (*SMALL, "training.steps=300", "training.validate_every=300")


QUICK = Size(cases=8, tested=2, strengths=(0.5,), overrides=(*SMALL, "training.steps=30", "training.validate_every=30"))


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and on what it runs."""

    out: Path
    data: Path
    size: Size
    device: str
    seed: int

    @property
    def overrides(self) -> list[str]:
        """Of the recipe."""
        return [*self.size.overrides, f"training.seed={self.seed}"]

    def segmented(
        self, model: Path, folder: str, start_from: Path | None = None, strength: float | None = None
    ) -> dict[str, Any]:
        """Every test case as the model segments it, from masks or from noise: what it is worth, and how long it took."""
        out = self.out / folder
        segment(
            data=self.data,
            split="test",
            model=model,
            out=out,
            start_from=start_from,
            strength=strength,
            members=self.size.members,
            save_members=True,
            overwrite=True,
            seed=self.seed,
            device=self.device,
        )
        seconds = mean(read_facts(path)["seconds"]["all"] for path in out.glob("*/case.json"))
        return {"cases": self.measured(out), "seconds": round(seconds, 3)}

    def measured(self, folder: Path) -> Cases:
        """{case: {measure: value}} of a folder of masks."""
        evaluate(folder, self.data, split="test", config=self._config(folder), figure=False, mlflow=False)
        with (folder / "per_case.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {row["case"]: {each: float(row[each]) if row[each] else None for each in MEASURES} for row in rows}

    def _config(self, folder: Path) -> str | None:
        """The recipe whose regions masks have that do not name their own."""
        own = next(folder.glob("*/case.json"), None)
        return None if own else str(self.out / "run" / "recipe.yaml")


def measure(out: Path, *, size: Size = Size(), device: str = "auto", seed: int = 0) -> dict[str, Any]:
    """Every folder of masks at every strength. Returns what goes into start_from.json, written after each row."""
    data = phantom(
        out / "phantoms",
        cases=size.cases,
        shape=size.shape,
        raters=3,
        healthy=0.0,
        held_out=size.tested / size.cases,
        seed=seed,
    )
    bench = Bench(out, data, size, device, seed)
    model = _trained(bench)
    rows: dict[str, dict[str, Any]] = {NOISE: bench.segmented(model, "noise")}
    result = {
        "schema": 1,
        "benchmark": "start_from",
        "config": CONFIG,
        "machine": machine(device if device != "auto" else str(find_device("auto"))),
        "size": asdict(size),
        "rows": rows,
        "conventions": CONVENTIONS,
    }
    made: dict[str, Callable[[Bench, Path], None]] = {
        SHIFTED: _shifted,
        FALSE_POSITIVES: _with_false_positives,
        SUPERVISED: _supervised,
    }
    for place, (name, make) in enumerate(made.items()):
        folder = out / f"given_{place}"
        make(bench, folder)
        rows[f"{name}, {GIVEN}"] = {"cases": bench.measured(folder), "seconds": None}
        for strength in size.strengths:
            refined = f"refined_{place}_{strength:g}"
            rows[f"{name}, {strength:g}"] = bench.segmented(model, refined, folder, strength)
            write_json(out / "start_from.json", result)
    return result


def _trained(bench: Bench) -> Path:
    """The model's run, through the public verb."""
    folder = bench.out / "run"
    if folder.exists():  # of an earlier call
        shutil.rmtree(folder)
    train_seg(
        bench.data,
        config=CONFIG,
        overrides=bench.overrides,
        out=folder,
        runs=bench.out / "runs",
        device=bench.device,
        mlflow=False,
    )
    return folder


def _shifted(bench: Bench, folder: Path) -> None:
    """The reference, two voxels off: right in shape, systematically wrong in place."""

    def shifted(lesion: Mask, brain: Mask, rng: np.random.Generator) -> Mask:
        moved = np.zeros_like(lesion)
        moved[SHIFT:] = lesion[:-SHIFT]
        return moved

    _made_of_references(bench, folder, shifted)


def _with_false_positives(bench: Bench, folder: Path) -> None:
    """The reference, and balls somewhere else in the brain."""

    def with_balls(lesion: Mask, brain: Mask, rng: np.random.Generator) -> Mask:
        places = np.argwhere(brain & ~lesion)
        axes = np.indices(lesion.shape)
        for centre in places[rng.choice(len(places), BALLS, replace=False)]:
            away = sum((axis - at) ** 2 for axis, at in zip(axes, centre, strict=True))
            lesion = lesion | ((away <= RADIUS**2) & brain)
        return lesion

    _made_of_references(bench, folder, with_balls)


def _made_of_references(bench: Bench, folder: Path, change: Callable[[Mask, Mask, np.random.Generator], Mask]) -> None:
    """CASE/mask.nii.gz, the one label 1, and the same as its only member."""
    for case in read_manifest(bench.data).of("test"):
        images = read_case(case)
        assert images.reference is not None
        rng = np.random.default_rng(seed_of(bench.seed, case.name, "given"))
        mask = change(images.reference > 0, np.asarray(find_brain(images.image)), rng).astype(np.uint8)
        for name in ("mask", "members/00"):
            write_volume(folder / case.name / f"{name}.nii.gz", mask, images.affine)


def _supervised(bench: Bench, folder: Path) -> None:
    """Masks of nnU-Net's network, trained on the same slices for the same seconds."""
    recipe = load_recipe(CONFIG, task="segment", overrides=bench.overrides)
    device = find_device(bench.device)
    precision = find_precision(recipe.training.precision, device)
    fabric = make_fabric(device, precision)
    manifest = with_splits(read_manifest(bench.data))
    study = prepare_study(manifest, recipe, cache=bench.out / "runs" / "cache")
    steps = pace_of(recipe, study, nnunet, fabric).baseline_steps
    trained = train_baseline(nnunet(recipe), recipe, study, fabric, steps=steps)
    segment_baseline(trained, manifest.of("test"), recipe, folder, fabric, precision=precision)


def show(result: Mapping[str, Any]) -> str:
    """A line for each folder of masks and strength."""
    columns = ["", "Dice", "gain of Dice", "GED²", "ECE in doubt", "AUROC err. in doubt", "s/case"]
    lines = [_line(name, row, result["rows"]) for name, row in result["rows"].items()]
    size = result["size"]
    about = f"{result['config']}; {size['tested']} phantoms of three raters, {size['members']} members"
    return "\n\n".join([about, table(columns, lines)])


def _line(name: str, row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    cases: Cases = row["cases"]
    dice, ged2, *doubt = ({case: found[measure] for case, found in cases.items()} for measure in MEASURES)
    given = rows.get(f"{name.rpartition(', ')[0]}, {GIVEN}")
    gain = DASH
    if given and not name.endswith(GIVEN):
        before = {case: found["dice"] for case, found in given["cases"].items()}
        gain = with_interval(_over({case: _less(dice[case], before[case]) for case in dice}))
    means = [_over(values)["value"] for values in doubt]
    return [
        name,
        with_interval(_over(dice)),
        gain,
        with_interval(_over(ged2)),
        *map(number, means),
        number(row["seconds"], 1),
    ]


def _over(values: Mapping[str, float | None]) -> dict[str, Any]:
    return asdict(mean_interval(list(values.values()), patients=list(values)))


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start_from", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/start_from"))
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = QUICK if chosen.quick else Size()
    print(show(measure(chosen.out, size=size, device=chosen.device, seed=chosen.seed)))


if __name__ == "__main__":
    main()
