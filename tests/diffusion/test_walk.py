"""The one loop: which times it visits, what it asks for noise, and that it keeps no graph."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, Condition, NoiseSchedule, trajectory, walk
from medseg_diff.diffusion.exact import GaussianDenoiser

SCHEDULE = NoiseSchedule()


class Listening(GaussianDenoiser):
    """Notes the times it is asked about."""

    def __call__(self, x_t, t, condition=None):
        self.asked.append(t)
        return super().__call__(x_t, t, condition)


def listening():
    denoiser = Listening(SCHEDULE, 0.0, 0.5)
    object.__setattr__(denoiser, "asked", [])
    return denoiser


@pytest.mark.parametrize(
    ("solver", "times", "steps"),
    [
        (DDPM(), [1000, 600, 200, 0], [1, 2]),  # none for the last step: there it would stay in the image
        (DDIM(eta=0.5), [1000, 600, 200], [1, 2]),
        (DDPM(), [0, 200, 600], [1, 2]),
        (DDIM(), [1000, 600, 200, 0], []),
    ],
)
def test_each_step_asks_the_denoiser_once_and_has_noise_of_its_own(solver, times, steps):
    denoiser, drawn = listening(), []

    def noise(like, step):
        drawn.append(step)
        return torch.zeros_like(like)

    reached = [step.t for step in trajectory(denoiser, solver, torch.ones(2, 1, 3), times, noise=noise)]
    assert denoiser.asked == times[:-1] and reached == times[1:] and drawn == steps


def test_walk_ends_where_the_trajectory_ends_and_keeps_no_graph():
    x = torch.ones(2, 1, 3, requires_grad=True)
    times = SCHEDULE.times(4)
    steps = list(trajectory(GaussianDenoiser(SCHEDULE), DDIM(), x, times))
    end = walk(GaussianDenoiser(SCHEDULE), DDIM(), x, times)
    assert torch.equal(end, steps[-1].x) and not end.requires_grad
    assert walk(GaussianDenoiser(SCHEDULE), DDIM(), x, [500]) is x


def test_a_condition_is_prepared_once_for_all_steps():
    class Preparing(GaussianDenoiser):
        def prepare(self, condition):
            prepared.append(condition)
            return condition._replace(label=condition.label + 1)

        def __call__(self, x_t, t, condition=None):
            assert condition.label.tolist() == [1]
            return super().__call__(x_t, t, condition)

    prepared = []
    walk(Preparing(SCHEDULE), DDIM(), torch.ones(1, 1, 3), SCHEDULE.times(3), Condition(label=torch.tensor([0])))
    assert len(prepared) == 1
