"""Diffusion models for brain MR: segmentation with uncertainty, anomaly maps, synthesis. The verbs are functions here."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Every verb of the command line, and the module whose function of that name does it. Imported on first use: the command
# line must answer before torch could be loaded.
VERBS = {
    "demo": "medseg_diff.tasks.demo",
    "phantom": "medseg_diff.tasks.phantom",
    "prepare": "medseg_diff.tasks.prepare",
    "validate": "medseg_diff.tasks.validate",
    "train_seg": "medseg_diff.tasks.train.segmentation",
    "train_anomaly": "medseg_diff.tasks.train.anomaly",
    "train_synth": "medseg_diff.tasks.train.synthesis",
    "train_enhance": "medseg_diff.tasks.train.enhancement",
    "segment": "medseg_diff.api.segment",
    "anomaly": "medseg_diff.api.anomaly",
    "synthesise": "medseg_diff.tasks.apply.synthesise",
    "enhance": "medseg_diff.tasks.apply.enhance",
    "audit": "medseg_diff.tasks.audit",
    "audit_volumes": "medseg_diff.tasks.audit_volumes",
    "tune": "medseg_diff.tasks.apply.tune",
    "evaluate": "medseg_diff.tasks.evaluate",
    "report": "medseg_diff.tasks.report",
    "ui": "medseg_diff.tasks.ui",
    "selftest": "medseg_diff.tasks.selftest",
    "info": "medseg_diff.tasks.info",
}

# What they return and take, where that is a class or function of its own.
NOUNS = {
    "load_model": "medseg_diff.api.models",
    "LoadedModel": "medseg_diff.api.models",
    "SegmentationResult": "medseg_diff.api.results",
    "AnomalyResult": "medseg_diff.api.results",
}

__all__ = ["__version__", *VERBS, *NOUNS]  # one list of verbs


def __getattr__(name: str) -> Any:
    if name in VERBS:
        from medseg_diff.console import shown_at_a_prompt

        return shown_at_a_prompt(getattr(import_module(VERBS[name]), name))
    if name in NOUNS:
        return getattr(import_module(NOUNS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
