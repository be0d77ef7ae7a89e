"""Where the numbers are crunched, and how precisely."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from medseg_diff.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric


def find_device(name: str) -> "torch.device":
    """auto, cpu, cuda, cuda:N or mps as a device that is there.

    Raises: UsageError for another word, EnvironmentFault where the device is absent.
    """
    import torch

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


def find_precision(wanted: str, device: "torch.device") -> str:
    """fp32 or bf16; `auto` is bf16 where the hardware multiplies it."""
    import torch

    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast = device.type == "cpu" and "avx512_bf16" in _cpu_flags()
    return "bf16" if fast else "fp32"


def autocast(device: "torch.device", precision: str) -> AbstractContextManager[object]:
    """Networks inside run in bf16 where asked."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def make_fabric(device: "torch.device", precision: str) -> "Fabric":
    """One device, or, started by torchrun or srun, as many as they name."""
    import logging
    import os

    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it sets its own level when imported

    spread = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1
    fabric = Fabric(
        accelerator=device.type,
        devices="auto" if spread else (1 if device.type == "cpu" else [device.index or 0]),
        strategy="ddp" if spread else "auto",
        num_nodes=int(os.environ.get("SLURM_NNODES", "1")) if spread else 1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


def _cpu_flags() -> str:
    """The processor's features where the system tells them."""
    from pathlib import Path

    try:
        return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return ""
