"""What every benchmark prints and writes: aligned tables, numbers with intervals, and the machine they were taken on."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_diff import __version__

DASH = "–"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def with_interval(metric: Mapping[str, Any], digits: int = 3) -> str:
    """`0.812 [0.790, 0.831]`, from an entry of metrics.json."""
    value, low, high = (metric[part] for part in ("value", "low", "high"))
    return number(value, digits) + ("" if low is None else f" [{number(low, digits)}, {number(high, digits)}]")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, device and versions; no name of host or user."""
    import torch

    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": {"medseg_diff": __version__, "python": platform.python_version(), "torch": torch.__version__},
    }
    if torch.device(device).type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        facts["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return facts


def _processor() -> str:
    """The processor's model where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
