"""How long do the verbs take that read no image? Beside an interpreter that imports nothing but their libraries.

    python -m benchmarks.startup [--rounds N]

Each in a process of its own, in turn; the best of the rounds counts, as other processes only ever add to it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.reporting import number, table
from benchmarks.timing import Taken, in_turn

LIBRARIES = "the libraries alone"
COMMANDS = {
    LIBRARIES: ("-c", "import numpy, pydantic, typer"),
    "--help": ("-m", "medseg_diff", "--help"),
    "segment --help": ("-m", "medseg_diff", "segment", "--help"),
    "info": ("-m", "medseg_diff", "info", "--json"),
    "validate": ("-m", "medseg_diff", "validate", "--data", "none.csv"),
}


def measure(rounds: int) -> dict[str, Taken]:
    """Wall seconds of each command, started `rounds` times."""

    def started(words: tuple[str, ...]) -> None:
        subprocess.run([sys.executable, *words], capture_output=True, check=False, cwd=Path(__file__).parents[1])

    contenders = {name: lambda words=words: started(words) for name, words in COMMANDS.items()}
    return in_turn(contenders, rounds=rounds, device=torch.device("cpu"))


def show(taken: dict[str, Taken]) -> str:
    """A row for each command: the best, the median, and the best as a multiple of the libraries'."""
    base = taken[LIBRARIES].best
    cells = [[name, number(each.best), number(each.median), number(each.best / base)] for name, each in taken.items()]
    return table(["", "best s", "median s", "of the libraries"], cells)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    print(show(measure(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
