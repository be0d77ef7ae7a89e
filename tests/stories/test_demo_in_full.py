"""What the README promises of `make demo`, at full size: minutes, so only `make soak` runs it."""

import pytest

from medseg_diff.tasks.demo import demo


@pytest.mark.soak
def test_the_demo_segments_unseen_phantoms_and_maps_their_anomalies(tmp_path):
    found = demo(tmp_path / "demo")
    metrics = found["segment"]["metrics"]
    assert metrics["dice"]["value"] >= 0.80
    assert metrics["auroc_error"]["value"] >= 0.9
    assert (tmp_path / "demo" / "montage.png").stat().st_size > 100_000
    maps = found["anomaly"]["metrics"]
    assert maps["auroc"]["value"] >= 0.90
    assert maps["average_precision"]["value"] >= 0.65
    assert maps["false_positives_ml"]["value"] is not None
