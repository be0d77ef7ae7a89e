"""The memory that an image will take is known before it is read."""

import numpy as np

from medseg_diff.data.formats.size import size_in_memory
from medseg_diff.data.formats.writing import write_volume


def test_by_the_header_by_the_disk_or_not_at_all(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.zeros((20, 30, 40), dtype=np.uint8), np.eye(4))
    assert size_in_memory(tmp_path / "a.nii.gz") == 4 * 20 * 30 * 40
    (tmp_path / "series").mkdir()
    for number in range(3):
        (tmp_path / "series" / str(number)).write_bytes(bytes(100))
    assert size_in_memory(tmp_path / "series") == 1200
    assert size_in_memory(tmp_path / "series" / "0") == 400
    assert size_in_memory(tmp_path / "gone.nii") == 0
