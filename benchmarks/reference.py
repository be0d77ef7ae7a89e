"""What the engine is worth beside straightforward code with the same network and weights, the answers shown equal first.

    python -m benchmarks.reference [--quick] [--out DIR]

The reference (benchmarks/plain.py) is MONAI's DiffusionModelUNet with its DDPM scheduler: 1000 steps, one sample at a time,
float32, every slice. Both take turns in one process, and the last line is JSON, the ratios. What few steps lose, trained
networks say: `python -m benchmarks.few_steps`.
"""

import argparse
import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.limit import convolution_limit, counted, matmul_limit
from benchmarks.reference_anomaly import DEPTH, GuidedSubject
from benchmarks.reference_plot import draw
from benchmarks.reference_subject import CONFIG, CPU, MEMBERS, NETWORK, TOGETHER, Subject, our_training, passes
from benchmarks.reporting import machine, number, table
from benchmarks.timing import Taken, in_turn
from medseg_diff.console import configure, log
from medseg_diff.data.datasets.batch import Batch
from medseg_diff.device import autocast
from medseg_diff.diffusion import Condition, walk
from medseg_diff.files import write_json
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.seeds import seed_of
from medseg_diff.training.fit import channels_last

EQUAL, EQUAL_PIXELS = 1e-4, 0.995
GUIDED_SLICES = 16


@dataclass(frozen=True)
class Amount:
    """How often and how much is timed: `slices` and `steps` of the reference's ensembles, whose time is then multiplied."""

    rounds: int = 9
    slices: int = 6
    steps: int = 20
    training_rounds: int = 5
    training_batch: int = 16
    volume: bool = True
    shape: tuple[int, int, int] = (240, 240, 155)
    changes: tuple[str, ...] = ()  # of the recipe's settings
    matrix: int = 2048  # rows and columns of those whose product is the limit


QUICK = Amount(rounds=3, slices=6, steps=1, training_rounds=2, training_batch=8, volume=False)


def equality(subject: Subject, amount: Amount) -> dict[str, Any]:
    """One pass, and a few steps of DDPM with the same noise, in float32; and the masks of bf16 beside those of float32."""
    image, schedule = subject.images[subject.some(1)], subject.recipe.schedule
    scheduler, length = plain.ddpm(schedule), schedule.length
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(1, 1, *image.shape[2:], generator=draw)
    with torch.no_grad():
        said = subject.theirs(torch.cat([start, image], dim=1), timesteps=torch.tensor([length]))
        passes = subject.ours.network(start, torch.tensor([length]), Condition(image=image))
    theirs, noise = (torch.Generator().manual_seed(1) for _ in range(2))
    stepped = plain.walked(subject.theirs, scheduler, start, image, steps=amount.steps, generator=theirs)
    times = list(range(length, length - amount.steps - 1, -1))
    solver = subject.recipe.sampling.solver
    walked = walk(
        subject.recipe.for_masks(subject.ours), solver, start, times, Condition(image=image),
        lambda like, step: torch.randn(like.shape, generator=noise),
    )  # fmt: skip
    exact, rounded = (subject.segment(subject.some(amount.slices), precision=kind) > 0.5 for kind in ("fp32", "bf16"))
    found = {
        "pass_largest_difference": float((said - passes).abs().max()),
        "steps": amount.steps,
        "steps_largest_difference": float((stepped - walked).abs().max()),
        "allowed": EQUAL,
        "bf16_mask_pixels_equal": float((exact == rounded).double().mean()),
        "wanted": EQUAL_PIXELS,
    }
    differences = max(found["pass_largest_difference"], found["steps_largest_difference"])
    return found | {"equal": differences <= EQUAL and found["bf16_mask_pixels_equal"] >= EQUAL_PIXELS}


def one_step(subject: Subject, amount: Amount) -> dict[str, Any]:
    """Seconds of one step of a slice's ensemble, each contender in turn."""
    contenders = passes(subject)
    taken = in_turn(contenders, rounds=amount.rounds, device=CPU)
    *_, last = taken
    taken[last] = Taken(tuple(seconds / TOGETHER for seconds in taken[last].seconds))
    image = torch.cat([torch.zeros_like(subject.images[:1, :1]), subject.images[:1]], dim=1)
    operations = MEMBERS * counted(lambda: subject.theirs(image, timesteps=torch.tensor([500])))
    speeds = {name: operations / found.median / 1e9 for name, found in taken.items()}
    return {"gflop": operations / 1e9, "seconds": _seconds(taken), "gflops": speeds} | _ratios(taken)


