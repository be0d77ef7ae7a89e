"""What `audit` measures: real scans as a synthesis system sees them, and sweeps of what it draws."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.case import Case
from medseg_diff.data.transforms import prepare_case
from medseg_diff.data.views import AxialSlices, fit_to
from medseg_diff.device import autocast
from medseg_diff.errors import ManifestError, counted
from medseg_diff.evaluation.synthesis import (
    BY_INTENSITY,
    INTENSITY,
    REGRESSOR,
    Floats,
    Measured,
    likeness_to,
    measured_by_intensity,
)
from medseg_diff.evenly import evenly_spaced
from medseg_diff.metrics.likeness import diversity
from medseg_diff.metrics.obedience import Line, Of
from medseg_diff.metrics.realism import Apart, by_place, distances
from medseg_diff.networks.noisy_classifier import NoisyClassifier
from medseg_diff.recipes.covariates import SEX, Covariates, values_of
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.synthesis_system import SynthesisSystem, affine_of, as_written

Advance = Callable[..., None]
T1 = "t1"


FAINT = 0.05  # above the background: a decoder's background is not exactly that
FEWEST = 4  # scans that a correlation needs


@dataclass(frozen=True)
class RealScans:
    """Real images [N, C, *S] as the system draws them, and their covariates by name, [N] each in its own unit."""

    images: Tensor
    covariates: Mapping[str, Floats]

    @classmethod
    def of(cls, cases: Sequence[Case], system: SynthesisSystem, *, most: int) -> "RealScans":
        """At most so many of the cases, evenly spaced; of slices the middle ones. Raises: ManifestError, ImageError."""
        chosen, names = evenly_spaced(list(cases), most), system.recipe.covariates
        images = torch.stack([prepared(case, system.recipe) for case in chosen])
        values = np.array([values_of(case, names) for case in chosen])
        return cls(images, dict(zip(names, values.T, strict=True)))


def prepared(case: Case, recipe: SynthesisRecipe) -> Tensor:
    """A case as training shows it, never changed by augmentation: [C, *S]."""
    images = read_case(case, recipe.channels, reference=False, resample_to=recipe.preparation.resample_to)
    image = prepare_case(images, recipe.preparation).image
    if isinstance(recipe.view, AxialSlices):
        image = recipe.view.cut(image)[image.shape[3] // 2]
    return fit_to(recipe.view.size, image, fill=recipe.preparation.background)


@dataclass(frozen=True)
class Audited:
    """A system whose regressor measures images, `held` real ones and so many drawn ones; `seed` of all that is drawn."""

    system: SynthesisSystem
    held: RealScans
    number: int
    seed: int

    @property
    def known(self) -> Covariates:
        """The covariates that the system was trained on."""
        assert self.system.covariates is not None
        return self.system.covariates

    @cached_property
    def real(self) -> Measured:
        """What is measured of the held-out scans."""
        return self.measure(self.held.images)

    @cached_property
    def real_pairs(self) -> float:
        """The MS-SSIM of pairs of held-out scans."""
        return diversity(self.held.images, seed=self.seed)

    def measure(self, images: Tensor) -> Measured:
        """Features of images [N, C, *S], and covariates by whoever can tell them."""
        system, regressor = self.system, self.system.regressor
        assert isinstance(regressor, NoisyClassifier)
        with torch.no_grad(), autocast(system.device, system.precision):
            # One by one: no image's bytes hang on its neighbours.
            read = [regressor.read(image.to(system.device)) for image in images.split(1)]
        said = np.array([self.known.unscaled(each.answer[0].tolist()) for each in read])
        covariates: dict[str, Mapping[str, Floats]] = {REGRESSOR: dict(zip(self.known.names, said.T, strict=True))}
        if images.ndim == 5 and T1 in system.recipe.channels:
            covariates[BY_INTENSITY] = self._by_intensity(images)
        features = torch.cat([each.features for each in read]).double().cpu().numpy()
        spatial = np.concatenate([by_place(each.maps[-1].double().cpu().numpy()) for each in read])
        return Measured(features, spatial, covariates)

    def lines(self, name: str, asked: Floats, measured: Measured, *, guidance: float | None = None) -> list[Line]:
        """One covariate of scans as asked for [N], by whoever measured it; without `guidance`, of the real ones."""
        scans = [scan_name(number, name, guidance) for number in range(len(asked))]
        of: Of = "real" if guidance is None else "drawn"
        return [
            Line(scan, of, guidance, name, number, float(value), by, float(values[name][number]))
            for by, values in measured.covariates.items()
            if name in values
            for number, (scan, value) in enumerate(zip(scans, asked, strict=True))
        ]

    def keep(self, folder: Path, names: Sequence[str], images: Tensor) -> None:
        """NAME.nii.gz of images [N, C, X, Y, Z], their T1 or else first channel, for other programs to measure."""
        channels = self.system.recipe.channels
        channel = channels.index(T1) if T1 in channels else 0
        for name, image in zip(names, images, strict=True):
            values = as_written(image[channel].numpy())
            write_volume(folder / f"{name}.nii.gz", values, affine_of(self.system.recipe), code=2)

    def _by_intensity(self, images: Tensor) -> Mapping[str, Floats]:
        recipe = self.system.recipe
        t1, spacing = recipe.channels.index(T1), [mm or 1.0 for mm in recipe.preparation.spacing_mm]
        background, orientation = recipe.preparation.background + FAINT, recipe.preparation.orientation
        volumes = measured_by_intensity(images[:, [t1]], spacing, background, orientation=orientation)
        return {name: volumes[name] for name in INTENSITY if name in self.known.names}

    def sweep(self, name: str, system: SynthesisSystem, advance: Advance) -> tuple[Tensor, Floats]:
        """Images [N, C, *S] with one covariate evenly over its range, and its values [N]; the others as usual for it."""
        low, high = self.known.range_of(name)
        values = np.linspace(low, high, self.number) if name != SEX else (np.arange(self.number) % 2).astype(float)
        rows = []
        for number, value in enumerate(values):
            asked: dict[str, float | str] = {name: ("M" if value else "F") if name == SEX else float(value)}
            rows.append(self.known.drawn(asked, np.random.default_rng(seed_of(self.seed, "audit", name, number))))
        return self._drawn(system, rows, name, advance), values

    def anybody(self, system: SynthesisSystem, advance: Advance) -> Tensor:
        """Images of people like those trained on."""
        draws = [np.random.default_rng(seed_of(self.seed, "anybody", number)) for number in range(self.number)]
        return self._drawn(system, [self.known.drawn({}, draw) for draw in draws], "anybody", advance)

    def _drawn(
        self, system: SynthesisSystem, rows: Sequence[Sequence[float]], purpose: str, advance: Advance
    ) -> Tensor:
        """What the system draws for covariates [N, K] in [0, 1]."""
        size, parts = system.drawing.network_batch, []
        for start in range(0, len(rows), size):
            chosen = range(start, min(start + size, len(rows)))
            seeds = [seed_of(self.seed, "audit", purpose, number) for number in chosen]
            parts.append(system.images(seeds, [list(rows[number]) for number in chosen]))
            advance(len(chosen))
        return torch.cat(parts)

    def noise(self) -> Tensor:
        """Decoded noise: what images are before anything was learned of their latents."""
        system, parts = self.system, []
        for number in range(self.number):
            generator = torch.Generator().manual_seed(seed_of(self.seed, "audit", "noise", number))
            x = torch.randn(1, *system.drawing.shape, generator=generator).to(system.device)
            with autocast(system.device, system.precision):
                parts.append(system.drawing.space.decode(x).float().cpu())
        return torch.cat(parts)

    def apart(self, images: Tensor, trained: Sequence[Case], advance: Advance) -> Apart:
        """Distances in x_0 of drawn images [N, C, *S] and of held-out scans from every scan trained on, which are read one
        after the other, and from each other; of an image and its mirror images, which training shows too, the least."""
        drawn, held = ([self._flat(each) for each in self._mirrored(part)] for part in (images, self.held.images))
        columns = []
        for case in trained:
            one = self._flat(prepared(case, self.system.recipe)[None])
            columns.append([_least(views, one)[:, 0] for views in (drawn, held)])
            advance(1)
        of_drawn, of_held = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
        return Apart(of_drawn, of_held, _least(drawn, held[0]))

    def _mirrored(self, images: Tensor) -> list[Tensor]:
        """Images [N, C, *S] as they are, and mirrored in every way that training mirrors them."""
        flips = self.system.recipe.augmentation.flips
        ways = itertools.chain.from_iterable(itertools.combinations(flips, count) for count in range(len(flips) + 1))
        return [images.flip([axis + 2 for axis in way]) for way in ways]

    def _flat(self, images: Tensor) -> Floats:
        return np.asarray(self.encoded(images).flatten(1).double().numpy())

    def encoded(self, images: Tensor) -> Tensor:
        """x_0 [N, D, *R] of images [N, C, *S]."""
        system = self.system
        with autocast(system.device, system.precision):
            parts = [system.drawing.space.encode(image.to(system.device)).float().cpu() for image in images.split(1)]
        return torch.cat(parts)

    def like_real(self, images: Tensor) -> dict[str, Any]:
        """How like held-out real scans images are."""
        return likeness_to(self.real, self.measure(images), images, real_pairs=self.real_pairs, seed=self.seed)


def _least(views: Sequence[Floats], others: Floats) -> Floats:
    """The distance [N, M] of whichever view [N, F] is nearest."""
    return np.asarray(np.min([distances(view, others) for view in views], axis=0))


def scan_name(number: int, covariate: str = "", guidance: float | None = None) -> str:
    """Of a scan that is swept, or without guidance of a real one."""
    return f"real_{number:04d}" if guidance is None else f"g{guidance:g}_{covariate}_{number:04d}"


def check_splits(cases: Mapping[str, Sequence[Case]], file: str) -> None:
    """Raises: ManifestError where a split has fewer cases than a correlation needs."""
    for name, each in cases.items():
        if len(each) < FEWEST:
            found = f"{counted(len(each), 'case')} of split `{name}`: too few to compare with"
            raise ManifestError(found, fix="choose another --split, or a larger table", file=file)
