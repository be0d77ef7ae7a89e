"""A channel that a case lacks is background in its place, and the others stay what they are."""

from pathlib import Path

import numpy as np
import torch

from medseg_diff.data.missing import filled, missing_channels, present_channels
from medseg_diff.data.reading import CaseImages
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Preparation, prepare_case

FOUR = ("t1", "t1ce", "t2", "flair")


def prepared(channels, background=-1.0):
    image = np.zeros((len(channels), 10, 9, 8), np.float32)
    image[:, 2:-2, 2:-2, 2:-2] = 50 + np.random.default_rng(0).random((len(channels), 6, 5, 4))
    images = CaseImages("a", tuple(channels), image, np.eye(4), None, None, ())
    return prepare_case(images, Preparation(background=background))


def test_which_channels_a_case_has_and_lacks():
    case = Case("a", "a", images={"flair": Path("f"), "t1": Path("t"), "pet": Path("p")})
    assert present_channels(case, FOUR) == ("t1", "flair") and missing_channels(case, FOUR) == ("t1ce", "t2")
    stack = Case("b", "b", stack=Path("s"), stack_channels=("t2", "t1"))
    assert present_channels(stack, FOUR) == ("t1", "t2")


def test_the_background_stands_in_the_place_of_a_missing_channel():
    some = prepared(("t1ce", "flair"), background=-2.0)
    whole = filled(some, FOUR)
    assert whole.channels == FOUR and whole.image.shape == (4, *some.image.shape[1:])
    assert torch.equal(whole.image[[1, 3]], some.image) and (whole.image[[0, 2]] == -2).all()
    assert torch.equal(whole.brain, some.brain) and whole.box == some.box


def test_a_whole_case_is_left_alone():
    some = prepared(("t1", "flair"))
    assert filled(some, ("t1", "flair")) is some
    assert torch.equal(filled(some, ("flair", "t1")).image, some.image[[1, 0]])
