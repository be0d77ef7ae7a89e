"""How hard the process that trains works: cores, memory, GPU and speed, as MLflow's `System metrics` shows them."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

EVERY_SECONDS = 10.0


class SystemLoad:
    """Read off this process at most every ten seconds; a reading takes less than a millisecond."""

    def __init__(self) -> None:
        self._then, self._used, self._step = time.monotonic(), _cpu_seconds(), -1
        self._gpu_is_told = True

    def read(self, step: int) -> dict[str, float]:
        """What is known by now, under MLflow's `system/`; nothing where the last reading is not long ago."""
        now, used = time.monotonic(), _cpu_seconds()
        passed = now - self._then
        if passed < EVERY_SECONDS and self._step >= 0:
            return {}
        found = {"cpu_cores_used": (used - self._used) / max(passed, 1e-3), "process_memory_megabytes": _memory_mb()}
        if step > self._step >= 0:
            found["steps_per_second"] = (step - self._step) / passed
        self._then, self._used, self._step = now, used, step
        return {f"system/{name}": value for name, value in (found | self._gpu()).items()}

    def _gpu(self) -> dict[str, float]:
        """Of the GPU in use; how busy it is only where NVIDIA's library (nvidia-ml-py) is installed."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return {}
        free, total = torch.cuda.mem_get_info()
        found = {
            "gpu_memory_usage_megabytes": (total - free) / 1e6,
            "gpu_memory_usage_percentage": 100 - 100 * free / total,
        }
        if self._gpu_is_told:
            self._gpu_is_told = False
            with suppress(Exception):  # as many reasons as there are drivers
                found["gpu_utilization_percentage"] = float(torch.cuda.utilization())
                self._gpu_is_told = True
        return found


def _cpu_seconds() -> float:
    """Of this process and of loader workers that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _memory_mb() -> float:
    """What the process holds in memory; where the system does not tell, the most that it ever held."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    import resource  # of Unix

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3
