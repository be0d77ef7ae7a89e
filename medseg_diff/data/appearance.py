"""How a prepared scan looks, in a few numbers: brightness, sharpness, noise, how its channels go together, and its size.

They are what another scanner, sequence or disease changes first, and what a network was never told of.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_SLICES = 32  # evenly spaced, that are looked at
SMALLEST = 1e-4  # of gradients and noise, before their logarithm
CLOSEST = 0.99  # of correlations, before Fisher's transformation


def appearance_of(
    image: Tensor, brain: Tensor, spacing_mm: Sequence[float], channels: Sequence[str]
) -> dict[str, float]:
    """Of a prepared image [C, X, Y, Z] and its brain [1, X, Y, Z]: `CHANNEL q50` and so on, quantiles of its intensities;
    `CHANNEL sharpness` and `CHANNEL noise`, logarithms of the mean gradient a mm in plane and of the median difference
    from the mean of 3×3 voxels; `CHANNEL~OTHER`, Fisher's z of their correlation; `brain`, log ml; `slices`, log mm of their
    distance. A channel that does not vary has none. Empty without a brain.
    """
    volume_ml = float(brain.sum()) * math.prod(spacing_mm) / 1000
    filled = brain[0].any(0).any(0).nonzero().flatten()
    if not len(filled):
        return {}
    chosen = filled[:: -(-len(filled) // MOST_SLICES)]
    planes = image[..., chosen].movedim(-1, 0).float()  # [Z, C, X, Y]
    inside = brain[..., chosen].movedim(-1, 0) > 0  # [Z, 1, X, Y]
    voxels = planes.movedim(1, 0)[:, inside[:, 0]]  # [C, N]
    varied = [number for number in range(len(channels)) if voxels[number].std() > SMALLEST]
    interior = _shrunk(inside)[:, 0]
    found = {}
    for number in varied:
        name, plane = channels[number], planes[:, number : number + 1]
        for q, value in zip(QUANTILES, _quantiles(voxels[number]), strict=True):
            found[f"{name} q{100 * q:.0f}"] = value
        if interior.any():
            found[f"{name} sharpness"] = math.log(float(_gradient(plane, spacing_mm)[interior].mean()) + SMALLEST)
            rough = (plane - functional.avg_pool2d(plane, 3, 1, 1)).abs()[:, 0]
            found[f"{name} noise"] = math.log(float(rough[interior].median()) + SMALLEST)
    if len(varied) > 1:
        together = torch.corrcoef(voxels[varied]).clamp(-CLOSEST, CLOSEST).atanh()
        for one, other in itertools.combinations(range(len(varied)), 2):
            found[f"{channels[varied[one]]}~{channels[varied[other]]}"] = float(together[one, other])
    found |= {"brain": math.log(volume_ml), "slices": math.log(spacing_mm[2])}
    return {name: round(value, 5) for name, value in found.items()}


def _quantiles(values: Tensor) -> list[float]:
    ordered = values.sort().values  # torch.quantile takes no more than 16 million
    return [float(ordered[round(q * (len(ordered) - 1))]) for q in QUANTILES]


def _shrunk(inside: Tensor) -> Tensor:
    """Without the outermost voxels: [Z, 1, X, Y] booleans."""
    return functional.max_pool2d((~inside).float(), 3, 1, 1) == 0


def _gradient(plane: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Size of the gradient a mm by differences to the next voxel, [Z, 1, X, Y] → [Z, X, Y]."""
    along_x = functional.pad(plane.diff(dim=2), (0, 0, 0, 1)) / spacing_mm[0]
    along_y = functional.pad(plane.diff(dim=3), (0, 1)) / spacing_mm[1]
    return (along_x**2 + along_y**2).sqrt()[:, 0]
