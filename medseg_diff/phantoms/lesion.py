"""What can be wrong in a phantom: a glioma with its oedema, harmless white-matter lesions, and raters who draw them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg_diff.data.tables.sources.brats import ENHANCING, NECROSIS, OEDEMA
from medseg_diff.phantoms.anatomy import Anatomy, MassEffect
from medseg_diff.phantoms.geometry import FloatArray, Points, ellipsoid, smooth_union, soft_step, tube

LabelArray = NDArray[np.uint8]


@dataclass(frozen=True)
class GliomaPlan:
    """Where a glioma sits and how large it is, decided before there is an anatomy for it to displace."""

    centre_mm: tuple[float, float, float]
    core_mm: float
    rim_mm: float
    oedema_mm: tuple[float, float, float]
    tract_mm: tuple[tuple[float, float, float, float], ...]
    severity: float
    coverage: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "GliomaPlan":
        """A tumour in one hemisphere; its oedema follows the white matter up and down."""
        side = 1.0 if rng.random() < 0.5 else -1.0
        x, y, z = rng.uniform(24, 40), rng.uniform(-44, 36), rng.uniform(-4, 32)
        core = rng.uniform(9, 17)
        foot = (side * rng.uniform(34, 42), 0.5 * y + rng.uniform(-12, 4), -18.0, rng.uniform(9, 13))
        head = (side * rng.uniform(20, 32), y * 0.8 + rng.uniform(-12, 12), 41.0, rng.uniform(10, 14))
        return cls(
            centre_mm=(side * x, y, z),
            core_mm=core,
            rim_mm=rng.uniform(2.5, 4.5),
            oedema_mm=(rng.uniform(15, 22), rng.uniform(17, 28), rng.uniform(20, 30)),
            tract_mm=(foot, (side * x, y, z, rng.uniform(11, 15)), head),
            severity=rng.uniform(0.7, 1.0),
            coverage=rng.uniform(0.64, 0.76),
        )

    def mass_effect(self, rng: np.random.Generator) -> MassEffect:
        return MassEffect(self.centre_mm, reach_mm=2.2 * self.core_mm + 6, strength=float(rng.uniform(0.25, 0.5)))


@dataclass(frozen=True)
class Glioma:
    """A grown glioma, one value for each brain voxel: distances in mm (positive inside) and shares of tissue."""

    margin_mm: FloatArray
    core_mm: FloatArray
    rim_mm: FloatArray
    oedema: FloatArray
    enhancing: FloatArray
    necrosis: FloatArray


def grow_glioma(plan: GliomaPlan, anatomy: Anatomy, rng: np.random.Generator) -> Glioma:
    """Fill a plan into an anatomy. The oedema prefers white matter, and spares the cortex and fluid it meets."""
    at, grid = anatomy.at, anatomy.grid
    bumps, ragged, fine = (grid.noise(rng, scale)[anatomy.mask] for scale in (13.0, 22.0, 9.0))
    core = ellipsoid(at, plan.centre_mm, (plan.core_mm,) * 3) + 3.2 * bumps + 1.2 * fine
    rim = np.clip(plan.rim_mm * (1 + 0.45 * fine), 0.6, None)

    spread = smooth_union(ellipsoid(at, plan.centre_mm, plan.oedema_mm), tube(at, plan.tract_mm), 8.0)
    spread = spread + 4.0 * ragged + 1.2 * fine
    spared = 5.0 * anatomy.grey + 3.0 * anatomy.deep_grey + 14.0 * anatomy.csf
    margin = _covering(np.maximum(spread - spared, core + 1.0), anatomy, plan.coverage)

    whole_core = grid.share_inside(core)
    necrosis = grid.share_inside(core - rim)
    width = 5.0 + 1.2 * bumps
    patchy = np.clip(0.85 + 0.18 * ragged, 0.45, 1.1)
    return Glioma(
        margin_mm=margin,
        core_mm=core,
        rim_mm=rim,
        oedema=np.clip(plan.severity * patchy * soft_step(margin / width), 0, 1) * (1 - whole_core),
        enhancing=whole_core - necrosis,
        necrosis=necrosis,
    )


def _covering(margin: FloatArray, anatomy: Anatomy, coverage: float) -> FloatArray:
    """Let the lesion grow or shrink by at most 8 mm, so that it reaches `coverage` of the axial slices with brain."""
    whole = np.full(anatomy.grid.shape, -np.inf, np.float32)
    whole[anatomy.mask] = margin
    highest = np.sort(whole.max(axis=(0, 1))[anatomy.mask.any(axis=(0, 1))])[::-1]
    last = round(coverage * len(highest)) - 1
    between = 0.5 * (highest[last] + highest[last + 1])
    return margin - np.clip(between, -8, 8)


def draw_labels(glioma: Glioma | None, anatomy: Anatomy, rng: np.random.Generator | None = None) -> LabelArray:
    """The reference, or with `rng` one rater's drawing: [X, Y, Z] labels 0, 1, 2, 4; nothing where there is no glioma.

    Raters agree on the core to about a millimetre. Where the oedema fades out, each has a taste of his own for where
    it ends, and an unsteady hand.
    """
    labels = np.zeros(anatomy.grid.shape, np.uint8)
    if glioma is None:
        return labels
    margin, core = glioma.margin_mm, glioma.core_mm
    if rng is not None:
        hand = anatomy.grid.noise(rng, 16.0)[anatomy.mask]
        core = core + rng.normal(0, 0.4) + 0.6 * anatomy.grid.noise(rng, 10.0)[anatomy.mask]
        margin = np.maximum(margin + rng.normal(0, 1.0) + 2.0 * hand, core)
    flat = np.where(margin > 0, OEDEMA, 0)
    flat = np.where(core > 0, np.where(core > glioma.rim_mm, NECROSIS, ENHANCING), flat)
    labels[anatomy.mask] = flat
    return labels


def hyperintensities(anatomy: Anatomy, age_years: float, rng: np.random.Generator) -> FloatArray:
    """Share of harmless white-matter hyperintensity in each brain voxel: caps and bands along the ventricles, and foci.

    They come with age, and some people have none. Not part of any label: as bright as oedema in FLAIR, they are there
    to mislead a threshold.
    """
    load = rng.uniform(0, 1) * (0.2 + max(age_years - 30, 0) / 55)
    near = anatomy.grid.noise(rng, 9.0)[anatomy.mask]
    band = soft_step((anatomy.ventricle_distance_mm + 5.0 * load + 1.5 * near) / 2.0)
    share = band * (load > 0.2)
    for _ in range(rng.poisson(16 * load)):
        side = rng.choice([-1.0, 1.0])
        centre = (side * rng.uniform(16, 40), rng.uniform(-60, 45), rng.uniform(10, 38))
        radius = rng.uniform(2.5, 5.0) + 2.5 * load * rng.random()
        share = np.maximum(share, soft_step(_ball(anatomy.at, centre, radius) / 1.5))
    return share * np.clip(anatomy.white * 1.2 - 0.1, 0, 1)


def _ball(at: Points, centre: tuple[float, float, float], radius: float) -> FloatArray:
    square = sum((axis - c) ** 2 for axis, c in zip(at, centre, strict=True))
    return (radius - np.sqrt(square)).astype(np.float32)
