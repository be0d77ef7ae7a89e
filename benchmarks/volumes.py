"""Whole cases in memory, made up or read, and as the training cache would hold them; no file is written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medseg_diff.data.datasets.cache import PreparedCase
from medseg_diff.data.reading import CaseImages, read_case
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.data.transforms import Prepared
from medseg_diff.data.views import AxialSlices
from medseg_diff.errors import UsageError
from medseg_diff.phantoms.make import PhantomSettings, make_case

CASES = 2


def phantoms_of(shape: tuple[int, int, int]) -> list[CaseImages]:
    """Two phantoms with a glioma each."""
    settings = PhantomSettings(cases=CASES, shape=shape, healthy=0)
    found = []
    for case in (make_case(settings, index) for index in range(settings.cases)):
        image = np.stack([case.images[channel] for channel in case.images]).astype(np.float32)
        reference = case.seg.astype(np.int16)
        found.append(CaseImages(case.name, tuple(case.images), image, case.affine, reference, None, ()))
    return found


def first_cases(data: Path, data_root: Path | None, channels: Sequence[str]) -> list[CaseImages]:
    """The first two cases of a table that have a reference. Raises: UsageError where none has one, ImageError."""
    cases = [case for case in read_manifest(data, data_root=data_root).cases if case.seg]
    if not cases:
        raise UsageError("no case has a reference", fix="fill the column seg", file=data.name)
    return [read_case(case, channels) for case in cases[:CASES]]


def as_in_cache(case: Prepared) -> PreparedCase:
    """A prepared case with its reference, cut and rounded as `prepare_training_case` stores it."""
    assert case.reference is not None
    cut = AxialSlices().cut
    return PreparedCase(
        case.name,
        case.name,
        cut(case.image).to(torch.float16).contiguous().numpy(),
        cut(case.reference).to(torch.uint8).contiguous().numpy(),
        cut(case.brain).to(torch.uint8).contiguous().numpy(),
    )
