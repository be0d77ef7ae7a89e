"""Cases prepared for training once and kept on disk, so that an epoch reads only the slices that it uses."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_diff import __version__
from medseg_diff.data.missing import filled, present_channels
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Preparation, prepare_case
from medseg_diff.data.views import AxialSlices
from medseg_diff.errors import ImageError
from medseg_diff.files import whole_file

CACHED = ("image", "labels", "brain")


@dataclass(frozen=True)
class PreparedCase:
    """A case as it lies in the cache: image float16 [Z, C, X, Y], labels int16 [Z, 1 + R, X, Y] (reference, raters),
    brain uint8 [Z, 1, X, Y]; memory-mapped, so that only the slices in use are read."""

    name: str
    patient: str
    image: np.ndarray
    labels: np.ndarray
    brain: np.ndarray


def prepare_training_case(
    case: Case,
    channels: Sequence[str],
    preparation: Preparation,
    cache: Path,
    *,
    needs_reference: bool = True,
    fill_missing: bool = False,
) -> PreparedCase:
    """The prepared case from `cache`, made first where it is not there; labels are 0 where no reference is needed or given.

    It is the same for every view: a patch is a range of slices. With `fill_missing` the background stands for channels
    that the case lacks.
    Raises: ManifestError where a channel is missing and may not be; ImageError where the case has no reference, though
    one is needed, or an image is at fault.
    """
    if needs_reference and not (case.seg or case.raters):
        raise ImageError("the case has no reference", fix="fill the column seg, or leave it out", case=case.name)
    folder = cache / _key(case, channels, preparation)
    try:
        return _from_cache(case, folder)
    except (OSError, ValueError, EOFError):  # not there yet, or damaged: made again either way
        _into_cache(case, channels, preparation, folder, fill_missing=fill_missing)
    return _from_cache(case, folder)


def _from_cache(case: Case, folder: Path) -> PreparedCase:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in CACHED}
    return PreparedCase(case.name, case.patient, **arrays)


def _into_cache(
    case: Case, channels: Sequence[str], preparation: Preparation, folder: Path, *, fill_missing: bool
) -> None:
    images = read_case(case, present_channels(case, channels) if fill_missing else channels)
    prepared = filled(prepare_case(images, preparation), channels)
    masks = [mask for mask in (prepared.reference, prepared.raters) if mask is not None]
    if not masks:
        masks = [torch.zeros_like(prepared.brain, dtype=torch.int16)]
    elif prepared.reference is None:
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


def _key(case: Case, channels: Sequence[str], preparation: Preparation) -> str:
    """Names what the prepared arrays depend on: the files as they are now, and how they are prepared."""
    stats = {name: [path.name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in case.paths.items()}
    parts: list[Any] = [__version__, case.name, list(channels), stats, preparation.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
