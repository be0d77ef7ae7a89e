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


def test_a_condition_lies_on_the_grid_of_the_image_already():
    condition = Condition(image=torch.zeros(2, 3, 5, 4), label=torch.tensor([0, 1]))
    assert ImageSpace(scale=0.5).condition(condition) is condition


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_cannot_be_undone_is_refused(scale):
    with pytest.raises(ValidationError):
        ImageSpace(scale=scale)
