"""From a table of cases to batches for training: prepared once, kept on disk, cut, changed and shuffled by seed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from medseg_diff import __version__
from medseg_diff.data.augmentation import Augmentation
from medseg_diff.data.manifest import Case
from medseg_diff.data.reading import read_case
from medseg_diff.data.transforms import Preparation, prepare_case
from medseg_diff.data.views import AxialSlices, fit_to
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.files import whole_file
from medseg_diff.seeds import seed_of

Regions = Mapping[str, Sequence[int]]

CACHED = ("image", "labels", "brain")


@dataclass(frozen=True)
class Batch:
    """image [B, C, *S] in [-1, 1]; mask [B, R, *S], -1 outside and 1 inside each region."""

    image: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.image.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


@dataclass(frozen=True)
class PreparedCase:
    """A case as it lies in the cache: image float16 [Z, C, X, Y], labels int16 [Z, 1 + R, X, Y] (reference, raters),
    brain uint8 [Z, 1, X, Y]; memory-mapped, so that only the slices in use are read."""

    name: str
    patient: str
    image: np.ndarray
    labels: np.ndarray
    brain: np.ndarray


def prepare_training_case(case: Case, channels: Sequence[str], preparation: Preparation, cache: Path) -> PreparedCase:
    """The prepared case from `cache`, made first where it is not there.

    Raises: ImageError where the case has no reference or an image is at fault.
    """
    folder = cache / _key(case, channels, preparation)
    try:
        return _from_cache(case, folder)
    except (OSError, ValueError, EOFError):  # not there yet, or damaged: made again either way
        _into_cache(case, channels, preparation, folder)
    return _from_cache(case, folder)


def _from_cache(case: Case, folder: Path) -> PreparedCase:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in CACHED}
    return PreparedCase(case.name, case.patient, **arrays)


def _into_cache(case: Case, channels: Sequence[str], preparation: Preparation, folder: Path) -> None:
    images = read_case(case, channels)
    if images.reference is None and images.raters is None:
        raise ImageError("the case has no reference", fix="fill the column seg, or leave it out", case=case.name)
    prepared = prepare_case(images, preparation)
    masks = [mask for mask in (prepared.reference, prepared.raters) if mask is not None]
    if prepared.reference is None:
        masks = [masks[0][:1], *masks]  # without a reference the first rater stands in its place
    view = AxialSlices()
    arrays = {
        "image": view.cut(prepared.image).to(torch.float16),
        "labels": view.cut(torch.cat(masks)).to(torch.int16),
        "brain": view.cut(prepared.brain).to(torch.uint8),
    }
    for name in CACHED:
        with whole_file(folder / f"{name}.npy") as temporary:
            np.save(temporary, arrays[name].contiguous().numpy())


@dataclass(frozen=True)
class Key:
    """Which image, and in which pass over the data: all that its random choices depend on, besides the seed."""

    epoch: int
    index: int


class SliceDataset(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Slices of prepared cases as {image [C, X, Y], mask [R, X, Y]}; item `Key(epoch, index)` is a pure function."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        view: AxialSlices,
        augmentation: Augmentation,
        regions: Regions,
        *,
        background: float,
        seed: int,
        keep: Callable[[int], bool] = lambda number: True,
    ) -> None:
        self.cases, self.view, self.augmentation, self.regions = cases, view, augmentation, regions
        self.background, self.seed = background, seed
        wanted = [
            (case, z)
            for case, prepared in enumerate(cases)
            for z in view.for_training(view.join(torch.from_numpy(np.array(prepared.brain)).bool()))
        ]
        self.slices = [place for number, place in enumerate(wanted) if keep(number)]
        if not self.slices:
            raise UsageError("no slice is left to train on", fix="lower view.smallest_brain or view.drop")

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        own = seed_of(self.seed, "image", key.epoch, key.index)
        choose = np.random.default_rng(own)
        case, z = self.slices[key.index]
        prepared = self.cases[case]
        opinions = prepared.labels.shape[1] - 1
        rater = 1 + int(choose.integers(opinions)) if opinions else 0
        parts = {
            "image": torch.from_numpy(prepared.image[z].astype(np.float32)),
            "labels": region_masks(
                torch.from_numpy(np.array(prepared.labels[z, rater : rater + 1])), self.regions
            ).float(),
            "brain": torch.from_numpy(np.array(prepared.brain[z])),
        }
        surplus = [max(n - wanted, 0) for n, wanted in zip(parts["image"].shape[1:], self.view.size, strict=True)]
        corner = [int(choose.integers(extra + 1)) for extra in surplus]
        fill = {"image": self.background, "labels": 0, "brain": 0}
        parts = {name: fit_to(self.view.size, part, fill=fill[name], corner=corner) for name, part in parts.items()}
        changed = self.augmentation(**parts, seed=own, background=self.background)
        return {"image": changed["image"], "mask": changed["labels"] * 2 - 1}


class SeededDraws(Sampler[list[Key]]):
    """Batches of keys for steps `start` … `steps` - 1: shuffled anew each epoch, from (seed, epoch) alone.

    `rank` of `ranks` gets its share of every global batch, so the union over ranks is the same for any number of them.
    """

    def __init__(
        self, length: int, batch: int, steps: int, *, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.length, self.batch, self.steps, self.start = length, batch, steps, start
        self.seed, self.rank, self.ranks = seed, rank, ranks

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        whole = self.batch * self.ranks
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            keys = []
            for position in range(step * whole + self.rank * self.batch, step * whole + (self.rank + 1) * self.batch):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(self.length)
                keys.append(Key(epoch, int(order[position % self.length])))
            yield keys


def batches(dataset: SliceDataset, draws: SeededDraws, *, workers: int) -> Iterator[Batch]:
    """Batches in the order of `draws`, made by at most `workers` processes (0: in this one), one core left free.

    How many there are changes no byte.
    """
    from monai.data import DataLoader

    workers = min(workers, (os.cpu_count() or 1) - 1)
    loader = DataLoader(
        dataset, batch_sampler=draws, num_workers=workers, collate_fn=_collate, persistent_workers=False
    )
    yield from loader


def region_masks(labels: Tensor, regions: Regions) -> Tensor:
    """labels [1, *S] integers → [R, *S] booleans, a channel for each region."""
    found = [torch.isin(labels, torch.tensor(list(wanted), dtype=labels.dtype)) for wanted in regions.values()]
    return torch.cat(found)


def _collate(items: list[dict[str, Tensor]]) -> Batch:
    return Batch(torch.stack([item["image"] for item in items]), torch.stack([item["mask"] for item in items]))


def _key(case: Case, channels: Sequence[str], preparation: Preparation) -> str:
    """Names what the prepared arrays depend on: the files as they are now, and how they are prepared."""
    stats = {name: [path.name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in case.paths.items()}
    parts: list[Any] = [__version__, case.name, list(channels), stats, preparation.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
