"""`info`: recipes, the starter model, versions and devices, without importing torch."""

import os
import shutil
import subprocess
from typing import Any

from medseg_diff.files import configs_folder
from medseg_diff.run import environment
from medseg_diff.runs import MODEL_CARD, starter_run


def info() -> dict[str, Any]:
    """What is installed and what there is to compute with."""
    configs = configs_folder()
    recipes = sorted(path.relative_to(configs).with_suffix("").as_posix() for path in configs.rglob("*.yaml"))
    return environment() | {"recipes": recipes, "starter": _starter(), "cpus": os.cpu_count(), "gpus": _gpus()}


def _starter() -> dict[str, Any] | None:
    """What the starter model is for, how little it learned from, and where its model card lies; None without one."""
    if (run := starter_run()) is None:
        return None
    facts = {name: run.facts.get(name) for name in ("task", "recipe", "patients")}
    return {"name": run.name, **facts, "model_card": str(run.folder / MODEL_CARD)}


def _gpus() -> list[dict[str, str]]:
    """Devices under the names that nvidia-smi gives them; empty where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    question = [program, "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    keys = ("index", "name", "memory", "driver")
    return [
        dict(zip(keys, map(str.strip, line.split(",")), strict=False)) for line in answer.splitlines() if line.strip()
    ]
