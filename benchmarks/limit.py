"""What a device multiplies at most, and how many multiplications a network takes: products, convolutions, attention."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import in_turn
from medseg_diff.diffusion import Condition, Denoiser
from medseg_diff.diffusion.denoiser import prepared
from medseg_diff.diffusion.losses import denoising_loss, hybrid
from medseg_diff.recipes.segmentation import SegmentationRecipe

ROUNDS = 10


def matmul_limit(device: torch.device, size: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP per second of a product of two square matrices, the best of some."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(one)

    def multiply() -> None:
        torch.mm(one, other, out=result)

    taken = in_turn({"product": multiply}, rounds=ROUNDS, device=device, warm_up=3)
    return 2 * size**3 / taken["product"].best


def convolution_limit(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a 3×3 convolution of 64 channels, channels last, the best of some."""
    batch, channels, side = 32, 64, 48
    x, weight = torch.randn(batch, channels, side, side), torch.randn(channels, channels, 3, 3)
    x, weight = (part.to(device, dtype).to(memory_format=torch.channels_last) for part in (x, weight))

    def convolve() -> None:
        with torch.no_grad():
            functional.conv2d(x, weight, padding=1)

    taken = in_turn({"convolution": convolve}, rounds=ROUNDS, device=device, warm_up=3)
    return 2 * 9 * batch * (channels * side) ** 2 / taken["convolution"].best


class Arithmetic(NamedTuple):
    """FLOP of one slice: a pass of the network while sampling, what it looks at once before all members and steps, and a
    training step, forward and backward."""

    sampled: int
    once: int
    trained: int


def arithmetic(recipe: SegmentationRecipe) -> Arithmetic:
    """Counted on the meta device, which takes neither memory nor time."""
    with torch.device("meta"):
        denoiser = recipe.build_denoiser()
        assert isinstance(denoiser, Denoiser)
        size, t = recipe.view.size, torch.ones(1, dtype=torch.long)
        image, x_t = torch.zeros(1, len(recipe.channels), *size), torch.zeros(1, len(recipe.regions), *size)
        with torch.no_grad():
            known = prepared(denoiser, Condition(image=image))

        def step() -> None:
            losses = denoising_loss(denoiser, x_t, t, torch.zeros_like(x_t), Condition(image=image))
            hybrid(losses, denoiser.schedule.length, dice=denoiser.dice).mean().backward()

        return Arithmetic(
            sampled=counted(lambda: denoiser.output(x_t, t, known)),
            once=counted(lambda: prepared(denoiser, Condition(image=image))),
            trained=counted(step, gradients=True),
        )


def counted(run: Callable[[], object], *, gradients: bool = False) -> int:
    """FLOP of what is done."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients):
        run()
    return int(counter.get_total_flops())
