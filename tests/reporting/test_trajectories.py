"""Denoising trajectories: every picture where it belongs, radiological, and the same bytes for the same trajectory."""

import numpy as np

from medseg_diff.reporting.trajectories import Line, Picture, displayed, draw_lines, sides_of


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_pictures_stand_in_their_places(tmp_path):
    white, black = Picture(np.ones((6, 4))), Picture(np.zeros((6, 4)))
    draw_lines(
        [Line("a", [white, black, None]), Line("b", [black, white, white])],
        columns=["x", "y", "z"],
        path=tmp_path / "s.png",
    )
    shown = pixels(tmp_path / "s.png").mean(axis=2)
    height, width = shown.shape
    left, pitch, head = 0.95 / 4.4, 1.15 / 4.4, 0.28 / 2.58

    def middle(row, column):
        return shown[int(height * (head + (row + 0.5) * 1.15 / 2.58)), int(width * (left + (column + 0.5) * pitch))]

    found = [[round(float(middle(row, column))) for column in range(3)] for row in range(2)]
    assert found == [[1, 0, 0], [0, 1, 1]]


def test_the_same_lines_give_the_same_bytes_and_an_outline_shows(tmp_path):
    outline = np.zeros((8, 8), bool)
    outline[2:6, 2:6] = True
    for name, drawn in (("a", outline), ("b", outline), ("c", None), ("d", np.zeros((8, 8), bool))):
        draw_lines([Line("x", [Picture(np.zeros((8, 8)), outline=drawn)])], columns=["t"], path=tmp_path / name)
    a, b, c, d = ((tmp_path / name).read_bytes() for name in "abcd")
    assert a == b and a != c and c == d


def test_sides_are_named_where_they_are_known(tmp_path):
    assert [sides_of("RAS", plane) for plane in ("axial", "coronal", "sagittal")] == ["RL", "RL", "AP"]
    assert sides_of("LPS") == ""
    for name, sides in (("a", "RL"), ("b", "AP"), ("c", "")):
        draw_lines([Line("x", [Picture(np.zeros((8, 8)), sides=sides)])], columns=["t"], path=tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert len({a, b, c}) == 3


def test_the_patients_right_is_on_the_left_and_anterior_up():
    plane = np.zeros((5, 4))  # [X, Y] in RAS: x grows to the right, y to the front
    plane[-1, -1] = 1  # right, anterior
    assert displayed(plane).shape == (4, 5) and displayed(plane)[0, 0] == 1
