"""How long a training would take on this machine, from counted arithmetic and a moment's measurement."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg_diff.data.datasets.batch import Items, SeededDraws, batches, cores
from medseg_diff.device import autocast
from medseg_diff.diffusion.condition import Condition
from medseg_diff.training.fit import FitSettings, channels_last

BACKWARD_AND_FORWARD = 3  # a backward pass costs about two forward passes
PROBE_SECONDS = 0.3
BESIDES_CONVOLUTION = 2.5  # norms, activations and memory: what whole networks took here over a bare convolution
QUICK_PASS_SECONDS = 2.0  # a pass that takes less is timed rather than computed
LONG_SECONDS = 12 * 3600.0  # of training, beyond which another recipe is proposed


def forward_flops(build: Callable[[], nn.Module], run: Callable[[nn.Module], object]) -> int:
    """Floating-point operations of `run(build())`, counted on the meta device: no memory, no time."""
    with torch.device("meta"):
        model = build().eval().requires_grad_(False)  # the counter would hook into what hands a weight on as it is
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(model)
    return int(counter.get_total_flops())


def flops_per_second(device: torch.device, precision: torch.dtype, width: int) -> float:
    """What a network of about this width reaches on this device: a 3×3 convolution timed, and a share of it taken."""
    size = 64 if device.type == "cpu" else 256
    image = torch.randn(8, width, size, size, device=device).to(precision).to(memory_format=torch.channels_last)
    convolution = nn.Conv2d(width, width, 3, padding=1, device=device, dtype=precision)
    once = 2 * 9 * width * width * size * size * len(image)
    rates = []
    with torch.no_grad():
        convolution(image)
        end = time.perf_counter() + PROBE_SECONDS
        while time.perf_counter() < end:
            start = time.perf_counter()
            convolution(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates.append(once / (time.perf_counter() - start))
    return max(rates) / BESIDES_CONVOLUTION


@dataclass(frozen=True)
class Work:
    """A training that is yet to come: what `build` makes learns from x_t [B, channels, *size] and, where it has
    `image_channels`, an image; every validation samples it forward `sampled` times. Batches are made of `examples`."""

    build: Callable[[], nn.Module]
    settings: FitSettings
    width: int
    size: Sequence[int]
    channels: int
    image_channels: int = 0
    sampled: int = 0
    examples: Items | None = None

    def seconds(self, device: torch.device, precision: str, *, processes: int = 1) -> float:
        """How long it takes on a device, or as many alike as `processes`, in fp32 or bf16."""
        settings, share = self.settings, self.settings.passes_batch // processes
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with autocast(device, precision):
            one = self._pass_seconds(share, device, dtype)
        forward = one / share / BACKWARD_AND_FORWARD
        sampled = self.sampled * -(-settings.steps // settings.validate_every)
        with_loading = self._beside_loading(one, share, device)
        return settings.steps * settings.accumulate * with_loading + sampled * forward

    def forward(self, network: nn.Module, batch: int, device: torch.device) -> Tensor:
        """The network's answer to a batch of zeros."""
        x = torch.zeros(batch, self.channels, *self.size, device=device)
        image = torch.zeros(batch, self.image_channels, *self.size, device=device) if self.image_channels else None
        answer = network(x, torch.ones(batch, device=device), Condition(image=image))
        assert isinstance(answer, Tensor)
        return answer

    def _beside_loading(self, one: float, batch: int, device: torch.device) -> float:
        """Seconds of a pass and its batch: workers load while a GPU computes, and take a share of the cores beside a CPU."""
        if self.examples is None:
            return one
        draws = SeededDraws(len(self.examples), batch, 2, seed=0)
        stream = batches(self.examples, draws, workers=0)
        next(stream)  # imports, opens files
        start = time.perf_counter()
        next(stream)
        loading = time.perf_counter() - start
        workers = min(self.settings.workers, cores() - 1)
        if not workers:
            return one + loading
        return one + loading / cores() if device.type == "cpu" else max(one, loading / workers)

    def _pass_seconds(self, batch: int, device: torch.device, dtype: torch.dtype) -> float:
        """Seconds of one pass of a batch forward and back: counted operations over a measured rate. Where a pass takes
        moments, a few are timed instead, because small networks spend their time elsewhere than in convolutions."""
        flops = forward_flops(self.build, lambda network: self.forward(network, 1, torch.device("meta")))
        counted = BACKWARD_AND_FORWARD * batch * flops / flops_per_second(device, dtype, self.width)
        if counted >= QUICK_PASS_SECONDS:
            return counted
        network = channels_last(self.build()).to(device)
        return timed_pass(network, lambda network: self.forward(network, batch, device), device)


def timed_pass(model: nn.Module, run: Callable[[nn.Module], Tensor], device: torch.device) -> float:
    """Seconds of one forward and backward pass, the faster of two after a first one that warms up."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run(model).float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    return min(seconds[1:])
