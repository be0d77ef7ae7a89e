"""How much memory an ensemble of a whole volume takes beside straightforward code with the same network, imports apart.

    python -m benchmarks.peak [--out DIR]                          (Linux)

The contenders are those of `benchmarks.reference`, each in a process of its own that has imported everything and holds the
network and the prepared volume: five members of every slice. Counted is what the process holds at the most beyond that, as
the system tells it. The reference takes one of its steps, for every further one uses the same memory again.
"""

import argparse
import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import plain
from benchmarks.reference_subject import MEMBERS, Subject
from benchmarks.reporting import machine, number, table
from medseg_diff.files import write_json

SHAPE = (240, 240, 155)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FORGET_THE_PEAK = "5"  # see proc(5)
REFERENCE, WHOLE = "reference, cut to the brain", "reference, whole slices"
OURS, ONE_BY_ONE = "ours", "ours, one sample at a time"
ALL = (REFERENCE, WHOLE, OURS, ONE_BY_ONE)


def contenders(subject: Subject) -> dict[str, Callable[[], object]]:
    """What each does with the volume."""

    def reference(images: torch.Tensor) -> torch.Tensor:
        draw, scheduler = torch.Generator().manual_seed(0), plain.ddpm(subject.recipe.schedule)
        return plain.ensemble(subject.theirs, scheduler, images, members=MEMBERS, steps=1, generator=draw)

    every = list(range(len(subject.images)))
    return {
        REFERENCE: partial(reference, subject.images),
        WHOLE: partial(reference, subject.whole),
        OURS: partial(subject.segment, every),
        ONE_BY_ONE: partial(subject.segment, every, network_batch=1),
    }


def megabytes(name: str) -> float:
    """A line of the process's status, such as VmRSS, what it holds now, and VmHWM, the most that it held."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def peak_of(contender: str, shape: Sequence[int]) -> float:
    """Megabytes beyond what there is before it starts, in this process."""
    x, y, z = shape
    subject = Subject.made((x, y, z))
    work = contenders(subject)[contender]
    subject.images, subject.whole  # noqa: B018  # made before it starts
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is not to be filled unseen
    before = megabytes("VmRSS")
    CLEAR.write_text(FORGET_THE_PEAK, encoding="ascii")
    work()
    return megabytes("VmHWM") - before


def measure(shape: Sequence[int] = SHAPE) -> dict[str, float]:
    """Megabytes of each contender."""
    found = {}
    for name in ALL:
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.peak", "--only", name, "--shape", *map(str, shape)]
        done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        found[name] = float(done.stdout.splitlines()[-1])
    return found


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/peak"))
    parser.add_argument("--only", choices=ALL, help="one of them, in this process")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="voxels of the volume")
    chosen = parser.parse_args(words)
    if chosen.only:
        print(peak_of(chosen.only, chosen.shape))
        return
    found = measure(chosen.shape)
    write_json(chosen.out / "peak.json", {"schema": 1, "benchmark": "peak", "machine": machine(), "megabytes": found})
    rows = [[name, number(value, 0), number(value / found[REFERENCE], 2)] for name, value in found.items()]
    print(table(["an ensemble of a volume", "MB", "share of the reference's"], rows))


if __name__ == "__main__":
    main()
