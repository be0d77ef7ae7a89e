"""What the choices of the engine are worth: two ways of doing the same work, timed in turn in one process.

    python -m benchmarks.speed [--quick] [--out DIR]

Ratios, because a shared machine has no absolute speed; both the best and the median of each are given.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.reporting import machine, table
from benchmarks.supervised import parameters
from benchmarks.timing import in_turn
from medseg_diff.console import configure, log
from medseg_diff.data.datasets.batch import Batch
from medseg_diff.device import autocast, find_device
from medseg_diff.diffusion import Condition, Denoiser
from medseg_diff.errors import ConfigError
from medseg_diff.files import write_json
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.networks.norm import GroupNorm, GroupNormSiLU
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import UNet, UNetSettings
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.training.denoising import Denoising, MaskAndImage
from medseg_diff.training.fit import channels_last

MONAI_WIDTHS = range(32, 257, 32)  # its norms want multiples of their groups


@dataclass(frozen=True)
class Duel:
    """Two ways of doing the same: `slow` is what `fast` is compared with."""

    name: str
    slow: tuple[str, Callable[[], object]]
    fast: tuple[str, Callable[[], object]]
    slices: int  # that one call works on, for seconds a slice


@dataclass(frozen=True)
class Setting:
    """One recipe's U-Net (of its prior's size, where it has one) with fixed weights and a fixed batch, on a device."""

    recipe: SegmentationRecipe
    denoiser: Denoiser
    batch: Batch
    device: torch.device

    @classmethod
    def of(cls, recipe: SegmentationRecipe, batch: int, device: torch.device) -> "Setting":
        generator = torch.Generator().manual_seed(0)
        if isinstance(recipe.network, WithPriorSettings):
            recipe = recipe.but(network=recipe.network.prior.model_dump(mode="json"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            denoiser = recipe.build_denoiser()
        image = torch.randn(batch, len(recipe.channels), *recipe.view.size, generator=generator)
        inside = torch.rand(batch, len(recipe.regions), *recipe.view.size, generator=generator) > 0.8
        return cls(recipe, denoiser.to(device), Batch(image, inside.float() * 2 - 1).to(device), device)

    @property
    def network(self) -> UNet:
        assert isinstance(self.denoiser.network, UNet)
        return self.denoiser.network

    def with_network(self, network: nn.Module) -> Denoiser:
        """The denoiser round another network of the same shape."""
        return self.recipe.denoiser.around(network, self.recipe.schedule)


def duels(setting: Setting, *, slices: int, members: int) -> Iterator[Duel]:
    """Every comparison; `slices` and `members` of the ensemble that is drawn."""
    size = len(setting.batch)
    plain, layered = (copy.deepcopy(setting.network) for _ in range(2))
    channels_last(layered)
    yield Duel(
        "forward: precision and layout",
        ("fp32, NCHW", lambda: _forward(setting, plain, "fp32")),
        ("bf16, channels last", lambda: _forward(setting, layered, "bf16")),
        size,
    )
    yield Duel(
        "training step: precision and layout",
        ("fp32, NCHW", _training_step(setting, copy.deepcopy(plain), "fp32")),
        ("bf16, channels last", _training_step(setting, copy.deepcopy(layered), "bf16")),
        size,
    )
    yield Duel(
        "training step: norm",
        ("torch.nn.GroupNorm", _training_step(setting, with_torch_norms(layered), "bf16")),
        ("ours", _training_step(setting, copy.deepcopy(layered), "bf16")),
        size,
    )
    yield Duel(
        "sampling: members",
        ("one by one", lambda: _sample(setting, layered, slices, members, network_batch=1)),
        ("in the batch", lambda: _sample(setting, layered, slices, members, network_batch=slices * members)),
        slices,
    )
    ours, network = parameters(plain), setting.recipe.network
    assert isinstance(network, UNetSettings), "our own U-Net is what is measured"
    for fold in dict.fromkeys([1, network.stem]):
        theirs = channels_last(monai_diffusion_unet(setting.recipe, ours, fold)).to(setting.device)
        yield Duel(
            f"forward: U-Net, {'full' if fold == 1 else 'folded'} grid for MONAI's",
            (
                f"MONAI DiffusionModelUNet, {parameters(theirs):,}",
                partial(_forward, setting, theirs, "bf16"),
            ),
            (f"ours, {ours:,} parameters", lambda: _forward(setting, layered, "bf16")),
            size,
        )


def with_torch_norms(network: nn.Module) -> nn.Module:
    """A copy of a network with PyTorch's own group norm, same weights."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNorm):
                kind = TorchNormSiLU if isinstance(child, GroupNormSiLU) else TorchNorm
                norm = kind(child.groups, child.weight.numel(), eps=child.epsilon).to(child.weight.device)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
    return network


class TorchNorm(nn.GroupNorm):
    """PyTorch's norm, adaptive as the papers' code has it: what scales and shifts a sample comes after it."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        if scale is None or shift is None:
            return x
        scale, shift = (part.to(x.dtype).view(*part.shape, *(1,) * (x.ndim - 2)) for part in (scale, shift))
        return torch.addcmul(shift, x, 1 + scale)


class TorchNormSiLU(TorchNorm):
    """The same, and SiLU of it."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return functional.silu(super().forward(x, scale, shift))


