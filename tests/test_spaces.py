"""What goes into a space comes back."""

import pytest
import torch
from pydantic import ValidationError

from medseg_diff.diffusion import Condition
from medseg_diff.spaces import PLAIN, ImageSpace


def test_an_image_is_scaled_and_comes_back():
    image = torch.randn(2, 3, 5, 4)
    half = ImageSpace(scale=0.5)
    assert torch.equal(half.encode(image), image / 2) and torch.equal(half.decode(half.encode(image)), image)
    assert torch.equal(PLAIN.encode(image), image)


def test_zero_and_one_are_a_space_like_any_other():
    binary = ImageSpace(scale=0.5, offset=0.5)
    assert binary.encode(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 0.5, 1]
    assert binary.decode(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]


def test_a_condition_is_shown_in_the_units_of_the_space():
    condition = Condition(image=torch.full((2, 3, 5, 4), -1.0), label=torch.tensor([0, 1]))
    shown = ImageSpace(scale=0.5, offset=0.5).condition(condition)
    assert torch.equal(shown.image, torch.zeros(2, 3, 5, 4)) and shown.label is condition.label
    assert torch.equal(PLAIN.condition(condition).image, condition.image)
    nothing = Condition(label=torch.tensor([0, 1]))
    assert ImageSpace(scale=0.5).condition(nothing) is nothing


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_cannot_be_undone_is_refused(scale):
    with pytest.raises(ValidationError):
        ImageSpace(scale=scale)
