"""Are channels under their own names left in peace, and those under others' noticed? Phantoms of many scanners, or a table.

    python -m benchmarks.plausibility [--cases 100] [--seed 777] [--data TABLE [--data-root DIR]] [--out DIR]

Every case is read as it is, and with its four channels in each of the 23 wrong orders.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.reporting import table
from medseg_diff import phantom
from medseg_diff.data.geometry import spacing_of
from medseg_diff.data.plausibility import implausible
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.case import CHANNEL_COLUMNS, Case
from medseg_diff.data.tables.manifest import read_manifest

SWAPS = (("t2", "flair"), ("t1", "t2"), ("t1", "flair"), ("t1", "t1ce"))


def measure(cases: Iterable[Case]) -> Counter[str]:
    """How many `cases` there are, how many are doubted as they are, in how many each swap is noticed, and of how many wrong
    `orders` how many are `noticed`."""
    counts = Counter[str]()
    for case in cases:
        images = read_case(case, CHANNEL_COLUMNS, reference=False)
        spacing_mm = spacing_of(images.affine)
        orders = list(itertools.permutations(CHANNEL_COLUMNS))
        noticed = {order: bool(implausible(order, images.image, spacing_mm)) for order in orders}
        counts += Counter({"cases": 1, "doubted": noticed.pop(CHANNEL_COLUMNS)})
        counts += Counter({"orders": len(noticed), "noticed": sum(noticed.values())})
        for one, other in SWAPS:
            swap = {one: other, other: one}
            counts[f"{one}/{other}"] += noticed[tuple(swap.get(name, name) for name in CHANNEL_COLUMNS)]
    return counts


def show(counts: Counter[str]) -> str:
    """A row for what was asked, and how often."""
    rows = [["under their own names, doubted all the same", f"{counts['doubted']} of {counts['cases']}"]]
    rows += [[f"{one} and {other} interchanged, noticed", f"{counts[f'{one}/{other}']}"] for one, other in SWAPS]
    rows += [["any wrong order, noticed", f"{counts['noticed']} of {counts['orders']}"]]
    return table(["", "cases"], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plausibility", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--data", type=Path, help="a table of cases with all four channels, in the phantoms' place")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/plausibility"))
    chosen = parser.parse_args()
    made = chosen.data or phantom(
        chosen.out / f"phantoms_{chosen.seed}",
        cases=chosen.cases,
        scanners=chosen.cases,
        healthy=0.3,
        seed=chosen.seed,
    )
    print(show(measure(read_manifest(made, data_root=chosen.data_root).cases)))


if __name__ == "__main__":
    main()
