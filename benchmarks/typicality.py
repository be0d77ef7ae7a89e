"""Whom does a model warn of? Scans of its own kind, of other scanners, and real ones, judged by few and by many cases.

    python -m benchmarks.typicality [--data PATH/cases.csv] [--volume FOLDER …] [--draws 20] [--quick] [--out DIR]

No network is trained: a scan is judged by how it looks (`medseg_diff.metrics.typicality`). `--data` names real patients,
each of whom is left out in turn, `--volume` real scans of another kind, which are judged by all of them and by phantoms.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.reporting import number, table
from medseg_diff import phantom
from medseg_diff.console import bar, configure
from medseg_diff.data.appearance import appearance_of
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.inputs import find_case
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.data.transforms import prepare_case
from medseg_diff.files import write_json
from medseg_diff.metrics.typicality import Appearance, features_of, judge, threshold_of
from medseg_diff.recipes.lookup import load_recipe

CONFIG = "quick/mask_logits"
SHAPE = (64, 64, 48)
AT_3_MM = ("preparation.spacing_mm=[3.0, 3.0, null]",)
KINDS = {"one kind of scanner": 0, "three scanners": 3}  # of the cases learned from: `phantom --scanners`
LEARNED = (3, 6, 12, 24, 45)


def looks_of(cases: Sequence[Case], overrides: Sequence[str] = ()) -> list[Appearance]:
    """How prepared cases look."""
    recipe = load_recipe(CONFIG, task="segment", overrides=overrides)
    found: list[Appearance] = []
    with bar("looking", len(cases)) as advance:
        for case in cases:
            prepared = prepare_case(read_case(case, recipe.channels, reference=False), recipe.preparation)
            found.append(appearance_of(prepared.image, prepared.brain, prepared.spacing_mm, recipe.channels))
            advance(note=case.name)
    return found


def scores(learned: Sequence[Appearance], looked_at: Sequence[Appearance]) -> list[float]:
    """Of scans, by the cases learned from."""
    features = features_of(learned)
    judged = [judge(each, features) for each in looked_at]
    return [each.score for each in judged if each]


def warned(learned: Sequence[Appearance], looked_at: Sequence[Appearance]) -> float:
    """Share of the scans that a warning is given of."""
    return float(np.mean(np.array(scores(learned, looked_at)) > threshold_of(learned)))


def left_out(cases: Sequence[Appearance]) -> list[float]:
    """The score of each by all others."""
    return [scores([*cases[:place], *cases[place + 1 :]], [cases[place]])[0] for place in range(len(cases))]


def measure(
    out: Path,
    *,
    data: Path | None = None,
    volumes: Sequence[Path] = (),
    draws: int = 20,
    cases: int = 60,
    far: int = 24,
) -> dict[str, Any]:
    """Returns what goes into typicality.json."""

    def phantoms(name: str, count: int, scanners: int, healthy: float, seed: int) -> list[Appearance]:
        made = phantom(out / name, cases=count, shape=SHAPE, healthy=healthy, scanners=scanners, seed=seed)
        return looks_of(read_manifest(made).cases, AT_3_MM)

    known = {name: phantoms(name.replace(" ", "_"), cases, number, 0.25, 5) for name, number in KINDS.items()}
    other = phantoms("other_scanners", far, far, 0.0, 10_000)
    recipe = load_recipe(CONFIG, task="segment")
    patients = list(read_manifest(data).cases) if data else []
    others = [find_case([str(volume)], recipe.channels)[0] for volume in volumes]
    rng, rows = np.random.default_rng(0), []
    for name, looks in known.items():
        for count in (each for each in LEARNED if each < cases):
            orders = [rng.permutation(cases) for _ in range(draws)]
            parts = [([looks[i] for i in order[:count]], [looks[i] for i in order[count:]]) for order in orders]
            same = mean(warned(*part) for part in parts)
            rows.append(
                {"learned": name, "cases": count, "same": same, "other": mean(warned(a, other) for a, _ in parts)}
            )
    real = looks_of(patients)
    result: dict[str, Any] = {"schema": 1, "benchmark": "typicality", "draws": draws, "rows": rows}
    if len(real) > 1:
        result["patients_left_out"] = left_out(real)
        result["others_by_patients"] = scores(real, looks_of(others))
        coarse = looks_of([*patients, *others], AT_3_MM)
        result["real_by_phantoms"] = {name: scores(looks, coarse) for name, looks in known.items()}
    write_json(out / "typicality.json", result)
    return result


def show(result: dict[str, Any]) -> str:
    """Shares of scans warned of, and scores of real ones."""
    columns = ["learned from phantoms of", "cases", "warned of: the same kind", "other scanners"]
    rows = [[row["learned"], str(row["cases"]), number(row["same"]), number(row["other"])] for row in result["rows"]]
    lines = [table(columns, rows)]
    for name in ("patients_left_out", "others_by_patients", "real_by_phantoms"):
        if name in result:
            found = result[name] if isinstance(result[name], dict) else {"": result[name]}
            lines += [
                f"{name} {kind}: {', '.join(number(value, 2) for value in values)}" for kind, values in found.items()
            ]
    return "\n\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.typicality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, help="table of real patients")
    parser.add_argument("--volume", type=Path, action="append", default=[], help="a real scan of another kind (repeat)")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="few cases: to see it run, not to compare")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/typicality"))
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    size = {"cases": 8, "far": 2, "draws": 2} if chosen.quick else {"draws": chosen.draws}
    print(show(measure(chosen.out, data=chosen.data, volumes=chosen.volume, **size)))


if __name__ == "__main__":
    main()
