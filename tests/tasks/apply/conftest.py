"""What tests of the verbs share: a calibration that one may change."""

import json
import shutil

import pytest

from medseg_diff.run import Run


@pytest.fixture
def recalibrated(untrained_anomaly, tmp_path):
    """A copy of the run whose calibration.json one may change."""

    def change(**facts):
        folder = tmp_path / "runs" / "changed"
        if not folder.exists():
            shutil.copytree(untrained_anomaly.folder, folder)
        run = Run(folder)
        known = json.loads(run.calibration_file.read_text())
        run.calibration_file.write_text(json.dumps(known | facts))
        return run

    return change
