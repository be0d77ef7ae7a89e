"""One mask from many members: their mean, their majority, or STAPLE's estimate of what all of them saw.

STAPLE: Warfield, Zou and Wells, Simultaneous Truth and Performance Level Estimation, 2004, IEEE TMI 23(7).
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Fusion = Literal["mean", "vote", "staple"]

MOST_ITERATIONS = 100  # STAPLE's weights settle in ten to thirty


def vote(votes: Tensor, members: int) -> Tensor:
    """Share of the members that marked a voxel, float32 of the shape of `votes`; a majority is above one half."""
    return votes.to(torch.float32) / members


def staple(masks: Tensor) -> Tensor:
    """Probability of the hidden truth of `masks` [n, *S] (0 or 1, any type), float32 [*S]; the mask is above one half.

    STAPLE weighs each member by the sensitivity and specificity that it shows against the others. It is run in the
    smallest box that holds every member: over a whole volume the empty background alone would decide the prior. A single
    member is its own truth, and where none marks anything there is none.
    """
    import SimpleITK
    from scipy import ndimage

    truth = masks[0].to(torch.float32)
    marked = masks.any(0)
    if len(masks) == 1 or not marked.any():
        return truth
    (box,) = ndimage.find_objects(marked.cpu().numpy().view(np.uint8))
    inside = masks[(slice(None), *box)].to(torch.uint8).cpu().numpy()
    estimate = SimpleITK.STAPLEImageFilter()
    estimate.SetForegroundValue(1.0)
    estimate.SetMaximumIterations(MOST_ITERATIONS)
    found = estimate.Execute([SimpleITK.GetImageFromArray(mask) for mask in inside])
    fused = torch.zeros_like(truth)
    values = torch.from_numpy(SimpleITK.GetArrayFromImage(found)).to(fused)
    # Where all members mark the whole box there is nothing to weigh, and the estimate is not a number.
    fused[box] = torch.where(values.isfinite(), values, truth[box])
    return fused
