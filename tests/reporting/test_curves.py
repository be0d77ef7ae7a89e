"""Curves are drawn from tables, and other tables are refused."""

import math

import pytest
from matplotlib.image import imread

from medseg_diff.errors import UsageError
from medseg_diff.reporting import curves
from medseg_diff.reporting.curves import draw_skill, draw_sweep, training_curves
from medseg_diff.reporting.panels import save_png
from medseg_diff.run import Point

LOSS = [Point(step, "loss", 1 / (step + 1)) for step in range(80)]
DICE = [Point(step, "val_dice", 0.8 + step / 1000) for step in range(0, 80, 20)]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws numbers → for each panel its label and the names of its curves, dashed ones with a mark."""
    figures = []
    monkeypatch.setattr(curves, "save_png", lambda figure, path: (figures.append(figure), save_png(figure, path)))

    def draw(numbers):
        training_curves(numbers, tmp_path / "training.png")
        assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
        return {
            axes.get_ylabel(): [
                line.get_label() + ("  --" if line.get_linestyle() == "--" else "")
                for line in axes.get_lines()
                if not line.get_label().startswith("_")
            ]
            for axes in figures[-1].axes
        }

    return draw


def test_training_curves_show_loss_quality_rate_and_speed(drawn):
    more = [Point(20, "val_loss", 0.1), Point(20, "learning_rate", 1e-3), Point(20, "steps per second", 8.0)]
    assert drawn([*LOSS, *DICE, *more, Point(20, "memory", 3.0), Point(80, "loss", math.nan)]) == {
        "Loss": ["loss, mean of 5", "val_loss  --"],
        "Dice": ["val_dice  --"],
        "Learning rate": ["learning_rate"],
        "Steps per second": ["steps per second"],
    }
    assert drawn(LOSS) == {"Loss": ["loss, mean of 5"]}


def test_of_two_curves_that_are_one_one_is_drawn(drawn):
    double = [Point(point.step, "loss_simple", point.value) for point in LOSS[:30]]
    assert drawn([*LOSS[:30], *double]) == {"Loss": ["loss"]}
    other = [Point(point.step, "loss_simple", point.value / 2) for point in LOSS[:30]]
    assert drawn([*LOSS[:30], *other]) == {"Loss": ["loss", "loss_simple"]}


def test_the_losses_of_two_phases_stand_in_panels_of_their_own(drawn):
    values = {"denoiser_loss": -1, "denoiser_val_loss": -2, "classifier_loss": 1, "classifier_val_auroc": 0.9}
    assert drawn([Point(step, name, value) for name, value in values.items() for step in (1, 2)]) == {
        "Loss of the denoiser": ["denoiser_loss", "denoiser_val_loss  --"],
        "Loss of the classifier": ["classifier_loss"],
        "Accuracy and AUROC": ["classifier_val_auroc  --"],
    }


def test_the_same_numbers_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        training_curves([*LOSS, *DICE], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


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
    with pytest.raises(UsageError, match="is not a table of t, auroc, balanced_accuracy"):
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
