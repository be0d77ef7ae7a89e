"""Covariates as numbers that a network is conditioned on: their ranges, and what is usual among the cases trained on.

They are brought to [0, 1] as in Pinaya et al., Brain Imaging Generation with Latent Diffusion Models, DGM4MICCAI 2022, arXiv
2209.07162; the ranges are stored with the model.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medseg_diff.data.tables.case import Case
from medseg_diff.errors import ManifestError, UsageError, raise_all
from medseg_diff.files import write_json
from medseg_diff.run import Run
from medseg_diff.settings import Settings, read_measured

SEX = "sex"
SEXES = {"F": 0.0, "M": 1.0}
WORDS = {"f": "F", "female": "F", "0": "F", "m": "M", "male": "M", "1": "M"}
RIDGE = 1e-4  # of the covariance: of covariates that say the same, one may still be asked for
BEYOND = 0.1  # of a range, by which what is asked for may leave it


class Covariates(Settings):
    """Of `cases` trained on: the lowest and highest value of each covariate, which become 0 and 1, and mean and covariance
    [K, K] of what they become."""

    names: tuple[str, ...]
    cases: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    @classmethod
    def measured(cls, names: Sequence[str], cases: Sequence[Case]) -> "Covariates":
        """Those of cases trained on. Raises: ManifestError for every case that lacks one; where all have the same value."""
        values = np.array([values_of(case, names) for case in cases])
        low, high = values.min(axis=0), values.max(axis=0)
        raise_all(
            [
                ManifestError(f"{name} is {value:g} in every training case", fix="leave it out of covariates")
                for name, value, other in zip(names, low, high, strict=True)
                if value == other
            ]
        )
        scaled = (values - low) / (high - low)
        return cls(
            names=tuple(names),
            cases=len(cases),
            low=tuple(map(float, low)),
            high=tuple(map(float, high)),
            mean=tuple(float(each) for each in scaled.mean(axis=0).round(6)),
            covariance=tuple(tuple(map(float, row)) for row in np.atleast_2d(np.cov(scaled.T)).round(6)),
        )

    def range_of(self, name: str) -> tuple[float, float]:
        """The lowest and the highest value trained on."""
        place = self.names.index(name)
        return self.low[place], self.high[place]

    def scaled(self, values: Sequence[float]) -> list[float]:
        """Values [K] in their own units → [0, 1] within the ranges."""
        return [(value - low) / (high - low) for value, low, high in zip(values, self.low, self.high, strict=True)]

    def unscaled(self, scaled: Sequence[float]) -> list[float]:
        """The inverse of `scaled`."""
        return [low + each * (high - low) for each, low, high in zip(scaled, self.low, self.high, strict=True)]

    def named(self, scaled: Sequence[float]) -> dict[str, float | str]:
        """What scaled values [K] mean: each covariate in its own unit, sex as F or M."""
        values = zip(self.names, self.unscaled(scaled), strict=True)
        return {name: ("M" if value >= 0.5 else "F") if name == SEX else round(value, 3) for name, value in values}

    def drawn(self, asked: Mapping[str, float | str], generator: np.random.Generator) -> list[float]:
        """Scaled covariates [K] of somebody who is as was `asked` and otherwise as the cases trained on are: what is not
        asked for comes from their normal distribution, given what is, within their ranges.

        Raises: UsageError for a name or a value that the model was not trained on.
        """
        known = self._known(asked)
        given, open_ = list(known), [i for i in range(len(self.names)) if i not in known]
        covariance = np.array(self.covariance) + RIDGE * np.eye(len(self.names))
        mean, values = np.array(self.mean), np.array([known.get(i, 0.0) for i in range(len(self.names))])
        weight = np.linalg.solve(covariance[np.ix_(given, given)], covariance[np.ix_(given, open_)]).T
        expected = mean[open_] + weight @ (values[given] - mean[given])
        left = covariance[np.ix_(open_, open_)] - weight @ covariance[np.ix_(given, open_)]
        drawn = expected + np.linalg.cholesky(left) @ generator.standard_normal(len(open_)) if open_ else expected
        values[open_] = drawn.clip(0, 1)
        for i in open_:
            if self.names[i] == SEX:
                values[i] = float(values[i] >= 0.5)
        return [float(value) for value in values]

    def _known(self, asked: Mapping[str, float | str]) -> dict[int, float]:
        """What was asked for, scaled, by its place."""
        known = {}
        for name, value in asked.items():
            if name not in self.names:
                said = ", ".join(self.names) or "none"
                raise UsageError(f"the model was not trained on {name}", fix=f"its covariates are {said}")
            i = self.names.index(name)
            low, high = self.low[i], self.high[i]
            number = number_of(name, value)
            reach = BEYOND * (high - low)
            if number is None or not low - reach <= number <= high + reach:
                usual = "F or M" if name == SEX else f"{low:g} … {high:g}, the range it was trained on"
                raise UsageError(f"{name} {value} is outside what the model knows", fix=f"ask for {usual}")
            known[i] = (number - low) / (high - low)
        return known


def values_of(case: Case, names: Sequence[str]) -> list[float]:
    """A case's covariates [K] as numbers, F as 0 and M as 1. Raises: ManifestError where it lacks one."""
    found, problems = [], []
    for name in names:
        number = number_of(name, case.covariates.get(name, ""))
        if number is None:
            known = ", ".join(case.covariates) or "no covariates"
            fix = f"fill the column, drop the row, or set covariates=[…] to what there is (found {known})"
            problems.append(
                ManifestError(f"has no {name}, which the recipe is conditioned on", fix=fix, case=case.name)
            )
        else:
            found.append(number)
    raise_all(problems)
    return found


def number_of(name: str, value: float | str) -> float | None:
    """A covariate as a number; None where it is none."""
    if name == SEX:
        word = f"{value:g}" if isinstance(value, float) else str(value)
        return SEXES.get(WORDS.get(word.strip().lower(), ""))
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def write_covariates(run: Run, covariates: Covariates) -> None:
    """RUN/covariates.json; the run is to be sealed after it. Raises: EnvironmentFault."""
    write_json(run.covariates_file, covariates.model_dump(mode="json"))


def read_covariates(run: Run) -> Covariates | None:
    """What the run measured; None for a run without. Raises: CheckpointError where the file is not what was written."""
    return read_measured(run.covariates_file, Covariates)