def training(subject: Subject, amount: Amount) -> dict[str, Any]:
    """Seconds of a training step on one batch."""
    rows = (subject.some(8) * amount.training_batch)[: amount.training_batch]
    image = subject.images[rows]
    mask = (
        torch.rand(len(rows), 1, *image.shape[2:], generator=torch.Generator().manual_seed(0)) > 0.8
    ).float() * 2 - 1
    slow = plain.training_steps(
        copy.deepcopy(subject.theirs), subject.recipe.schedule, image, mask, torch.Generator().manual_seed(0)
    )
    network = channels_last(copy.deepcopy(subject.ours.module()))
    fast = our_training(subject.recipe, network, Batch(image, mask))
    contenders = {"reference": partial(next, slow), "ours": partial(next, fast)}
    taken = in_turn(contenders, rounds=amount.training_rounds, device=CPU)
    return {"batch": len(rows), "seconds": _seconds(taken)} | _ratios(taken)


def sampling(subject: Subject, amount: Amount) -> dict[str, Any]:
    """Seconds of a slice's whole ensemble: ours as it is, the reference's from some of its steps."""
    slices, scheduler = subject.some(amount.slices), plain.ddpm(subject.recipe.schedule)
    draw = torch.Generator().manual_seed(0)

    def reference(images: Tensor) -> None:
        plain.ensemble(subject.theirs, scheduler, images, members=MEMBERS, steps=amount.steps, generator=draw)

    contenders: dict[str, Callable[[], object]] = {
        "reference": partial(reference, subject.images[slices]),
        "reference, whole slices": partial(reference, subject.whole[slices]),
        "ours": partial(subject.segment, slices),
    }
    taken = in_turn(contenders, rounds=max(2, amount.rounds // 3), device=CPU)
    times = subject.recipe.schedule.length / amount.steps
    per_slice = {
        name: Taken(tuple(s / len(slices) * (times if name != "ours" else 1) for s in found.seconds))
        for name, found in taken.items()
    }
    result = {
        "timed": f"{amount.steps} of {subject.recipe.schedule.length} steps of {len(slices)} slices, multiplied",
        "seconds": _seconds(per_slice),
        "ratio": per_slice["reference"].median / per_slice["ours"].median,
    }
    return result | (_volume(subject, per_slice) if amount.volume else {})


def anomaly(subject: Subject, amount: Amount) -> dict[str, Any]:
    """Seconds of a slice's anomaly map by guided inversion: the recipe's, and the paper's 500 + 500 steps from some."""
    guided, rows = GuidedSubject.made(), subject.some(GUIDED_SLICES)
    images, few = subject.images[rows], list(range(DEPTH - amount.steps, DEPTH + 1))
    times = guided.engine.times(guided.recipe.schedule)
    same = guided.ours(images[:1], precision="fp32"), guided.reference(images[:1], times)
    contenders: dict[str, Callable[[], object]] = {
        "reference": lambda: guided.reference(images[:1], few),
        "ours": lambda: guided.ours(images),
    }
    taken = in_turn(contenders, rounds=amount.rounds, device=CPU)
    counts = {"reference": amount.steps / DEPTH, "ours": float(len(rows))}
    per_slice = {n: Taken(tuple(s / counts[n] for s in found.seconds)) for n, found in taken.items()}
    return {
        "largest_difference": float((same[0][:, 0] - same[1]).abs().max()),
        "timed": f"{amount.steps} of {DEPTH} steps each way of one slice, multiplied; ours: {len(rows)} slices",
        "seconds": _seconds(per_slice),
    } | _ratios(per_slice)


def _volume(subject: Subject, per_slice: dict[str, Taken]) -> dict[str, Any]:
    """The whole volume: every whole slice by the reference, multiplied; what holds brain by ours, as it is, and by the
    default recipe with its prior, its light denoiser and ten members."""
    default = load_recipe(CONFIG, task="segment")
    denoiser, plan = default.build_denoiser(), default.plan()
    channels_last(denoiser.module()).eval()
    light = default.for_masks(denoiser)

    def by_default() -> None:
        with autocast(CPU, "bf16"):
            for _ in sample_masks(light, subject.images, subject.shown, plan, regions=1, seed_of=seed_of):
                pass

    contenders: dict[str, Callable[[], object]] = {
        "ours": partial(subject.segment, subject.shown),
        f"default recipe, {plan.members} members": by_default,
    }
    taken = in_turn(contenders, rounds=1, device=CPU, warm_up=0)
    seconds = {name: found.median for name, found in taken.items()}
    seconds["reference"] = per_slice["reference, whole slices"].median * len(subject.images)
    return {
        "volume": {
            "slices": len(subject.images),
            "with_brain": len(subject.shown),
            "seconds": seconds,
            "ratios": {name: seconds["reference"] / value for name, value in seconds.items()},
        }
    }


def _limits(matrix: int) -> dict[str, dict[str, float]]:
    """GFLOP per second that this machine reaches at best."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        name: {"matmul": matmul_limit(CPU, matrix, kind) / 1e9, "convolution": convolution_limit(CPU, kind) / 1e9}
        for name, kind in kinds.items()
    }


def _seconds(taken: dict[str, Taken]) -> dict[str, dict[str, float]]:
    return {name: {"best": found.best, "median": found.median} for name, found in taken.items()}


def _ratios(taken: dict[str, Taken]) -> dict[str, Any]:
    """How many times faster than the reference, by the best and by the median."""
    slow = taken["reference"]
    return {"ratios": {n: {"best": slow.best / t.best, "median": slow.median / t.median} for n, t in taken.items()}}


def measure(amount: Amount = Amount()) -> dict[str, Any]:
    """Everything that needs no trained network. Returns what goes into reference.json."""
    subject = Subject.made(amount.shape, amount.changes)
    result: dict[str, Any] = {"schema": 1, "benchmark": "reference", "machine": machine(), "network": NETWORK}
    result |= {"load": os.getloadavg()[0], "limits": _limits(amount.matrix)}
    for part in (equality, one_step, training, sampling, anomaly):
        log.info("%s", part.__name__.replace("_", " "))
        result[part.__name__] = part(subject, amount)
    return result


def show(result: dict[str, Any]) -> str:
    """The ladder of one step, and the products."""
    step, limit = result["one_step"], result["limits"]
    rows = []
    for name, seconds in step["seconds"].items():
        kind = "fp32" if name in ("reference", "channels last") else "bf16"
        share = step["gflops"][name] / limit[kind]["convolution"]
        ratios = step["ratios"][name]
        milliseconds = [f"{1000 * seconds[which]:.1f}" for which in ("best", "median")]
        rows.append([name, *milliseconds, number(ratios["best"], 2), number(ratios["median"], 2), f"{share:.0%}"])
    columns = ["one step, 5 members of a slice", "ms best", "median", "ratio best", "median", "of convolution limit"]
    lines = [f"equal: {result['equality']}", table(columns, rows)]
    return "\n\n".join([*lines, json.dumps(summary(result))])


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """The ratios on one line."""
    ratios = {"one_step": result["one_step"]["ratios"]["six slices in one batch"]["median"]}
    ratios["training_step"] = result["training"]["ratios"]["ours"]["median"]
    ratios["slice"] = result["sampling"]["ratio"]
    ratios["anomaly_slice"] = result["anomaly"]["ratios"]["ours"]["median"]
    if volume := result["sampling"].get("volume"):
        ratios |= {f"volume, {name}": value for name, value in volume["ratios"].items() if name != "reference"}
    return {"equal": result["equality"]["equal"]} | {name: round(value, 2) for name, value in ratios.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/reference"))
    parser.add_argument("--quick", action="store_true", help="a minute or two")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    result = measure(QUICK if chosen.quick else Amount())
    write_json(chosen.out / "reference.json", result)
    draw(result, chosen.out / "reference.png")
    print(show(result))


if __name__ == "__main__":
    main()
