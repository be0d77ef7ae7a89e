"""The benchmark of views, whole, in miniature: that it measures is the test; and its flicker on masks that are known."""

import numpy as np
import pytest

from benchmarks.dimensions import Size, flicker_of, measure, recipes_of, show, unlikeness
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.tables.manifest import Case

TINY = Size(
    cases=5,
    shape=(32, 32, 32),
    minutes=1e-4,
    warm_up_steps=0,
    timed_steps=1,
    overrides=(
        "training.batch=2",
        "network.width=8",
        "network.multipliers=[1,2]",
        "network.attention=[]",
        "network.groups=4",
        "sampling.members=2",
        "sampling.steps=1",
        "validation.slices=2",
        "validation.members=1",
    ),
    slices=("view={kind: axial_slices, size: [32, 32]}",),
    patches=("view={kind: patches, size: [16, 16, 16], per_case: 2}",),
)


def test_every_view_is_measured_on_the_same_phantoms(tmp_path, dice_of):
    result = measure(tmp_path, size=TINY, device="cpu")
    rows = result["rows"]
    assert [row["name"] for row in rows] == ["2D", "2D, shared noise", "2.5D", "2.5D, shared noise", "3D"]
    for row in rows:
        folder = tmp_path / "predictions" / row["name"].replace(" ", "_")
        assert row["metrics"]["dice"]["value"] == dice_of(folder, tmp_path / "phantoms" / "cases.csv")
        assert row["flicker"] is not None
        assert row["training_steps"] == 2 and row["seconds_per_case"] > 0 and row["network_passes"] >= 1
    assert rows[2]["parameters"] > rows[0]["parameters"] == rows[1]["parameters"]
    assert all(name in show(result) for name in ("2.5D, shared noise", "3D", "flicker"))


def test_the_contenders_differ_in_their_view():
    flat, near, deep = recipes_of(Size()).values()
    assert (flat.view.context, near.view.context, deep.view.kind) == (0, 1, "patches")
    assert flat.preparation == near.preparation == deep.preparation
    assert flat.augmentation == near.augmentation == deep.augmentation
    assert flat.network == near.network == deep.network


def test_flicker_is_what_is_beyond_the_reference(tmp_path):
    steady = np.zeros((6, 6, 8), bool)
    steady[1:5, 1:5, 2:6] = True
    jumpy = steady.copy()
    jumpy[:, :, 3] = False  # one slice fails
    assert unlikeness(steady) == pytest.approx(1 - 2 * 3 / 8)  # of 3 pairs that agree and 2 ends
    assert unlikeness(jumpy) > unlikeness(steady) and unlikeness(np.zeros((4, 4, 4), bool)) is None
    for name, mask in (("seg", steady), ("members/00", steady), ("members/01", jumpy), ("probability", steady)):
        write_volume(tmp_path / f"{name}.nii.gz", mask.astype(np.float32 if name != "seg" else np.uint8), np.eye(4))
    members, ensemble = flicker_of(Case("a", "a", seg=tmp_path / "seg.nii.gz"), tmp_path)
    assert members == pytest.approx((unlikeness(jumpy) - unlikeness(steady)) / 2) and ensemble == pytest.approx(0)
    write_volume(tmp_path / "seg.nii.gz", np.zeros((6, 6, 8), np.uint8), np.eye(4))
    assert flicker_of(Case("a", "a", seg=tmp_path / "seg.nii.gz"), tmp_path) is None
