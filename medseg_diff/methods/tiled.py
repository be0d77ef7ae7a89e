"""A volume in pieces: a denoiser that looks at overlapping tiles and blends its predictions, at every step.

x_t and its noise belong to the whole volume, so no seam can grow from one step to the next.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medseg_diff.diffusion import Condition
from medseg_diff.diffusion.denoiser import AnyDenoiser, Prediction, Wrapped, prepared, where_clean
from medseg_diff.methods.batches import padded_batches

Corner = tuple[int, ...]
SHARPNESS = 8  # a tile's edge in standard deviations of its weights: its border counts 1/3000 of its middle


def corners_of(size: Sequence[int], tile: Sequence[int], overlap: float, step: int = 1) -> list[Corner]:
    """First voxels of tiles that cover `size`, evenly spaced, neighbours sharing at least `overlap` of a tile; all of them
    multiples of `step`, as the sides of image and tile have to be.

    Where an axis is shorter than the tile there is one, and it begins before the axis does (see `Tiled`).
    """
    assert not any(n % step for n in (*size, *tile)), (size, tile, step)
    starts = []
    for n, edge in zip((n // step for n in size), (edge // step for edge in tile), strict=True):
        if n <= edge:
            starts.append([-((edge - n) // 2)])
            continue
        stride = max(1, math.floor(edge * (1 - overlap)))
        count = math.ceil((n - edge) / stride) + 1
        starts.append([round(i * (n - edge) / (count - 1)) for i in range(count)])
    return [tuple(step * start for start in corner) for corner in itertools.product(*starts)]


def weights_of(tile: Sequence[int]) -> Tensor:
    """Gaussian weights [*tile], 1 at most: what a network says of a tile's middle counts most."""
    weights = torch.ones(())
    for edge in tile:
        place = torch.arange(edge) - (edge - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (place * SHARPNESS / edge) ** 2)
    return weights


class Tiled(Wrapped):
    """A denoiser of images of any size *S from one that sees tiles of `tile`, `batch` of them at a time.

    Its clean prediction is that of all tiles, blended with Gaussian weights; the noise follows from it, and what the
    network says of variance or deviation is blended likewise. The last batch is padded, so that the network always sees one
    shape; a result depends on `tile`, `overlap` and, in its rounding, `batch`, never on how many samples are given at once.
    An axis shorter than the tile is extended: x_t continues with its own other end, so that it stays noise, and the
    condition with its edge. Tiles begin at multiples of `step`, for a condition that looks otherwise between them.
    `advance`, which may be replaced, is told of the tiles that each batch finished.
    """

    def __init__(
        self, denoiser: AnyDenoiser, tile: Sequence[int], *, overlap: float = 0.25, batch: int = 1, step: int = 1
    ) -> None:
        super().__init__(denoiser)
        self.tile, self.overlap, self.batch, self.step = tuple(tile), overlap, batch, step
        self.advance: Callable[[int], None] = lambda tiles: None

    def prepare(self, condition: Condition) -> Condition:
        """As it is: the denoiser prepares what belongs to its tiles."""
        return condition

    def tiles(self, size: Sequence[int]) -> int:
        """How many tiles cover an image of *S = `size`."""
        return len(self._corners(size))

    def _corners(self, size: Sequence[int]) -> list[Corner]:
        return corners_of(size, self.tile, self.overlap, self.step)

    def passes(self, samples: int, size: Sequence[int]) -> int:
        """Network passes for one prediction of so many images."""
        return -(-samples * self.tiles(size) // self.batch)

    def forward(self, x_t: Tensor, t: int | Tensor, condition: Condition) -> Prediction:
        """Prediction for x_t [B, C, *S] at time t; an image or mask in `condition` lies on the same *S."""
        parts: dict[str, Tensor] = {}
        size = x_t.shape[2:]
        weights, total = _blending(self.tile, tuple(self._corners(size)), tuple(size), x_t.dtype, x_t.device)
        for sample, corner, said in self._predictions(x_t, t, condition):
            if not parts:
                parts = {name: x_t.new_zeros((len(x_t), len(part), *size)) for name, part in said.items()}
            here, inside = _meeting(corner, self.tile, size)
            share = weights[inside] / total[here]
            for name, of_tile in said.items():
                parts[name][sample][(slice(None), *here)] += share * of_tile[(slice(None), *inside)]
        blended = Prediction(**parts)
        return self.with_clean(blended, where_clean(t, x_t, blended.clean), x_t, t)

    def _predictions(
        self, x_t: Tensor, t: int | Tensor, condition: Condition
    ) -> Iterator[tuple[int, Corner, dict[str, Tensor]]]:
        """Sample, corner and what was said of that tile, each part [C, *tile]: sample by sample, corner by corner."""
        corners = self._corners(x_t.shape[2:])
        work = list(itertools.product(range(len(x_t)), corners))
        for number, (tiles, padded) in enumerate(padded_batches(work, self.batch)):
            places = torch.arange(number * self.batch, (number + 1) * self.batch, device=x_t.device)  # in `work`
            owners = places.clamp(max=len(work) - 1) // len(corners)
            prediction = self.denoiser(
                self._stack(x_t, padded, wrapped=True),
                t if isinstance(t, int) else t[owners],
                prepared(self.denoiser, self._condition(condition, padded, owners)),
            )
            said = {name: part for name, part in prediction._asdict().items() if part is not None}
            for row, (sample, corner) in enumerate(tiles):
                yield sample, corner, {name: part[row] for name, part in said.items()}
            self.advance(len(tiles))

    def _condition(self, condition: Condition, work: Sequence[tuple[int, Corner]], owners: Tensor) -> Condition:
        """What is known of each tile: image and mask cut, all else that of its sample."""
        whole = condition._replace(image=None, mask=None)
        cut = {
            name: self._stack(part, work, wrapped=False)
            for name, part in (("image", condition.image), ("mask", condition.mask))
            if part is not None
        }
        return (whole.take(owners) if whole.batch else whole)._replace(**cut)

    def _stack(self, image: Tensor, work: Sequence[tuple[int, Corner]], *, wrapped: bool) -> Tensor:
        """The tiles of [B, C, *S], one after the other: [N, C, *tile]."""
        return torch.stack([self._cut(image[sample], corner, wrapped=wrapped) for sample, corner in work])

    def _cut(self, image: Tensor, corner: Corner, *, wrapped: bool) -> Tensor:
        for axis, (start, edge) in enumerate(zip(corner, self.tile, strict=True), start=1):
            n = image.shape[axis]
            if n >= edge:
                image = image.narrow(axis, start, edge)
            else:
                places = torch.arange(start, start + edge, device=image.device)
                image = image.index_select(axis, places % n if wrapped else places.clamp(0, n - 1))
        return image


@functools.lru_cache(maxsize=1)  # the same at every step of a walk
def _blending(
    tile: Corner, corners: tuple[Corner, ...], size: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The weights of a tile [*tile], and what those of all tiles add up to at each voxel [*size]."""
    weights = weights_of(tile).to(device, dtype)
    total = torch.zeros(size, dtype=dtype, device=device)
    for corner in corners:
        here, inside = _meeting(corner, tile, size)
        total[here] += weights[inside]
    return weights, total


def _meeting(corner: Corner, tile: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a tile meets the image: its place there, and the part of the tile that lies in the image."""
    here = tuple(slice(max(s, 0), min(s + edge, n)) for s, edge, n in zip(corner, tile, size, strict=True))
    inside = tuple(slice(part.start - s, part.stop - s) for s, part in zip(corner, here, strict=True))
    return here, inside
