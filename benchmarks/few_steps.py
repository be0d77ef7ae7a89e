"""Is anything lost by few steps? The same trained networks with the schedule's thousand steps, and as the recipe has it.

    python -m benchmarks.few_steps [--only segmentation|anomaly] [--quick] [--out DIR]

Trained on phantoms through the public verbs; scored on slices of others. Segmentation: MONAI's network of
`benchmarks.reference`, Dice of the ensemble's mean and GED² against three raters. Anomaly: inversion guided by a classifier,
500 + 500 steps as the paper has it against the recipe's, AUROC of the smoothed map in the brain. A training that is finished
in DIR is used again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.reference_subject import CPU, NETWORK
from benchmarks.reporting import machine, number, table
from medseg_diff import phantom, train_anomaly, train_seg
from medseg_diff.console import bar, configure
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.data.views import fit_to
from medseg_diff.device import autocast
from medseg_diff.diffusion import SeededNoise
from medseg_diff.files import read_facts, write_json
from medseg_diff.methods.anomaly.engine import Networks
from medseg_diff.methods.anomaly.inversion import Inversion
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.metrics.anomaly import rank
from medseg_diff.metrics.diversity import distances
from medseg_diff.metrics.intervals import mean_interval
from medseg_diff.metrics.overlap import dice
from medseg_diff.phantoms.make import PhantomSettings, make_case
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.spaces import space_of
from medseg_diff.recipes.trained import Trained, open_run
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.training.fit import channels_last

SEGMENTATION, ANOMALY = "quick/phantom", "quick/phantom"
SEGMENTATION_OVERRIDES = (NETWORK, "sampling.cut={kind: half}", "sampling.members=5", "sampling.network_batch=30")
DEPTH, LENGTH = 500, 1000  # of the paper's inversion, and of both schedules
TEST_SEED, RATERS, SMOOTHING = 10_000, 3, 2.0  # voxels


@dataclass(frozen=True)
class Amount:
    """Phantoms to learn from, slices to test on (two of a case), steps of the training, and the many steps."""

    cases: int = 24
    slices: int = 30
    training_steps: int = 300
    many: int = LENGTH
    deep: int = DEPTH
    shape: tuple[int, int, int] = (64, 64, 48)
    changes: tuple[str, ...] = ()  # of both recipes' settings


QUICK = Amount(cases=6, slices=2, training_steps=10, many=20, deep=10)


@dataclass(frozen=True)
class Slices:
    """Slices of phantoms that no network has seen: image [N, C, H, W]; mask and brain [N, H, W] and raters [N, R, H, W] of
    booleans."""

    image: Tensor
    mask: np.ndarray
    brain: np.ndarray
    raters: np.ndarray

    @classmethod
    def of(cls, recipe: SegmentationRecipe | AnomalyRecipe, amount: Amount) -> "Slices":
        """Of each case the two slices with most of the lesion in them."""
        settings = PhantomSettings(
            cases=amount.slices // 2, shape=amount.shape, healthy=0, raters=RATERS, seed=TEST_SEED
        )
        parts: list[tuple[Tensor, ...]] = []
        for index in range(settings.cases):
            made = make_case(settings, index)
            image = np.stack([made.images[channel] for channel in recipe.channels]).astype(np.float32)
            reference, raters = made.seg.astype(np.int16), np.stack(made.raters).astype(np.int16)
            case = CaseImages(made.name, recipe.channels, image, made.affine, reference, raters, ())
            parts.append(_largest(prepare_case(case, recipe.preparation), recipe))
        images, mask, brain, masks = (torch.cat(each) for each in zip(*parts, strict=True))
        return cls(images, mask[:, 0].numpy() > 0, brain[:, 0].numpy() > 0, masks.numpy() > 0)


def _largest(case: Prepared, recipe: SegmentationRecipe | AnomalyRecipe) -> tuple[Tensor, ...]:
    """Image, mask, brain and raters of the two slices with most lesion, at the size of training."""
    assert case.reference is not None and case.raters is not None
    view = recipe.view
    rows = (view.cut(case.reference) > 0).flatten(1).sum(1).argsort(descending=True)[:2]
    maps = [case.image, case.reference.float(), case.brain.float(), case.raters.float()]
    fills = [recipe.preparation.background, 0.0, 0.0, 0.0]
    chosen = [(view.cut(part)[rows], fill) for part, fill in zip(maps, fills, strict=True)]
    return tuple(torch.stack([fit_to(view.size, each, fill=fill) for each in slices]) for slices, fill in chosen)


def segmentation(out: Path, amount: Amount) -> list[dict[str, Any]]:
    """Mean Dice and GED² of ensembles drawn with few steps and with many, of the same noise."""
    overrides = [*SEGMENTATION_OVERRIDES, *_trained_for("training", amount.training_steps), *amount.changes]
    data = phantom(out / "phantoms", cases=amount.cases, shape=amount.shape, healthy=0.0, raters=RATERS, overwrite=True)
    known: dict[str, Any] = {"overrides": overrides, "runs": out, "mlflow": False, "resume": "auto"}
    run = train_seg(data, config=SEGMENTATION, out=out / "segmentation", **known)
    assert isinstance(run, Run)
    trained = open_run(run, SegmentationRecipe, device="cpu")
    recipe, slices = trained.recipe, Slices.of(trained.recipe, amount)
    denoiser = recipe.for_masks(recipe.denoiser.around(_network(trained, "best"), recipe.schedule))
    rows = []
    for steps in (recipe.sampling.steps, amount.many):
        plan, every = recipe.plan(steps=steps), range(len(slices.image))
        probability = torch.zeros(len(every), plan.members, *slices.mask.shape[1:])
        with autocast(CPU, trained.precision), bar(f"{steps} steps", len(every) * plan.members) as advance:
            drawn = sample_masks(denoiser, slices.image, every, plan, regions=1, seed_of=seed_of, advance=advance)
            for sample, mask in drawn:
                probability[sample.slice, sample.member] = mask[0]
        members = probability.numpy() > 0.5
        means = probability.mean(1).numpy() > 0.5
        rows.append(
            {
                "steps": steps,
                "dice": [dice(mask, reference) for mask, reference in zip(means, slices.mask, strict=True)],
                "ged2": [distances(own, raters).ged2 for own, raters in zip(members, slices.raters, strict=True)],
            }
        )
    return rows


def anomaly(out: Path, amount: Amount) -> list[dict[str, Any]]:
    """AUROC of the recipe's inversion, and of the paper's depth and steps, by the same networks."""
    overrides = ["deepest=null", *_trained_for("training", amount.training_steps)]
    overrides += [*_trained_for("classifier_training", amount.training_steps), *amount.changes]
    data = phantom(out / "phantoms_anomaly", cases=amount.cases, shape=amount.shape, healthy=0.4, overwrite=True)
    known: dict[str, Any] = {"overrides": overrides, "runs": out, "mlflow": False, "resume": "auto"}
    run = train_anomaly(data, config=ANOMALY, out=out / "anomaly", **known)
    assert isinstance(run, Run)
    trained = open_run(run, AnomalyRecipe, device="cpu")
    recipe, slices = trained.recipe, Slices.of(trained.recipe, amount)
    denoiser = recipe.denoiser.around(_network(trained, "denoiser"), recipe.schedule)
    networks = Networks(
        denoiser,
        trained.networks["classifier"],
        recipe.channels,
        space_of(recipe.space, {}),
        recipe.preparation.background,
    )
    rows = []
    assert isinstance(recipe.engine, Inversion)
    for engine in (recipe.engine, recipe.engine.but(depth=amount.deep, steps=amount.deep)):
        noise = SeededNoise([seed_of(0, z) for z in range(len(slices.image))], recipe.noise)
        with autocast(CPU, trained.precision):
            score = engine.score(slices.image, networks, noise).score.float()
        smooth = gaussian_filter(score[:, 0].numpy(), sigma=(0, SMOOTHING, SMOOTHING))
        ranking = rank(smooth[slices.brain], slices.mask[slices.brain])
        rows.append(
            {"depth": engine.depth, "steps": engine.steps, "auroc": ranking.auroc(), "ap": ranking.average_precision()}
        )
    return rows


def _trained_for(part: str, steps: int) -> list[str]:
    return [f"{part}.steps={steps}", f"{part}.validate_every={steps}"]


def _network(trained: Trained[Any], name: str) -> torch.nn.Module:
    return channels_last(trained.networks[name]).eval()


PARTS = {"segmentation": segmentation, "anomaly": anomaly}


def measure(out: Path, amount: Amount = Amount(), parts: Sequence[str] = tuple(PARTS)) -> dict[str, Any]:
    """Returns what goes into few_steps.json, written after each part; one that stands there already, of the same amount on
    such a machine, stays."""
    result: dict[str, Any] = {"schema": 1, "benchmark": "few_steps", "machine": machine(), "amount": asdict(amount)}
    before = read_facts(out / "few_steps.json")
    if all(before.get(name) == value for name, value in result.items()):
        result = before
    for part in parts:
        result[part] = PARTS[part](out, amount)
        write_json(out / "few_steps.json", result)
    return result


def show(result: dict[str, Any]) -> str:
    """A small table for each part."""
    tables = {"segmentation": _of_masks, "anomaly": _of_maps}
    return "\n\n".join(line for part, lines in tables.items() if part in result for line in lines(result))


def _of_masks(result: dict[str, Any]) -> list[str]:
    masks = [[f"{r['steps']} steps", number(mean(r["dice"])), number(mean(r["ged2"]))] for r in result["segmentation"]]
    few, many = result["segmentation"]
    differences = [
        f"{name}: few − many {number(low)} … {number(high)} (95 % interval over slices)"
        for name in ("dice", "ged2")
        for _, low, high, _ in [astuple(mean_interval(np.subtract(few[name], many[name]).tolist()))]
    ]
    return [table(["", "Dice", "GED²"], masks), *differences]


def _of_maps(result: dict[str, Any]) -> list[str]:
    maps = [
        [f"{r['steps']} + {r['steps']} steps to {r['depth']}", number(r["auroc"]), number(r["ap"])]
        for r in result["anomaly"]
    ]
    return [table(["", "AUROC", "average precision"], maps)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/few_steps"))
    parser.add_argument("--only", choices=tuple(PARTS), help="one of the two parts")
    parser.add_argument("--quick", action="store_true", help="few steps and slices: to see it run, not to compare")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    parts = (chosen.only,) if chosen.only else tuple(PARTS)
    print(show(measure(chosen.out, QUICK if chosen.quick else Amount(), parts)))


if __name__ == "__main__":
    main()
