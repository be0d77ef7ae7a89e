"""What the README promises of `make demo`, at full size: minutes, so only `make soak` runs it."""

import pytest

from medseg_diff.tasks.demo import demo


@pytest.mark.soak
def test_the_demo_segments_unseen_phantoms(tmp_path):
    metrics = demo(tmp_path / "demo")["metrics"]
    assert metrics["dice"]["value"] >= 0.80
    assert metrics["auroc_error"]["value"] >= 0.9
    assert (tmp_path / "demo" / "montage.png").stat().st_size > 100_000
