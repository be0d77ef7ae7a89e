"""The benchmark of inserted lesions: they are as large, bright and deep as they are called, and patients stay apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.inserted import CONTRASTS, DEEP_MM, PLACES, RADII_MM, WIDENED_MM, ball, lesions_of, show, split_of
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.methods.anomaly.normative import depth_of

SPACING_MM = (2.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def brain():
    """A ball of noise with a darker ball in its middle."""
    size = (50, 50, 90)
    inside = ball((25, 25, 45), 42.0, size, SPACING_MM)
    image = np.where(inside, 0.1 * np.random.default_rng(0).standard_normal(size), -1).astype(np.float32)
    image[ball((25, 25, 45), 8.0, size, SPACING_MM)] = -0.8
    parts = (torch.from_numpy(part)[None] for part in (image, inside))
    return SimpleNamespace(name="a", spacing_mm=SPACING_MM, **dict(zip(("image", "brain"), parts, strict=True)))


def test_a_ball_has_its_volume():
    lesion = ball((30, 20, 25), 8.0, (60, 44, 50), (1.0, 1.5, 1.0))
    assert lesion.sum() * 1.5 == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.03)


def test_lesions_are_what_they_are_called(brain):
    found = list(lesions_of(brain))
    assert len(found) == len(RADII_MM) * len(CONTRASTS) * PLACES + len(WIDENED_MM)
    inside, deviation = brain.brain[0].numpy(), float(brain.image[brain.brain].std())
    for each in found:
        assert each.lesion.any() and not (each.lesion & ~inside).any() and (each.image[~brain.brain] == -1).all()
    large = [each for each in found if each.name.startswith("12 mm, +1")]
    assert len({each.lesion.tobytes() for each in large}) == PLACES
    for each in large:
        change = (each.image - brain.image)[0].numpy()[each.lesion]
        assert float(np.median(change)) == pytest.approx(deviation, rel=0.05)
    near, far = found[-2:]
    assert near.lesion.sum() < far.lesion.sum() and not (near.lesion & ~far.lesion).any()
    assert np.median(far.image[0].numpy()[far.lesion]) == pytest.approx(-0.8)
    assert depth_of(brain.brain, SPACING_MM)[far.lesion].min() > DEEP_MM - max(WIDENED_MM)


def test_every_recipe_is_tried_at_the_same_places(brain):
    one, again = list(lesions_of(brain)), list(lesions_of(brain))
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, again, strict=True))


def test_patients_are_tested_on_or_learned_from(tmp_path):
    cases = tuple(Case(name=f"c{n}", patient=f"p{n // 2}") for n in range(16))
    split = split_of(Manifest(cases=cases, file="cases.csv", root=tmp_path))
    patients = {name: {case.patient for case in split.of(name)} for name in ("train", "val", "test")}
    assert patients == {"train": {"p0", "p1"}, "val": {"p2", "p3", "p4"}, "test": {"p5", "p6", "p7"}}
    assert all(case.label == "healthy" for case in split.cases)


def test_the_table_has_means_over_brains():
    rows = [
        {"lesion": "none", "marked_ml": 1.25},
        {"lesion": "6 mm, +2 SD", "auroc": 0.9, "average_precision": 0.5, "found": True},
        {"lesion": "6 mm, +2 SD", "auroc": 0.7, "average_precision": 0.1, "found": False},
    ]
    text = show({"rows": {"quick/anoddpm": rows}, "tested": 1, "trained": 3})
    assert "6 mm, +2 SD" in text and "0.80 / 0.30 / 0.50" in text and "1.2" in text
