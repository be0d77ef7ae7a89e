"""Small images as datasets hold them, and a table read to its last voxel."""

import nibabel
import numpy as np
import pytest

from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import read_manifest

SHAPE = (20, 22, 18)
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def _ball(radius):
    x, y, z = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
    return (x - 10) ** 2 + (y - 11) ** 2 + (z - 9) ** 2 <= radius**2


class Maker:
    """Writes brains that are balls, each another, and masks."""

    def __init__(self):
        self.made = 0

    def image(self, path, volumes=None):
        """A brain; with `volumes` a 4D file of so many, the first of about 100, the second of about 200 and so on."""
        self.made += 1
        rng = np.random.default_rng(self.made)
        layers = [
            _ball(8) * (100 * (number + 1) + rng.integers(0, 20, SHAPE)) * (1 + _ball(3) * 0.5)
            for number in range(volumes or 1)
        ]
        voxels = np.stack(layers, axis=-1) if volumes else layers[0]
        return self._save(voxels.astype(np.float32), path)

    def mask(self, path, label=1):
        return self._save((_ball(3) * label).astype(np.uint8), path)

    def junk(self, *paths):
        """What file systems and archives add."""
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\0\5\x16\7junk")

    def _save(self, voxels, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
        return path


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def read_all():
    """The cases of a table by name, after every image and mask of theirs was read."""

    def read(table, data_root=None, resample_to=None):
        cases = {case.name: case for case in read_manifest(table, data_root=data_root).cases}
        for case in cases.values():
            images = read_case(case, resample_to=resample_to)
            assert images.channels == case.channels and (images.reference is None) == (case.seg is None)
        return cases

    return read
