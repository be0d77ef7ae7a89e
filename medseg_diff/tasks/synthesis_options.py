"""What is asked for of synthetic scans, and how they are drawn: options, as in `tasks/options.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medseg_diff.data.tables.case import SPLITS
from medseg_diff.errors import UsageError
from medseg_diff.tasks.keywords import option
from medseg_diff.tasks.options import PRECISIONS

HELD_OUT = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How many scans, who they are of or whose masks they are painted into, and how they are drawn; None is the usual."""

    panel: ClassVar[str] = "Scans"
    covariates: Sequence[str] = option((), "Covariates asked for, such as ventricle_volume_ml=40.", words="NAME=VALUE")
    number: int | None = option(None, "How many scans; with --masks, of each mask.", usual="8; with --masks 1", min=1)
    masks: Path | None = option(None, "Table of cases whose masks (column seg) are painted into scans.", metavar="CSV")
    split: str | None = option(None, "Only these cases of --masks.", choices=SPLITS)
    data_root: Path | None = option(
        None, "Folder that paths of --masks are relative to.", usual="the table's", metavar="FOLDER"
    )
    enhance: Path | None = option(
        None, "Run of train-enhance that refines scans to its resolution.", metavar="RUN", panel="Model"
    )
    age: float | None = option(None, "Age in years, the covariate age_years.", metavar="YEARS")
    sex: str | None = option(None, "The covariate sex.", choices=("F", "M"))
    unconditional: bool = option(False, "Leave covariates out: draw from the whole population.")
    guidance: float | None = option(
        None, "1: covariates or mask as learned; above 1 exaggerates them.", usual="the recipe's", panel="Sampling"
    )
    steps: int | None = option(None, "Denoising steps.", usual="the recipe's", min=1, panel="Sampling")
    limit: float | None = option(
        None, "Bound of intensities under guidance (dynamic thresholding).", usual="the recipe's", panel="Sampling"
    )
    seed: int = option(0, "Random seed.", panel="Sampling")
    precision: str | None = option(
        None, "Number format of the networks.", usual="the recipe's", choices=PRECISIONS, panel="Compute"
    )
    network_batch: int | None = option(None, "Samples per network pass.", usual="the recipe's", min=1, panel="Compute")
    overwrite: bool = option(False, "Redo existing results.", panel="Result")

    def check(self) -> None:
        """Raises: UsageError for words that are no NAME=VALUE, and for what does not go together."""
        if self.masks is None and (self.split, self.data_root) != (None, None):
            name = "--data-root" if self.split is None else "--split"
            raise UsageError(f"{name} is for the rows of --masks", fix="leave it out")
        if self.masks is not None and (self.covariates or self.unconditional or (self.age, self.sex) != (None, None)):
            raise UsageError("--masks decides what is painted, and takes no covariates", fix="leave them out")
        if self.masks is not None and self.enhance is not None:
            raise UsageError("--masks paints on the grid of each mask, but --enhance makes a finer one", fix="use one")
        if self.split is not None and self.split not in SPLITS:
            raise UsageError(f"there is no split `{self.split}`", fix=f"use one of {', '.join(SPLITS)}")
        names = [word.partition("=")[0] for word in self.covariates]
        names += ["age_years"] * (self.age is not None) + ["sex"] * (self.sex is not None)
        for word in self.covariates:
            if not all(word.partition("=")):
                raise UsageError(f"`{word}` is not a covariate", fix="write it as NAME=VALUE, such as age_years=63")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{twice[0]} is asked for twice", fix="leave one of them out")
        if self.unconditional and self.guidance is not None:
            raise UsageError("--unconditional leaves covariates out, but --guidance needs them", fix="use one of them")

    @property
    def count(self) -> int:
        """How many scans, or how many of each mask."""
        return self.number or (8 if self.masks is None else 1)

    @property
    def asked(self) -> dict[str, float | str]:
        """Covariates by name: numbers where they are such."""
        words = dict(word.partition("=")[::2] for word in self.covariates)
        known: dict[str, float | str] = {name: _number_or_word(value) for name, value in words.items()}
        known |= {} if self.age is None else {"age_years": self.age}
        return known | ({} if self.sex is None else {"sex": self.sex})


@dataclass(frozen=True, kw_only=True)
class EnhancementOptions:
    """How scans are drawn at a finer resolution; None is the recipe's own."""

    panel: ClassVar[str] = "Sampling"
    draws: int = option(1, "Samples averaged into the result: one is sharp, many are accurate.", min=1)
    steps: int | None = option(None, "Denoising steps.", usual="the recipe's", min=1)
    condition_noise: int | None = option(
        None,
        "Time the scan is noised to first; higher tolerates worse scans.",
        usual="the recipe's",
        min=0,
    )
    seed: int = option(0, "Random seed.")


def _scales(word: str) -> tuple[float, ...]:
    """numbers with commas between, such as 1,2,4."""
    return tuple(float(part) for part in word.split(","))


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How much is drawn, at which guidance, and which real scans it is compared with."""

    panel: ClassVar[str] = "Sampling"
    number: int = option(100, "Scans drawn for each covariate.", min=4)
    guidance: Sequence[float] = option(
        (), "Scales of guidance to try.", usual="the recipe's", parse=_scales, metavar="X,…"
    )
    split: str = option("test", "Split of real scans to compare with.", choices=HELD_OUT, panel="Source")
    real: int = option(200, "At most this many held-out scans.", min=4, panel="Source")
    trained: int | None = option(
        None, "Look for copies among at most this many scans trained on.", usual="all", min=4, panel="Source"
    )
    steps: int | None = option(None, "Denoising steps.", usual="the recipe's", min=1)
    seed: int = option(0, "Random seed.")
    keep_scans: bool = option(
        False, "Also write OUT/scans, for another program to segment: see `audit-volumes`.", panel="Result"
    )
    precision: str | None = option(
        None, "Number format of the networks.", usual="the recipe's", choices=PRECISIONS, panel="Compute"
    )
    network_batch: int | None = option(None, "Samples per network pass.", usual="the recipe's", min=1, panel="Compute")

    def check(self) -> None:
        """Raises: UsageError for scales that are none, or a split that there is none of."""
        scales = self.guidance
        if any(not 0 < scale <= 100 for scale in scales) or len(set(scales)) < len(scales):
            raise UsageError("--guidance takes scales above 0", fix="write them as --guidance 1,2,4, each once")
        if self.split not in HELD_OUT:
            raise UsageError(f"`{self.split}` is not a held-out split", fix=f"use {' or '.join(HELD_OUT)}")

    @property
    def drawing(self) -> SynthesisOptions:
        """How scans are drawn, but for the guidance."""
        return SynthesisOptions(
            steps=self.steps, seed=self.seed, precision=self.precision, network_batch=self.network_batch
        )


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
