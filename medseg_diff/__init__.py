"""Diffusion models for brain MR: segmentation with uncertainty. The verbs of the command line are functions here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: the command line must answer before torch could be loaded.
_VERBS = {
    "anomaly": "medseg_diff.tasks.apply.anomaly",
    "demo": "medseg_diff.tasks.demo",
    "evaluate": "medseg_diff.tasks.evaluate",
    "info": "medseg_diff.tasks.info",
    "phantom": "medseg_diff.tasks.phantom",
    "prepare": "medseg_diff.tasks.prepare",
    "segment": "medseg_diff.tasks.apply.segment",
    "selftest": "medseg_diff.tasks.selftest",
    "train_anomaly": "medseg_diff.tasks.train.anomaly",
    "train_seg": "medseg_diff.tasks.train.segmentation",
    "ui": "medseg_diff.tasks.ui",
    "validate": "medseg_diff.tasks.validate",
}

if TYPE_CHECKING:
    from medseg_diff.tasks.apply.anomaly import anomaly
    from medseg_diff.tasks.apply.segment import segment
    from medseg_diff.tasks.demo import demo
    from medseg_diff.tasks.evaluate import evaluate
    from medseg_diff.tasks.info import info
    from medseg_diff.tasks.phantom import phantom
    from medseg_diff.tasks.prepare import prepare
    from medseg_diff.tasks.selftest import selftest
    from medseg_diff.tasks.train.anomaly import train_anomaly
    from medseg_diff.tasks.train.segmentation import train_seg
    from medseg_diff.tasks.ui import ui
    from medseg_diff.tasks.validate import validate

__all__ = [
    "__version__",
    "anomaly",
    "demo",
    "evaluate",
    "info",
    "phantom",
    "prepare",
    "segment",
    "selftest",
    "train_anomaly",
    "train_seg",
    "ui",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
