"""Where the numbers are crunched, and how precisely."""

import gc
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from medseg_diff.errors import EnvironmentFault, OutOfMemory, UsageError, is_out_of_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Result = TypeVar("Result")


def find_device(name: str) -> torch.device:
    """auto, cpu, cuda, cuda:N or mps as a device that is there.

    Raises: UsageError for another word, EnvironmentFault where the device is absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise UsageError(f"no device is called `{name}`", fix="use auto, cpu, cuda, cuda:N or mps")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        raise EnvironmentFault(f"this machine has no {name}", fix="use --device cpu, or check the driver")
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: ten bits would break its tolerance between batches
    return torch.device(kind, int(number or 0)) if kind != "cpu" else torch.device("cpu")


def find_precision(precision: str, device: torch.device) -> str:
    """fp32 or bf16; `auto` is bf16 where the hardware multiplies it. Raises: UsageError for another word."""
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"unknown precision `{precision}`", fix="use auto, fp32 or bf16")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast = device.type == "cpu" and "avx512_bf16" in _cpu_flags()
    return "bf16" if fast else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Networks inside run in bf16 where asked."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def halved_to_fit(work: Callable[[int], Result], batch: int) -> tuple[Result, int]:
    """What `work(batch)` returns, begun again with half the batch while memory runs out; and the batch that it took.

    All of the work is done with that one batch, so naming it in the first place gives the same bytes.
    Raises: OutOfMemory where a batch of one is too much.
    """
    while True:
        try:
            return work(batch), batch
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise OutOfMemory(
                    "memory runs out even with one sample per network pass",
                    fix="close other programs, or use --device cpu or a machine with more memory",
                ) from None
        batch //= 2  # outside: the error holds on to what was allocated
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def less_at_once(batch: int, asked: int) -> str:
    """What is said where memory was too small for the batch that was asked for."""
    return f"memory ran out: {batch} samples per network pass instead of {asked}, which changes only rounding"


def processes() -> int:
    """How many processes torchrun or srun started for one training."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))


def make_fabric(device: torch.device, precision: str) -> "Fabric":
    """One device, or, started by torchrun or srun, as many as they name. Raises: UsageError where these do not fit."""
    from lightning_fabric import Fabric  # it brings torch's compiler with it, seconds that only a training needs

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it sets its own level when imported

    spread = processes() > 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))  # what torchrun says; under srun: every device
    nodes = processes() // here if here else int(os.environ.get("SLURM_NNODES", "1"))
    try:
        fabric = Fabric(
            accelerator=device.type,
            devices=here or "auto" if spread else (1 if device.type == "cpu" else [device.index or 0]),
            strategy="ddp_find_unused_parameters_true" if spread else "auto",  # such as the blank image
            num_nodes=nodes if spread else 1,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
    except (RuntimeError, ValueError) as error:  # Fabric's words on what srun or torchrun started
        if not spread:
            raise
        found = f"these {processes()} processes cannot train together: {' '.join(str(error).split()).rstrip('.')}"
        raise UsageError(found, fix="start as many on each node as --ntasks-per-node says, one per GPU") from error
    fabric.launch()
    return fabric


def _cpu_flags() -> str:
    """The processor's features where the system tells them."""
    try:
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return ""
