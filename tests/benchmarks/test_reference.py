"""The reference benchmark in miniature: its answers are equal, and every ratio is there."""

import torch

from benchmarks.few_steps import Amount as FewAmount
from benchmarks.few_steps import measure as measure_few
from benchmarks.few_steps import show as show_few
from benchmarks.reference import Amount, measure, show, summary
from benchmarks.reference_anomaly import GuidedSubject
from benchmarks.reference_plot import draw

TINY = Amount(
    rounds=1,
    slices=1,
    steps=2,
    training_rounds=1,
    training_batch=2,
    shape=(32, 32, 32),
    changes=("preparation.spacing_mm=[6, 6, null]",),
    matrix=256,
)
FEW = FewAmount(
    cases=6,
    slices=2,
    training_steps=1,
    many=4,
    deep=4,
    shape=(40, 40, 32),
    changes=("view.size=[32, 32]", "preparation.spacing_mm=[6, 6, null]", "training.batch=4", "validation.slices=2"),
)


def test_ours_says_what_straightforward_code_says_and_is_timed_beside_it(tmp_path):
    result = measure(TINY)
    draw(result, tmp_path / "reference.png")
    assert (tmp_path / "reference.png").stat().st_size > 1000
    equal = result["equality"]
    assert equal["pass_largest_difference"] < 1e-4 and equal["steps_largest_difference"] < 1e-4
    assert next(iter(result["one_step"]["ratios"])) == "reference" and result["one_step"]["gflop"] > 0
    assert set(summary(result)) == {
        "equal", "one_step", "training_step", "slice", "anomaly_slice", "volume, ours", "volume, default recipe, 10 members",
    }  # fmt: skip
    assert all(value > 0 for name, value in summary(result).items() if name != "equal")
    assert 0 < result["sampling"]["volume"]["with_brain"] <= result["sampling"]["volume"]["slices"] <= 32
    assert "one step, 5 members" in show(result)


def test_the_plain_inversion_is_the_engines():
    subject = GuidedSubject.made()
    images = torch.randn(2, 4, 24, 32, generator=torch.Generator().manual_seed(0))
    ours = subject.ours(images, precision="fp32")
    times = subject.engine.times(subject.recipe.schedule)
    theirs = torch.stack([subject.reference(image, times) for image in images.split(1)])
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_few_steps_are_scored_beside_many(tmp_path):
    result = measure_few(tmp_path, FEW)
    assert [row["steps"] for row in result["segmentation"]] == [3, 4]
    assert [row["steps"] for row in result["anomaly"]] == [6, 4]
    assert "AUROC" in show_few(result)