class MonaiDiffusion(nn.Module):
    """MONAI's DiffusionModelUNet behind our networks' signature; the image is concatenated, the grid folded by `fold`."""

    def __init__(self, network: nn.Module, fold: int) -> None:
        super().__init__()
        self.network, self.fold = network, fold

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.image is not None
        seen = functional.pixel_unshuffle(torch.cat([x_t, condition.image], dim=1), self.fold)
        return functional.pixel_shuffle(self.network(seen, t.expand(len(x_t))), self.fold)


def monai_diffusion_unet(recipe: SegmentationRecipe, wanted: int, fold: int) -> nn.Module:
    """As many levels, blocks and attention as the recipe's network, as wide as comes closest to `wanted` parameters."""
    from monai.networks.nets import DiffusionModelUNet

    settings, regions = recipe.network, len(recipe.regions)
    assert isinstance(settings, UNetSettings), "its size is taken from our own U-Net"

    def build(width: int) -> nn.Module:
        return DiffusionModelUNet(
            spatial_dims=2,
            in_channels=(regions + len(recipe.channels)) * fold**2,
            out_channels=regions * fold**2,
            channels=[width * multiplier for multiplier in settings.multipliers],
            attention_levels=[level in settings.attention for level in range(len(settings.multipliers))],
            num_res_blocks=settings.blocks,
            num_head_channels=width,
            norm_num_groups=settings.groups,
        )

    with torch.device("meta"):
        width = min(MONAI_WIDTHS, key=lambda width: abs(parameters(build(width)) - wanted))
    return MonaiDiffusion(build(width), fold)


def _forward(setting: Setting, network: nn.Module, precision: str) -> None:
    batch, device = setting.batch, setting.device
    network.eval()
    with torch.no_grad(), autocast(device, precision):
        network(batch.mask, torch.full((1,), 500, device=device), Condition(image=batch.image))


def _training_step(setting: Setting, network: nn.Module, precision: str) -> Callable[[], None]:
    """Forward, backward and AdamW on one network of its own."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    objective = Denoising(setting.with_network(network), MaskAndImage(), seed=0)

    def step() -> None:
        network.train()
        with autocast(setting.device, precision):
            turns = list(objective.turns(setting.batch, 0))
        for turn in turns:
            turn.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _sample(setting: Setting, network: nn.Module, slices: int, members: int, *, network_batch: int) -> None:
    network.eval()
    plan = setting.recipe.plan(members=members, network_batch=network_batch)
    denoiser = setting.recipe.for_masks(setting.with_network(network))
    images, regions = setting.batch.image[:slices], len(setting.recipe.regions)
    with autocast(setting.device, "bf16"):
        for _ in sample_masks(
            denoiser, images, range(slices), plan, regions=regions, seed_of=lambda z, member: seed_of(0, z, member)
        ):
            pass


def measure(
    recipe: SegmentationRecipe,
    *,
    device: str = "cpu",
    batch: int = 32,
    slices: int = 4,
    members: int = 5,
    rounds: int = 9,
) -> dict[str, Any]:
    """Time every duel. Returns what goes into speed.json. Raises: ConfigError for more slices than the batch holds."""
    if slices > batch:
        raise ConfigError(f"{slices} slices out of a batch of {batch}", fix="raise the batch")
    place = find_device(device)
    rows = []
    for duel in duels(Setting.of(recipe, batch, place), slices=slices, members=members):
        taken = in_turn(dict([duel.slow, duel.fast]), rounds=rounds, device=place)
        slow, fast = taken[duel.slow[0]], taken[duel.fast[0]]
        log.info("%s: %.2f times", duel.name, slow.best / fast.best)
        rows.append(
            {
                "name": duel.name,
                "slow": duel.slow[0],
                "fast": duel.fast[0],
                "slow_seconds_per_slice": {"best": slow.best / duel.slices, "median": slow.median / duel.slices},
                "fast_seconds_per_slice": {"best": fast.best / duel.slices, "median": fast.median / duel.slices},
                "ratio": {"best": slow.best / fast.best, "median": slow.median / fast.median},
            }
        )
    return {"schema": 1, "benchmark": "speed", "machine": machine(str(place)), "rounds": rounds, "duels": rows}


def show(result: dict[str, Any]) -> str:
    """One line a duel; milliseconds a slice are medians."""
    columns = ["", "slower way", "ms/slice", "faster way", "ms/slice", "ratio best", "median"]
    rows = [
        [
            row["name"],
            row["slow"],
            f"{1000 * row['slow_seconds_per_slice']['median']:.2f}",
            row["fast"],
            f"{1000 * row['fast_seconds_per_slice']['median']:.2f}",
            f"{row['ratio']['best']:.2f}",
            f"{row['ratio']['median']:.2f}",
        ]
        for row in result["duels"]
    ]
    facts = result["machine"]
    return f"{facts['device']} ({facts['processor']}), {facts['threads']} threads\n\n{table(columns, rows)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/speed"))
    parser.add_argument("--config", default="quick/mask_logits")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the recipe")
    chosen = parser.parse_args()
    configure(verbosity=0, progress=True)
    recipe = load_recipe(chosen.config, task="segment", overrides=chosen.overrides)
    result = measure(recipe, device=chosen.device, rounds=3 if chosen.quick else 9)
    write_json(chosen.out / "speed.json", {"config": chosen.config, **result})
    print(show(result))


if __name__ == "__main__":
    main()
