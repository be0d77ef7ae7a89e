"""What a GPU makes of the paper's network and of the default recipe: speed, memory, and whether results depend on company.

    python -m benchmarks.gpu --out DIR [--data cases.csv]          (--device cpu --tiny to see it run anywhere)

Without a table, two phantoms of 240×240×155 are made in memory. SimpleITK, mlflow, pandas and scikit-image are not
needed.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.amount import FULL, TINY, Amount
from benchmarks.invariance import invariance, precisions_of, rough_denoiser
from benchmarks.limit import Arithmetic, arithmetic, matmul_limit
from benchmarks.reporting import machine, number, table
from benchmarks.supervised import parameters, slices_of
from benchmarks.timing import wait_for
from benchmarks.volumes import as_in_cache, first_cases, phantoms_of
from medseg_diff.console import configure, log
from medseg_diff.data.datasets.slices import SliceDataset
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.data.views import AxialSlices
from medseg_diff.device import autocast, find_device, find_precision, make_fabric
from medseg_diff.diffusion import Condition
from medseg_diff.files import write_json
from medseg_diff.methods.plan import Plan
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.fit import fit

RECIPES = {"the paper's": "wolleb", "default": "mask_logits"}


def measure(
    *, data: Path | None = None, data_root: Path | None = None, device: str = "cuda", amount: Amount = FULL
) -> dict[str, Any]:
    """Both recipes on two cases. Returns what goes into gpu.json. Raises: EnvironmentFault where the device is absent."""
    place = find_device(device)
    systems = {
        name: load_recipe(config, task="segment", overrides=amount.overrides) for name, config in RECIPES.items()
    }
    channels = next(iter(systems.values())).channels
    log.info("reading" if data else "making two phantoms of %d×%d×%d", *(() if data else amount.shape))
    images = first_cases(data, data_root, channels) if data else phantoms_of(amount.shape)
    limit, results = matmul_limit(place, amount.matrix), {}
    for name, recipe in systems.items():
        log.info("recipe: %s", name)
        found = _measure_recipe(recipe, images, place, amount)
        for kind in ("training", "sampling"):
            found[kind]["share_of_limit"] = round(1e12 * found[kind]["tflop_per_second"] / limit, 4)
        results[name] = found
    return {
        "schema": 1,
        "benchmark": "gpu",
        "machine": machine(str(place)),
        "data": f"{len(images)} cases of {'a table' if data else 'phantoms'}, {images[0].image.shape[1:]} voxels",
        "matmul_limit": {"tflop_per_second": round(limit / 1e12, 3), "matrix": amount.matrix, "precision": "bf16"},
        "recipes": results,
        "conventions": {
            "training": "slices per second after warm-up, forward, backward, AdamW and moving average; `loaded`: with the "
            "recipe's own loading and augmentation, `compute`: one batch that stays on the device",
            "sampling": f"about {amount.timed_passes} passes timed, the rest extrapolated in proportion (`extrapolated`)",
            "share_of_limit": "FLOP of convolutions, products and attention in a second, by what a bf16 product of square "
            "matrices reaches on the same device; of the training `compute`",
            "memory": "peak allocated by PyTorch, GB of 2^30 bytes",
        },
    }


def _measure_recipe(
    recipe: SegmentationRecipe, images: Sequence[CaseImages], device: torch.device, amount: Amount
) -> dict[str, Any]:
    precision = find_precision(recipe.training.precision, device)
    started = time.perf_counter()
    cases = [prepare_case(case, recipe.preparation) for case in images]
    prepare_seconds = (time.perf_counter() - started) / len(images)
    middle = cases[0].image.shape[3] // 2
    shown = recipe.view.cut(cases[0].image)[middle : middle + amount.checked_slices].contiguous()
    of_slice = arithmetic(recipe)
    training = _training(recipe, cases, device, precision, amount)
    training["tflop_per_second"] = round(training["slices_per_second"]["compute"] * of_slice.trained / 1e12, 4)
    return {
        "parameters": parameters(recipe.build_denoiser()),
        "precision": precision,
        "gflop_of_a_slice": {name: round(flop / 1e9, 3) for name, flop in of_slice._asdict().items()},
        "training": training,
        "forward_slices_per_second": _forward(recipe, shown[:1], device, precision, amount),
        "sampling": {
            "prepare_seconds_per_volume": round(prepare_seconds, 2),
            **_sampling(recipe, cases[0], device, precision, amount, of_slice),
        },
        "invariance": {
            kind: invariance(recipe, shown, members=amount.checked_members, device=device, precision=kind)
            for kind in precisions_of(device)
        },
    }


def _training(
    recipe: SegmentationRecipe, cases: Sequence[Prepared], device: torch.device, precision: str, amount: Amount
) -> dict[str, Any]:
    """Slices a second of the training loop."""
    background, seed = recipe.preparation.background, recipe.training.seed
    assert isinstance(recipe.view, AxialSlices), "this benchmark is about slices"
    slices = SliceDataset(
        [as_in_cache(case) for case in cases],
        recipe.view,
        recipe.augmentation,
        recipe.regions,
        background=background,
        seed=seed,
    )
    steps = amount.warm_up_steps + amount.timed_steps
    settings = recipe.training.but(steps=steps)
    fabric = make_fabric(device, precision)
    one = next(slices_of(recipe, slices, 1)).to(device)
    sources: dict[str, Iterable[Any]] = {"compute": repeat(one), "loaded": slices_of(recipe, slices, steps)}
    speeds = {}
    _reset_peak(device)
    for name, source in sources.items():
        objective = Denoising(recipe.build_denoiser(), MaskAndImage(recipe.space), seed=seed)
        started = time.perf_counter()
        for progress in fit(objective, source, settings, fabric):
            if progress.step in (amount.warm_up_steps, steps):
                progress.read()
                wait_for(device)
                seconds = time.perf_counter() - started
                started = time.perf_counter()
        speeds[name] = round(recipe.training.batch * amount.timed_steps / seconds, 2)
    return {
        "batch": recipe.training.batch,
        "size": list(recipe.view.size),
        "slices_per_second": speeds,
        "memory_gb": _peak_gb(device),
    }


def _forward(
    recipe: SegmentationRecipe, image: Tensor, device: torch.device, precision: str, amount: Amount
) -> dict[str, float | None]:
    """Slices a second of one pass of the network without gradients, for each batch size; None: out of memory."""
    network = rough_denoiser(recipe).network
    assert isinstance(network, torch.nn.Module)
    network.to(device)
    found: dict[str, float | None] = {}
    for size in amount.batches:
        seen = image.to(device).expand(size, *image.shape[1:]).contiguous()
        x, t = torch.randn(size, len(recipe.regions), *image.shape[2:], device=device), torch.ones(1, device=device)
        try:
            with torch.no_grad(), autocast(device, precision):
                for step in range(amount.warm_up_steps + amount.timed_steps):
                    if step == amount.warm_up_steps:
                        wait_for(device)
                        started = time.perf_counter()
                    network(x, t, Condition(image=seen))
            wait_for(device)
            found[str(size)] = round(size * amount.timed_steps / (time.perf_counter() - started), 2)
        except torch.OutOfMemoryError:
            found[str(size)] = None
    return found


def _sampling(
    recipe: SegmentationRecipe,
    case: Prepared,
    device: torch.device,
    precision: str,
    amount: Amount,
    of_slice: Arithmetic,
) -> dict[str, Any]:
    """Seconds for the ensemble of a whole volume at the recipe's members, steps and network batch."""
    denoiser, plan = recipe.for_masks(rough_denoiser(recipe).to(device)), recipe.plan()
    images = recipe.view.cut(case.image).to(device).contiguous()
    slices = recipe.view.for_sampling(case.brain)
    batches, steps = plan.batches(slices), len(plan.times) - 1
    timed_steps = min(steps, max(1, amount.timed_passes // 2))
    timed_batches = min(batches, max(1, amount.timed_passes // timed_steps))
    short = Plan(
        recipe.schedule.times(timed_steps), plan.solver, plan.members, plan.network_batch, plan.members_at_once
    )

    def draw(plan: Plan, batches: int) -> None:
        drawn = sample_masks(denoiser, images, slices, plan, regions=len(recipe.regions), seed_of=seed_of)
        with autocast(device, precision):
            for _ in zip(range(min(batches * plan.network_batch, len(slices) * plan.members)), drawn, strict=False):
                pass
        wait_for(device)

    draw(Plan(recipe.schedule.times(1), plan.solver, plan.members, plan.network_batch, plan.members_at_once), 1)
    _reset_peak(device)
    started = time.perf_counter()
    draw(short, timed_batches)
    seconds = time.perf_counter() - started
    passes, timed = batches * steps, timed_batches * timed_steps
    prepared = len(plan.views) * -(-len(slices) // plan.network_batch)  # batches, each slice once
    flop = plan.network_batch * (timed * of_slice.sampled + prepared * of_slice.once)
    return {
        "slices": len(slices),
        "size": list(images.shape[2:]),
        "members": plan.members,
        "steps": steps,
        "network_batch": plan.network_batch,
        "network_passes": passes,
        "timed_passes": timed,
        "extrapolated": timed < passes,
        "seconds_per_volume": round(seconds * passes / timed, 2),
        "tflop_per_second": round(flop / seconds / 1e12, 4),
        "memory_gb": _peak_gb(device),
    }


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float | None:
    """None on a CPU, which keeps no such count."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def show(result: dict[str, Any]) -> str:
    """A table of speeds and one of invariance."""
    speeds, checks = [], []
    for name, found in result["recipes"].items():
        training, sampling = found["training"], found["sampling"]
        speeds.append(
            [
                name,
                f"{found['parameters'] / 1e6:.1f} M",
                number(training["slices_per_second"]["compute"], 1),
                number(training["slices_per_second"]["loaded"], 1),
                _percent(training["share_of_limit"]),
                number(training["memory_gb"], 1),
                f"{sampling['steps']} × {sampling['members']}",
                number(sampling["seconds_per_volume"], 1) + (" (extrapolated)" if sampling["extrapolated"] else ""),
                _percent(sampling["share_of_limit"]),
                number(sampling["memory_gb"], 1),
            ]
        )
        for precision, check in found["invariance"].items():
            batches = check["batch_1_against_32"]
            checks.append(
                [
                    f"{name}, {precision}",
                    *("yes" if equal else "NO" for equal in check["byte_equal"].values()),
                    f"{batches['largest_difference']:.1e}",
                    f"{100 * batches['mask_voxels_equal']:.3f} %",
                    "kept" if batches["kept"] else "NOT kept",
                ]
            )
    columns = ["recipe", "size", "train/s", "loaded", "of limit", "GB", "steps × members", "s/volume", "of limit", "GB"]
    against = ["bytes equal", "in any order", "in a shard", "batch 1 and 32", "mask voxels", "bound"]
    limit = f"bf16 matrix products: {number(result['matmul_limit']['tflop_per_second'], 1)} TFLOP/s"
    head = f"{result['machine']['device']}; {result['data']}; training in slices per second; {limit}"
    return "\n\n".join([head, table(columns, speeds), table(against, checks)])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/gpu"))
    parser.add_argument("--data", type=Path, help="table of real cases; its first two are used")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and phantoms, to try the script")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    amount = TINY if chosen.tiny else FULL
    result = measure(data=chosen.data, data_root=chosen.data_root, device=chosen.device, amount=amount)
    write_json(chosen.out / "gpu.json", result)
    print(show(result))


if __name__ == "__main__":
    main()
