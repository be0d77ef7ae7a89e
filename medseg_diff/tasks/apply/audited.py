"""What `audit` measures: real scans as a synthesis system sees them, and sweeps of what it draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.case import Case
from medseg_diff.data.transforms import prepare_case
from medseg_diff.data.views import AxialSlices, fit_to
from medseg_diff.device import autocast
from medseg_diff.errors import ManifestError
from medseg_diff.evaluation.synthesis import (
    BY_INTENSITY,
    INTENSITY,
    REGRESSOR,
    Floats,
    Measured,
    likeness_to,
    measured_by_intensity,
    obedience,
    stacked,
)
from medseg_diff.evenly import evenly_spaced
from medseg_diff.metrics.realism import by_place
from medseg_diff.networks.noisy_classifier import NoisyClassifier
from medseg_diff.recipes.covariates import SEX, Covariates, values_of
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.synthesise import SynthesisSystem

Advance = Callable[..., None]
T1 = "t1"


@dataclass(frozen=True)
class RealScans:
    """Real images [N, C, *S] as the system draws them, and their covariates [N, K] in [0, 1]."""

    images: Tensor
    covariates: Floats

    @classmethod
    def of(cls, cases: Sequence[Case], recipe: SynthesisRecipe, known: Covariates, *, most: int) -> "RealScans":
        """At most so many of the cases, evenly spaced; of slices the middle ones. Raises: ManifestError, ImageError."""
        chosen = evenly_spaced(list(cases), most)
        images = torch.stack([prepared(case, recipe) for case in chosen])
        values = np.array([known.scaled(values_of(case, known.names)) for case in chosen])
        return cls(images, values)


def prepared(case: Case, recipe: SynthesisRecipe) -> Tensor:
    """A case as training shows it, never changed by augmentation: [C, *S]."""
    images = read_case(case, recipe.channels, reference=False, resample_to=recipe.preparation.resample_to)
    image = prepare_case(images, recipe.preparation).image
    if isinstance(recipe.view, AxialSlices):
        image = recipe.view.cut(image)[image.shape[3] // 2]
    return fit_to(recipe.view.size, image, fill=recipe.preparation.background)


@dataclass(frozen=True)
class Audited:
    """A system's regressor at work on images, real and drawn; `seed` of all that is drawn."""

    recipe: SynthesisRecipe
    known: Covariates
    regressor: NoisyClassifier
    held: RealScans
    number: int
    seed: int

    def measure(self, images: Tensor, system: SynthesisSystem) -> Measured:
        """Features of images [N, C, *S], and covariates by whoever can tell them."""
        features, spatial, said = [], [], []
        with torch.no_grad(), autocast(system.device, system.precision):
            for part in images.split(1):  # one by one: no image's bytes hang on its neighbours
                maps = self.regressor.maps(part.to(system.device))
                features.append(self.regressor.code(part.to(system.device)).float().cpu())
                spatial.append(torch.from_numpy(by_place(maps[-1].float().cpu().numpy())))
                said.append(self.regressor(part.to(system.device), torch.ones(1, device=system.device)).float().cpu())
        values = np.array([self.known.unscaled(row) for row in torch.cat(said).double().tolist()])
        covariates: dict[str, Mapping[str, Floats]] = {REGRESSOR: dict(zip(self.known.names, values.T, strict=True))}
        if images.ndim == 5 and T1 in self.recipe.channels:
            place = self.recipe.channels.index(T1)
            spacing = [mm or 1.0 for mm in self.recipe.preparation.spacing_mm]
            background = self.recipe.preparation.background + FAINT
            volumes = measured_by_intensity(
                images[:, [place]], spacing, background, orientation=self.recipe.preparation.orientation
            )
            covariates[BY_INTENSITY] = {name: volumes[name] for name in INTENSITY if name in self.known.names}
        return Measured(stacked(features), stacked(spatial), covariates)

    def sweep(self, name: str, system: SynthesisSystem, advance: Advance) -> tuple[Tensor, Floats]:
        """Images [N, C, *S] with one covariate evenly over its range, and its values [N]; the others as usual for it."""
        place, low, high = self.known.names.index(name), *self._range(name)
        values = np.linspace(low, high, self.number) if name != SEX else (np.arange(self.number) % 2).astype(float)
        rows = []
        for number, value in enumerate(values):
            asked: dict[str, float | str] = {name: ("M" if value else "F") if name == SEX else float(value)}
            rows.append(self.known.drawn(asked, np.random.default_rng(seed_of(self.seed, "audit", name, number))))
        images = self.images(system, rows, name, advance)
        return images, np.array([self.known.unscaled(row)[place] for row in rows])

    def anybody(self, system: SynthesisSystem, advance: Advance) -> Tensor:
        """Images of people like those trained on."""
        draws = [np.random.default_rng(seed_of(self.seed, "anybody", number)) for number in range(self.number)]
        return self.images(system, [self.known.drawn({}, draw) for draw in draws], "anybody", advance)

    def images(
        self, system: SynthesisSystem, rows: Sequence[Sequence[float]], purpose: str, advance: Advance
    ) -> Tensor:
        """What the system draws for covariates [N, K] in [0, 1]."""
        size, parts = system.drawing.network_batch, []
        for start in range(0, len(rows), size):
            chosen = list(range(start, min(start + size, len(rows))))
            seeds = [seed_of(self.seed, "audit", purpose, number) for number in chosen]
            parts.append(system.images(seeds, [list(rows[number]) for number in chosen]))
            advance(len(chosen))
        return torch.cat(parts)

    def noise(self, system: SynthesisSystem) -> Tensor:
        """Decoded noise: what images are before anything was learned of their latents."""
        shape, parts = system.drawing.shape, []
        for number in range(self.number):
            generator = torch.Generator().manual_seed(seed_of(self.seed, "audit", "noise", number))
            x = torch.randn(1, *shape, generator=generator).to(system.device)
            with autocast(system.device, system.precision):
                parts.append(system.drawing.space.decode(x).float().cpu())
        return torch.cat(parts)

    def obeys(self, name: str, asked: Floats, measured: Measured) -> list[dict[str, Any]]:
        """Rows of how well a covariate was obeyed."""
        return obedience(name, asked, measured)

    def like_real(self, images: Tensor, system: SynthesisSystem) -> dict[str, Any]:
        """How like held-out real scans images are."""
        real = self.measure(self.held.images, system)
        return likeness_to(real, self.measure(images, system), images, self.held.images, seed=self.seed)

    def _range(self, name: str) -> tuple[float, float]:
        place = self.known.names.index(name)
        return self.known.low[place], self.known.high[place]


FAINT = 0.05  # above the background: a decoder's background is not exactly that


def check_splits(cases: Mapping[str, Sequence[Case]], file: str) -> None:
    """Raises: ManifestError where a split has no case, or the held-out one fewer than a correlation needs."""
    for name, each in cases.items():
        if len(each) < FEWEST:
            found = f"{len(each)} cases have split `{name}`, which is too few to compare with"
            raise ManifestError(found, fix="choose another --split, or a larger table", file=file)


FEWEST = 4
