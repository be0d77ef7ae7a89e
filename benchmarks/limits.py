"""How fast this machine multiplies at best, and how many multiplications a piece of work takes."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import wait_for

MATRIX = {"cpu": 2048, "cuda": 8192}
CONVOLUTION = {"cpu": (32, 64, 48), "cuda": (64, 256, 128)}  # batch, channels, side: large enough to feed a core
CALLS = 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def limits(device: torch.device) -> dict[str, dict[str, float]]:
    """GFLOP/s of a matrix product and of a 3×3 convolution (channels last), best of a few, by precision."""
    found: dict[str, dict[str, float]] = {}
    for name, dtype in DTYPES.items():
        n, (batch, channels, side) = MATRIX[device.type], CONVOLUTION[device.type]
        matrix = torch.randn(n, n, device=device).to(dtype)
        x = torch.randn(batch, channels, side, side, device=device).to(dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype).to(memory_format=torch.channels_last)
        found[name] = {
            "matmul": _best(lambda matrix=matrix: matrix @ matrix, device, 2 * n**3),  # type: ignore[misc]
            "convolution": _best(
                lambda x=x, weight=weight: functional.conv2d(x, weight, padding=1),  # type: ignore[misc]
                device,
                2 * 9 * batch * (channels * side) ** 2,
            ),
        }
    return found


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of products, convolutions and attention in `work`."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return int(counter.get_total_flops())


def _best(work: Callable[[], object], device: torch.device, operations: int) -> float:
    seconds = []
    for _ in range(1 + CALLS):
        wait_for(device)
        start = time.perf_counter()
        with torch.no_grad():
            work()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return round(operations / min(seconds[1:]) / 1e9, 1)
