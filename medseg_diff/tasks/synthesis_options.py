"""What is asked for of synthetic scans, and how they are drawn: options, as in `tasks/options.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_diff.errors import UsageError
from medseg_diff.tasks.keywords import option


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How many scans, who they are of, and how they are drawn; None is the recipe's own."""

    covariates: Sequence[str] = option((), "Covariates asked for: ventricle_volume_ml=40 …", words="NAME=VALUE")
    number: int = option(8, "How many scans [8].", min=1)
    age: float | None = option(None, "Age in years, the covariate age_years.")
    sex: str | None = option(None, "F or M, the covariate sex.")
    unconditional: bool = option(False, "Scans of anybody: covariates are left out.")
    guidance: float | None = option(None, "1: covariates as they were learned; more exaggerates them [the recipe's].")
    steps: int | None = option(None, "Denoising steps [the recipe's].", min=1)
    limit: float | None = option(None, "How far values may go where guidance exaggerates [the recipe's].")
    seed: int = option(0, "Of all noise.")
    precision: str | None = option(None, "auto, fp32 or bf16 [the recipe's].")
    network_batch: int | None = option(None, "Samples in one pass of the networks [the recipe's].", min=1)
    overwrite: bool = option(False, "Redo what is there.")

    def check(self) -> None:
        """Raises: UsageError for words that are no NAME=VALUE, and for what does not go together."""
        names = [word.partition("=")[0] for word in self.covariates]
        names += ["age_years"] * (self.age is not None) + ["sex"] * (self.sex is not None)
        for word in self.covariates:
            if not all(word.partition("=")):
                raise UsageError(f"`{word}` is no covariate", fix="write it as NAME=VALUE, such as age_years=63")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"{twice[0]} is asked for twice", fix="leave one of them out")
        if self.unconditional and self.guidance is not None:
            raise UsageError(
                "--unconditional leaves covariates out, and --guidance follows them", fix="use one of them"
            )

    @property
    def asked(self) -> dict[str, float | str]:
        """Covariates by name: numbers where they are such."""
        words = dict(word.partition("=")[::2] for word in self.covariates)
        known: dict[str, float | str] = {name: _number_or_word(value) for name, value in words.items()}
        known |= {} if self.age is None else {"age_years": self.age}
        return known | ({} if self.sex is None else {"sex": self.sex})


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
