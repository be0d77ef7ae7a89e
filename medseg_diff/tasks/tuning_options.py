"""Which settings of a sampler `tune` tries, and what it may give up: options, as in `tasks/options.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from medseg_diff.data.tables.case import SPLITS
from medseg_diff.errors import UsageError
from medseg_diff.tasks.keywords import option


def _numbers(word: str) -> tuple[int, ...]:
    """numbers with commas between, such as 1,2,3."""
    return tuple(int(part) for part in word.split(","))


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Which settings are tried on which cases, and how much worse than the best the chosen one may be."""

    panel: ClassVar[str] = "Settings tried"
    split: str = option("val", "Split whose cases with a reference are used.", choices=SPLITS, panel="Source")
    steps: Sequence[int] = option(
        (), "Denoising steps to try.", usual="1,2,3,5,10 and the recipe's", parse=_numbers, metavar="N,…"
    )
    members: Sequence[int] = option(
        (), "Members to try.", usual="3,5,10 and the recipe's", parse=_numbers, metavar="N,…"
    )
    loss: float = option(0.005, "Largest acceptable loss of Dice against the best setting.")
    loss_ged2: float = option(0.05, "Largest acceptable increase of GED².")
    loss_ece: float = option(0.01, "Largest acceptable increase of the calibration error in doubt.")
    resample_to: str | None = option(
        None,
        "Bring the other channels onto this one's grid.",
        usual="as trained",
        metavar="CHANNEL",
        panel="Source",
    )
    seed: int = option(0, "Random seed.")

    def check(self) -> None:
        """Raises: UsageError for numbers that are none of steps or members, or a loss that is none."""
        for name, numbers in (("--steps", self.steps), ("--members", self.members)):
            whole = isinstance(numbers, Sequence) and all(isinstance(number, int) for number in numbers)
            if not whole or any(number < 1 for number in numbers):
                raise UsageError(f"{name} takes numbers of 1 or more", fix=f"write them as {name} 1,2,3")
        for name, loss in (("--loss", self.loss), ("--loss-ged2", self.loss_ged2), ("--loss-ece", self.loss_ece)):
            if not 0 <= loss <= 1:
                raise UsageError(f"{name} {loss:g} is out of range", fix="use one from 0 to 1, such as 0.005")
