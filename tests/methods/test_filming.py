"""A film shows what the walk did, and changes nothing about it."""

import pytest
import torch

from medseg_diff.diffusion import DDPM, Condition, NoiseSchedule, SeededNoise, walk
from medseg_diff.diffusion.exact import GaussianDenoiser
from medseg_diff.methods.filming import film

SCHEDULE = NoiseSchedule(kind="cosine", length=100)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("steps", "frames", "times"), [(3, 6, [100, 67, 33]), (10, 3, [100, 60, 10]), (1, 6, [100])])
def test_frames_are_of_the_walk_first_and_last_included(dims, steps, frames, times):
    denoiser, noise = GaussianDenoiser(SCHEDULE), SeededNoise([1, 2])
    begin = noise(torch.empty(2, 1, *(4,) * dims), 0)
    path = SCHEDULE.times(steps)
    seen = film(denoiser, DDPM(), begin, path, Condition(), SeededNoise([1, 2]), frames=frames)
    assert [frame.t for frame in seen.frames] == times
    assert torch.equal(seen.frames[0].noisy, begin)
    assert torch.equal(seen.end, walk(denoiser, DDPM(), begin, path, Condition(), SeededNoise([1, 2])))
    for frame in seen.frames:
        assert torch.equal(frame.clean, denoiser(frame.noisy, frame.t, Condition()).clean)
