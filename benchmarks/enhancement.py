"""A second stage of a cascade against what is simpler: phantoms halved in resolution, and drawn in full again.

    python -m benchmarks.enhancement [--quick] [--out DIR]

Held-out phantoms are averaged over blocks of 2 × 2 × 2 voxels. What comes back is compared with the phantom itself: linear
and cubic interpolation, the diffusion model's draws and the mean of several, and the same network trained without any
noise for the same steps, by L1. A second call goes on where the first was stopped.

A mean of all that may have been there is nearest in PSNR by its definition, and blurred; a draw is sharp, and loses by the
detail that it made up. So each row also says how much gradient there is in the brain, against the truth's (`sharpness`).
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.reporting import machine, number, table
from medseg_diff import phantom
from medseg_diff.console import bar, configure, log
from medseg_diff.data.datasets.batch import Batch
from medseg_diff.data.datasets.cache import prepare_training_case
from medseg_diff.data.datasets.volumes import volume_of
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.device import autocast
from medseg_diff.diffusion.coarse import coarse, enlarged, shown_coarse
from medseg_diff.diffusion.denoiser import AnyDenoiser
from medseg_diff.evenly import evenly_spaced
from medseg_diff.files import write_json
from medseg_diff.methods.tiled import Tiled
from medseg_diff.metrics.likeness import ms_ssim
from medseg_diff.recipes.enhancement import EnhancementRecipe
from medseg_diff.tasks.apply.enhancement_system import EnhancementSystem, open_enhancement
from medseg_diff.tasks.options import Compute
from medseg_diff.tasks.synthesis_options import EnhancementOptions
from medseg_diff.tasks.train.enhancement import VERB
from medseg_diff.tasks.train.train import Material
from medseg_diff.tasks.training_options import TrainingRun
from medseg_diff.training.denoising import Denoising
from medseg_diff.training.job import Bench, Phase
from medseg_diff.training.objective import Turn

CONFIG = "quick/cascade_x2"
CONVENTIONS = {
    "psnr": "dB over the voxels of the brain, whose 1 to 99 % span 2; mean over cases",
    "ms_ssim": "of the box of the brain; mean over cases",
    "sharpness": "squared differences of neighbours in the brain, summed, over those of the truth",
    "consistency": "root mean square of what its blocks' means differ from the coarse scan, in the brain",
}


@dataclass(frozen=True)
class Size:
    """How much of everything: full by default, `QUICK` to see it run."""

    cases: int = 64
    shape: tuple[int, int, int] = (96, 96, 72)
    measured: int = 6
    draws: int = 5
    steps: int = 10
    overrides: tuple[str, ...] = ()


QUICK = Size(cases=12, shape=(48, 48, 40), measured=2, draws=2, steps=2, overrides=("training.steps=20",))


@dataclass(eq=False)
class Regressing:
    """The rival: the denoiser's own network says the fine image at once from the coarse one, and learns by L1."""

    inner: Denoising
    recipe: EnhancementRecipe

    def __post_init__(self) -> None:
        self.models = self.inner.models

    def adopt(self, name: str, model: torch.nn.Module) -> None:
        self.inner.adopt(name, model)

    def turns(self, batch: Batch, step: int) -> Iterator[Turn]:
        said = answer_of(self.inner.denoiser, coarse(batch.image, self.recipe.factor), self.recipe)
        loss = (said - batch.image).abs().mean()
        yield Turn("denoiser", loss, {"loss": loss.detach()})


def answer_of(denoiser: AnyDenoiser, low: Tensor, recipe: EnhancementRecipe) -> Tensor:
    """The fine image that a network of target `clean` says of the coarse one alone, at the time of most noise."""
    s = torch.zeros(len(low), dtype=torch.long)
    condition = shown_coarse(low, s, low, schedule=recipe.schedule, factor=recipe.factor)
    assert condition.image is not None
    clean = denoiser(torch.zeros_like(condition.image), recipe.schedule.length, condition).clean
    return recipe.detail.decode(clean.float(), condition.image)


def regressing(given: Material[EnhancementRecipe], bench: Bench) -> Iterator[Phase]:
    """The phases of train-enhance, the objective another."""
    for phase in VERB.phases(given, bench):
        assert isinstance(phase.objective, Denoising)
        yield replace(phase, objective=Regressing(phase.objective, given.recipe), validate=None, draw=None)


