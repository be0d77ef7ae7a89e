"""Curves are drawn from tables, and other tables are refused."""

import math

import pytest
from matplotlib.image import imread

from medseg_diff.errors import UsageError
from medseg_diff.reporting.curves import draw_skill, draw_sweep, training_curves
from medseg_diff.run import Point


def test_training_curves_show_loss_and_dice_and_nothing_else(tmp_path):
    loss = [Point(step, "loss", 1 / (step + 1)) for step in range(80)]
    dice = [Point(step, "validation_dice", step / 100) for step in range(0, 80, 20)]
    rate = [Point(step, "learning_rate", 1e-3) for step in range(80)]
    training_curves(loss + dice, tmp_path / "both.png")
    training_curves(loss + rate + dice, tmp_path / "more.png")
    training_curves([*loss, Point(80, "loss", math.nan)], tmp_path / "loss.png")
    assert (tmp_path / "both.png").read_bytes() == (tmp_path / "more.png").read_bytes()
    assert imread(tmp_path / "both.png").shape[1] == 2 * imread(tmp_path / "loss.png").shape[1]


@pytest.mark.parametrize("numbers", [[], [Point(1, "learning_rate", 0.1)]])
def test_numbers_without_curves_are_refused(tmp_path, numbers):
    with pytest.raises(UsageError, match=r"metrics.csv: holds neither a loss nor a Dice"):
        training_curves(numbers, tmp_path / "none.png")


def test_skill_is_drawn_and_the_same_table_gives_the_same_bytes(tmp_path):
    table = tmp_path / "classifier.csv"
    table.write_text("t,balanced_accuracy,auroc,cross_entropy\n1,0.9,0.95,0.3\n500,0.5,0.52,0.7\n")
    draw_skill(table, tmp_path / "a.png")
    draw_skill(table, tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000 and content == (tmp_path / "b.png").read_bytes()
    table.write_text("t,balanced_accuracy,auroc,cross_entropy\n1,0.6,0.7,0.3\n500,0.5,0.52,0.7\n")
    draw_skill(table, tmp_path / "b.png")
    assert content != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("text", ["step,name,value\n1,loss,2\n", "t,balanced_accuracy,auroc\n1,high,0.5\n"])
def test_a_table_without_skill_is_refused(tmp_path, text):
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(UsageError, match="is no table of t, auroc, balanced_accuracy"):
        draw_skill(tmp_path / "other.csv", tmp_path / "a.png")


SWEEP = "depth,steps,scale,drift,contrast,average_precision\n"


def test_a_sweep_has_a_column_for_each_number_of_steps(tmp_path):
    for steps in ((5,), (5, 10)):
        lines = [f"{depth},{n},{scale},0.1,1.2,\n" for depth in (10, 20) for n in steps for scale in (1, 3)]
        (tmp_path / "sweep.csv").write_text(SWEEP + "".join(lines))
        draw_sweep(tmp_path / "sweep.csv", tmp_path / f"{len(steps)}.png")
    one, two = (imread(tmp_path / f"{count}.png").shape[1] for count in (1, 2))
    assert one < two < 2 * one
    (tmp_path / "sweep.csv").write_text("depth,steps,drift,contrast,average_precision\n10,5,,,0.9\n10,9,,,0.95\n")
    draw_sweep(
        tmp_path / "sweep.csv", tmp_path / "steps.png", ("depth", "steps")
    )  # neither a scale nor healthy slices: one panel
    assert imread(tmp_path / "steps.png").shape[0] < 0.6 * imread(tmp_path / "1.png").shape[0]
    (tmp_path / "sweep.csv").write_text(SWEEP)
    with pytest.raises(UsageError, match="holds no rows"):
        draw_sweep(tmp_path / "sweep.csv", tmp_path / "none.png")
