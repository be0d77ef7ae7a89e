"""How long do the verbs take that read no image, and `segment` until its network is called for the first time? Beside an
interpreter that imports nothing but their libraries.

    python -m benchmarks.startup [--rounds N]

Each in a process of its own, in turn; the best of the rounds counts, as other processes only ever add to it. `segment` has a
small phantom and the starter model.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.reporting import number, table
from benchmarks.timing import Taken, in_turn
from medseg_diff.tasks.phantom import phantom

HOUSE = Path(__file__).parents[1]
LIBRARIES = "the libraries alone"
SEGMENT = "segment to its first network call, without importing torch and monai"
WORDS = ("segment", "--volume", "phantom_0000", "--model", "starter", "--out", "out", "--overwrite")
FIRST_CALL = """
import os, time
import torch, monai
from torch.nn.modules.module import register_module_forward_pre_hook

def called(*_):
    print(time.perf_counter() - began, flush=True)
    os._exit(0)

register_module_forward_pre_hook(called)
began = time.perf_counter()
from medseg_diff.cli import main
main()
"""
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
        subprocess.run([sys.executable, *words], capture_output=True, check=False, cwd=HOUSE)

    contenders = {name: lambda words=words: started(words) for name, words in COMMANDS.items()}
    return in_turn(contenders, rounds=rounds, device=torch.device("cpu")) | {SEGMENT: first_call(rounds)}


def first_call(rounds: int) -> Taken:
    """Wall seconds from the command line to the first call of any network, in processes that have imported the libraries."""
    seconds, environment = [], os.environ | {"PYTHONPATH": str(HOUSE)}
    with TemporaryDirectory() as folder:
        phantom(Path(folder), cases=1, shape=(40, 40, 32))
        for _ in range(1 + rounds):
            words = [sys.executable, "-c", FIRST_CALL, *WORDS]
            done = subprocess.run(words, capture_output=True, check=True, cwd=folder, env=environment, text=True)
            seconds.append(float(done.stdout))
    return Taken(tuple(seconds[1:]))


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