def measure(out: Path, *, size: Size = Size(), seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Make phantoms in `out`, train both, measure all. Returns what goes into enhancement.json."""
    data = out / "phantoms" / "cases.csv"
    if not data.is_file():
        phantom(out / "phantoms", cases=size.cases, shape=size.shape, healthy=1.0, held_out=0.3, raters=0, seed=seed)
    runs = {}
    contenders = {"diffusion": (VERB, ()), "l1": (replace(VERB, phases=regressing), ("denoiser.target=clean",))}
    for name, (verb, words) in contenders.items():
        options = TrainingRun(
            overrides=[*size.overrides, *words], config=CONFIG, out=out / name, resume="auto", runs=out, mlflow=False
        )
        runs[name] = verb.run(data, options, device=device, data_root=None)
    systems = {
        name: open_enhancement(run.folder, EnhancementOptions(steps=size.steps), Compute(device=device), runs=out)
        for name, run in runs.items()
    }
    rows: dict[str, list[dict[str, float]]] = {}
    volumes = list(held_out(data, systems["diffusion"].recipe, out / "cache", size.measured))
    with bar("measuring", len(volumes)) as advance:
        for place, (image, brain) in enumerate(volumes):
            low = coarse(image[None], 2)[0]
            for way, found in ways(low, systems, size.draws, place).items():
                rows.setdefault(way, []).append(compared(found, image, low, brain))
            advance()
    return {
        "schema": 1,
        "benchmark": "enhancement",
        "data": f"{len(volumes)} of {size.cases} phantoms of {size.shape}, held out, seed {seed}",
        "machine": machine(device),
        "training_steps": systems["diffusion"].recipe.training.steps,
        "sampling_steps": size.steps,
        "rows": [{"name": way} | mean_of(found) for way, found in rows.items()],
        "conventions": CONVENTIONS,
    }


def held_out(data: Path, recipe: EnhancementRecipe, cache: Path, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """image [C, *S] and brain [1, *S] of some test cases as prepared, their sides multiples of the factor."""
    cases = read_manifest(data).of("test")
    for case in (cases[place] for place in evenly_spaced(range(len(cases)), count)):
        found = prepare_training_case(case, recipe.channels, recipe.preparation, cache, needs_reference=False)
        image, brain = volume_of(found.image).float(), volume_of(found.brain) > 0
        whole = (slice(None), *(slice(n - n % recipe.factor) for n in image.shape[1:]))
        yield image[whole], brain[whole]


def ways(low: Tensor, systems: Mapping[str, EnhancementSystem], draws: int, owner: int) -> dict[str, Tensor]:
    """The fine volume [C, *S] of a coarse one, by each way."""
    diffusion, l1 = systems["diffusion"], systems["l1"]
    clean = replace(diffusion, enhancing=replace(diffusion.enhancing, condition_noise=0))
    drawn = [replace(diffusion, seed=seed).volume(low, owner) for seed in range(draws)]
    cubic = ndimage.zoom(low.numpy(), (1, 2, 2, 2), order=3, mode="nearest", grid_mode=True)
    return {
        "linear interpolation": enlarged(low[None], 2)[0],
        "cubic interpolation": torch.from_numpy(cubic).clamp(-1, 1),
        "the network without noise, L1": _answer(l1, low),
        f"one draw, condition noise {diffusion.enhancing.condition_noise}": drawn[0],
        f"mean of {draws} draws": torch.stack(drawn).mean(dim=0),
        "one draw, condition noise 0": clean.volume(low, owner),
    }


def _answer(system: EnhancementSystem, low: Tensor) -> Tensor:
    """What the rival says of a whole volume, tile by tile, blended as draws are."""
    how = system.enhancing
    tiled = Tiled(system.denoiser, how.tile, overlap=how.overlap, batch=how.network_batch, step=how.factor)
    with torch.no_grad(), autocast(system.device, system.precision):
        return answer_of(tiled, low[None], system.recipe)[0].clamp(-1, 1)


def compared(found: Tensor, image: Tensor, low: Tensor, brain: Tensor) -> dict[str, float]:
    """What CONVENTIONS says, of volumes [C, *S] and their brain [1, *S]."""
    error = (found - image)[brain.expand_as(image)].square().mean()
    blocks = coarse(brain[None].float(), 2)[0] == 1
    away = (coarse(found[None], 2)[0] - low)[blocks.expand_as(low)].square().mean()
    return {
        "psnr": float(10 * torch.log10(4 / error)),
        "ms_ssim": float(ms_ssim(found[None], image[None])),
        "sharpness": gradient(found, brain) / gradient(image, brain),
        "consistency": float(away.sqrt()),
    }


def gradient(image: Tensor, brain: Tensor) -> float:
    """Squared differences between neighbours that both lie in the brain, summed over all axes."""
    total = 0.0
    for axis in range(1, image.ndim):
        n = image.shape[axis] - 1
        both = brain.narrow(axis, 0, n) & brain.narrow(axis, 1, n)
        total += float((image.diff(dim=axis).square() * both).sum())
    return total


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each number over the cases."""
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0]}


def show(result: Mapping[str, Any]) -> str:
    """The table."""
    digits = {"psnr": 2, "ms_ssim": 3, "sharpness": 2, "consistency": 3}
    rows = [[row["name"], *(number(row[name], places) for name, places in digits.items())] for row in result["rows"]]
    said = f"{result['data']}; {result['training_steps']} training steps, {result['sampling_steps']} of sampling"
    return f"{said}\n\n{table(['', *digits], rows)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.enhancement", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/enhancement"))
    parser.add_argument("--quick", action="store_true", help="few phantoms and steps: to see it run, not to compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    result = measure(chosen.out, size=QUICK if chosen.quick else Size(), seed=chosen.seed, device=chosen.device)
    write_json(chosen.out / "enhancement.json", result)
    log.info("numbers in %s", chosen.out / "enhancement.json")
    print(show(result))


if __name__ == "__main__":
    main()
