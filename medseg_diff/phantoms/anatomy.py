"""The healthy anatomy of a phantom: folded cortex, white matter, deep nuclei, ventricles, cerebellum and brain stem."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg_diff.phantoms.geometry import FloatArray, Grid, Points, ellipsoid, sampled, smooth_union, tube

# Right half, RAS mm, (x, y, z, radius): frontal horn, body, atrium; occipital horn; temporal horn.
LATERAL_VENTRICLE = (
    ((13, 33, 4, 1.5), (8, 24, 9, 4.5), (6, 8, 15, 4.8), (7, -10, 18, 4.6), (13, -26, 16, 5.5), (22, -37, 8, 6.5)),
    ((22, -37, 8, 6.5), (25, -52, 4, 3.5), (23, -63, 3, 1.0)),
    ((22, -37, 8, 6.5), (31, -27, -6, 3.5), (34, -12, -14, 2.5), (33, -3, -16, 1.5)),
)
FOLD_GRID = Grid((84, 84, 72), 2.5)  # where the folding noise is tabulated
# Knots of the folding noise and depth of its sulci, mm: long deep sulci, and shallower ones that branch from them.
FOLDS = ((11.0, 19.0), (9.0, 12.0))


@dataclass(frozen=True)
class Person:
    """Who the phantom is: what a study would call covariates, and what they do to the anatomy."""

    age_years: float
    sex: str
    head_scale: float
    ventricle_scale: float
    sulcus_mm: float
    cortex_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Person":
        """An adult of 20 to 85 years. Ventricles and sulci widen and the cortex thins with age."""
        age = float(np.round(rng.uniform(20, 85), 1))
        sex = "F" if rng.random() < 0.5 else "M"
        years = (age - 20) / 65
        return cls(
            age_years=age,
            sex=sex,
            head_scale=(1.03 if sex == "M" else 0.98) * float(rng.uniform(0.96, 1.04)),
            ventricle_scale=(0.70 + 0.55 * years**1.5) * float(np.exp(rng.normal(0, 0.10))),
            sulcus_mm=0.55 + 0.75 * years + float(rng.uniform(-0.1, 0.1)),
            cortex_mm=3.9 - 0.6 * years + float(rng.uniform(-0.1, 0.1)),
        )


@dataclass(frozen=True)
class MassEffect:
    """A growth that pushes tissue away from `centre_mm`; the skull does not give."""

    centre_mm: tuple[float, float, float]
    reach_mm: float
    strength: float

    def nearness(self, at: Points) -> FloatArray:
        """1 in the centre, falling to 0 beyond the reach."""
        square = sum((axis - c) ** 2 for axis, c in zip(at, self.centre_mm, strict=True))
        return np.exp(-square / self.reach_mm**2).astype(np.float32)

    def undone(self, at: Points) -> Points:
        """Where the tissue now at `at` used to be."""
        pull = self.strength * self.nearness(at)
        return Points(*(axis - pull * (axis - c) for axis, c in zip(at, self.centre_mm, strict=True)))


@dataclass(frozen=True)
class Anatomy:
    """Tissue shares (csf, grey, deep_grey, white: they sum to 1) and landmarks, one value for each voxel of `mask`.

    `mask` [X, Y, Z] is the brain as skull stripping leaves it; `at` are positions in the frame of the model's upright
    head, mm; `plexus` (choroid) is a part of `ventricle`, and that of `csf`.
    """

    grid: Grid
    mask: NDArray[np.bool_]
    at: Points
    csf: FloatArray
    grey: FloatArray
    deep_grey: FloatArray
    white: FloatArray
    ventricle: FloatArray
    ventricle_distance_mm: FloatArray
    plexus: FloatArray

    @property
    def ventricle_volume_ml(self) -> float:
        return float(self.ventricle.sum(dtype=np.float64)) * self.grid.voxel_ml

    @property
    def brain_volume_ml(self) -> float:
        """Grey and white matter, without cerebrospinal fluid."""
        return float((1 - self.csf).sum(dtype=np.float64)) * self.grid.voxel_ml


def build_anatomy(grid: Grid, person: Person, push: MassEffect | None, rng: np.random.Generator) -> Anatomy:
    """Draw one brain on `grid`. The same generator gives the same brain at any resolution."""
    frame = _head_frame(person, rng)
    bend = [sum(size * grid.noise(rng, scale) for scale, size in ((48.0, 3.0), (20.0, 1.1))) for _ in range(3)]
    folds = [(FOLD_GRID.noise(rng, scale), scale, depth + 3.5 * grid.noise(rng, 18.0)) for scale, depth in FOLDS]

    bent = Points(*(axis + b for axis, b in zip(frame(grid.points()), bend, strict=True)))
    near = smooth_hull(bent.folded()) > -3 * grid.spacing_mm
    warped = bent.inside(near)
    hull = smooth_hull(warped.folded())
    inner = push.undone(warped) if push else warped
    calm = 1 - 0.85 * push.nearness(warped) if push else np.ones_like(hull)

    kept = hull > -0.3 * person.sulcus_mm - 0.3
    mask = np.zeros(grid.shape, bool)
    mask[near] = kept
    sulcus = _sulcus_distance(grid, near, warped, inner, folds)
    at = Points(*(axis[kept] for axis in inner))
    tissue = _cerebrum(grid, person, at, sulcus[kept], calm[kept])
    tissue = _paint_hindbrain(grid, person, at, tissue)
    tissue, ventricle, ventricle_distance = _paint_deep(grid, person, at, tissue)
    plexus = ventricle * grid.share_inside(
        tube(at.folded(), ((12, -24, 14, 0.8), (22, -37, 6, 2.4), (29, -28, -4, 0.8)))
    )
    return Anatomy(
        grid=grid,
        mask=mask,
        at=Points(*(axis[kept] for axis in warped)),
        **tissue,
        ventricle=ventricle,
        ventricle_distance_mm=ventricle_distance,
        plexus=plexus,
    )


def smooth_hull(half: Points) -> FloatArray:
    """Distance to the surface that skull stripping leaves: cisterns filled, sulci bridged; mm, positive inside."""
    hull = smooth_union(_cerebral_surface(half), _cerebellum(half), 6.0)
    return smooth_union(hull, _brain_stem(half), 6.0)


def _head_frame(person: Person, rng: np.random.Generator) -> Callable[[Points], Points]:
    """A person's head is scaled, tilted by a few degrees and not quite centred."""
    angles = np.deg2rad(rng.uniform(-4, 4, 3))
    shift = rng.uniform(-2.5, 2.5, 3) - (0, 0, 5)  # the model's origin lies 5 mm below the middle of its height
    scale = person.head_scale * rng.uniform(0.97, 1.03, 3)
    turn = np.eye(3)
    for k, angle in enumerate(angles):
        i, j = (k + 1) % 3, (k + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step

    def into_model(at: Points) -> Points:
        moved = [axis - s for axis, s in zip(at, shift, strict=True)]
        turned = [sum(float(turn[i, j]) * moved[j] for j in range(3)) / float(scale[i]) for i in range(3)]
        return Points(*(np.asarray(axis, np.float32) for axis in turned))

    return into_model


def _cerebral_surface(half: Points) -> FloatArray:
    """Both hemispheres with their temporal lobes, without fissures."""
    x, y, z = half
    egg = Points(x * (1 + 0.0012 * y), y, z)  # broader behind than in front
    dome = ellipsoid(egg, (0, -2, 4), (68, 82, 61))
    floor = z + 22 + 0.12 * np.minimum(y + 30, 0) - 0.10 * np.maximum(20 - x, 0)  # higher behind and in the middle
    temporal = ellipsoid(half, (44, 4, -24), (22, 40, 18))
    return smooth_union(-smooth_union(-dome, -floor, 8.0), temporal, 5.0)


def _cerebellum(half: Points) -> FloatArray:
    return smooth_union(
        ellipsoid(half, (23, -56, -35), (29, 28, 19)), ellipsoid(half, (0, -58, -33), (12, 22, 17)), 4.0
    )


def _brain_stem(half: Points) -> FloatArray:
    stem = tube(half, ((0, -16, -8, 13), (0, -22, -30, 13), (0, -30, -58, 9)))
    pons = ellipsoid(half, (0, -15, -30), (17, 12, 13))
    return np.minimum(smooth_union(stem, pons, 4.0), half.z + 51)


def _callosal_arch(half: Points) -> FloatArray:
    """Distance in the sagittal plane to the arch under which the hemispheres are joined; mm, positive inside."""
    flat = Points(np.zeros_like(half.x), half.y, half.z)
    return ellipsoid(flat, (0, -6, 1), (1, 43, 25))


def _sulcus_distance(
    grid: Grid, near: NDArray[np.bool_], outer: Points, inner: Points, folds: list[tuple[FloatArray, float, FloatArray]]
) -> FloatArray:
    """Distance to the nearest sulcus or fissure in mm, for each voxel of `near`.

    Sulci are the zero set of noise that is constant along the normal of the brain's surface: winding sheets that
    stand upright on it, as real ones do.
    """
    x, y, z = half = inner.folded()
    midline = np.hypot(x, np.maximum(_callosal_arch(half), 0))
    depth = np.minimum(_cerebral_surface(outer.folded()), midline)
    surface = _lifted(inner, depth)
    rise = (z + 1 + 0.33 * y - 0.45 * (x - 50)) * 0.87
    sylvian = np.hypot(rise, np.hypot(np.maximum(37 - x, 0), np.maximum(np.abs(y + 2) - 32, 0)))
    nearest = np.minimum(np.maximum(sylvian - 0.4, 0), midline)
    for noise, scale, reach in folds:
        value = np.zeros(near.shape, np.float32)
        value[near] = sampled(noise, FOLD_GRID, surface)
        slope = np.sqrt(sum(part[near] ** 2 for part in np.gradient(value, grid.spacing_mm)))
        usual = 1.3 / scale  # root mean square slope of the noise
        distance = np.abs(value[near]) / np.hypot(np.minimum(slope, 2 * usual), 0.5 * usual)
        nearest = np.minimum(nearest, np.hypot(distance, np.maximum(depth - reach[near], 0)))
    return nearest.astype(np.float32)


def _lifted(at: Points, depth: FloatArray) -> Points:
    """Points moved out to the surface of their hemisphere, away from a rod in its middle; the halves moved apart."""
    half = at.folded()
    rod = (19.0, np.clip(0.55 * half.y, -45, 45), 4.0)
    away = [axis - r for axis, r in zip(half, rod, strict=True)]
    lift = np.clip(depth, -10, 30) / np.sqrt(sum(a * a for a in away) + 1)
    x, y, z = (axis + lift * a for axis, a in zip(half, away, strict=True))
    return Points(np.where(at.x < 0, -x - 8, x + 8), y, z)


def _cerebrum(grid: Grid, person: Person, at: Points, sulcus: FloatArray, calm: FloatArray) -> dict[str, FloatArray]:
    """Cortical ribbon, white matter below it, fluid around it."""
    depth = _cerebral_surface(at.folded())
    width = person.sulcus_mm * calm
    cortex = person.cortex_mm
    tissue = grid.share_inside(depth - 0.3) * (1 - grid.share_of_slab(sulcus, width))
    white = grid.share_inside(depth - 0.3 - cortex) * (1 - grid.share_of_slab(sulcus, width + cortex))
    white = np.minimum(white, tissue)
    none = np.zeros_like(tissue)
    return {"csf": 1 - tissue, "grey": tissue - white, "deep_grey": none, "white": white}


def _paint(tissue: dict[str, FloatArray], share: FloatArray, **mixture: float) -> dict[str, FloatArray]:
    """Lay a structure over what is there; `mixture` says what it consists of."""
    return {name: old * (1 - share) + share * mixture.get(name, 0.0) for name, old in tissue.items()}


def _paint_hindbrain(grid: Grid, person: Person, at: Points, tissue: dict[str, FloatArray]) -> dict[str, FloatArray]:
    half = at.folded()
    depth = _cerebellum(half)
    below = -_cerebral_surface(half)
    tentorium = np.minimum(depth, below + 1.0)
    tissue = _paint(tissue, grid.share_inside(np.minimum(depth + 2.5, below - 0.5)), csf=1.0)
    leaf = half.z * 0.9 + 0.25 * half.x + 0.15 * half.y
    folium = np.abs((leaf / 6.0) % 1 - 0.5) * 6.0  # horizontal leaves, 6 mm apart
    folium = np.hypot(folium, np.maximum(depth - 9, 0))
    inside = grid.share_inside(tentorium - 1.0)
    core = np.minimum(inside, grid.share_inside(depth - 3.5) * (1 - grid.share_of_slab(folium, 2.0)))
    cleft = grid.share_of_slab(folium, 0.3 * person.sulcus_mm) * inside
    tissue = _paint(tissue, inside, grey=1.0)
    tissue = _paint(tissue, core, white=0.9, grey=0.1)
    tissue = _paint(tissue, cleft, csf=1.0)
    return _paint(tissue, grid.share_inside(_brain_stem(half) - 1.0), white=0.75, deep_grey=0.25)


def _paint_deep(
    grid: Grid, person: Person, at: Points, tissue: dict[str, FloatArray]
) -> tuple[dict[str, FloatArray], FloatArray, FloatArray]:
    """Corpus callosum, nuclei, ventricles. Returns the tissues, the ventricles' share and the distance to them."""
    half = at.folded()
    arch = _callosal_arch(half)
    callosum = np.minimum(np.minimum(arch, 6.5 - arch), np.minimum(14 - half.x, half.z + 6))
    centre = np.minimum(arch - 3, ellipsoid(half, (0, -6, 4), (19, 46, 32)))  # no cortex below the arch
    thalamus = ellipsoid(half, (11.5, -13, 4), (9, 15, 9))
    caudate = smooth_union(
        ellipsoid(half, (14.5, 18, 8), (5, 11, 9)), tube(half, ((16, 12, 15, 4), (19, -14, 20, 2))), 3.0
    )
    putamen = ellipsoid(Points(half.x - 0.15 * half.y, half.y, half.z), (26.5, 3, 2), (5.5, 17, 10))
    pallidum = ellipsoid(Points(half.x - 0.25 * half.y, half.y, half.z), (20, -1, 0), (4.5, 9, 6))
    for structure, mixture in (
        (np.minimum(centre, half.z + 12), {"white": 1.0}),
        (callosum, {"white": 1.0}),
        (thalamus, {"deep_grey": 0.8, "white": 0.2}),
        (caudate, {"deep_grey": 1.0}),
        (putamen, {"deep_grey": 1.0}),
        (pallidum, {"deep_grey": 0.5, "white": 0.5}),
    ):
        tissue = _paint(tissue, grid.share_inside(structure), **mixture)
    distance = _ventricle_distance(half, person.ventricle_scale, np.maximum(thalamus, caudate))
    ventricle = grid.share_inside(distance)
    return _paint(tissue, ventricle, csf=1.0), ventricle, distance


def _ventricle_distance(half: Points, scale: float, nuclei: FloatArray) -> FloatArray:
    """All four ventricles; mm, positive inside. Nuclei bulge into the lateral ones."""
    lateral = np.maximum.reduce(
        [tube(half, [(x, y, z, r * scale) for x, y, z, r in horn]) for horn in LATERAL_VENTRICLE]
    )
    lateral = np.minimum(np.minimum(lateral, -nuclei + 1.5 * (scale - 0.7)), half.x - 0.3)
    third = np.minimum(ellipsoid(half, (0, -8, -1), (1.6 + 2.2 * (scale - 0.6), 13, 9)), 12 - half.z)
    fourth = ellipsoid(half, (0, -41, -33), (6.5 * scale, 5 * scale, 9))
    return np.maximum(np.maximum(lateral, third), fourth).astype(np.float32)
