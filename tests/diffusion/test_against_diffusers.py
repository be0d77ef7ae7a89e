"""Step for step the same as diffusers' DDPM, DDIM and DPM-Solver++ on the same levels."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, DPMSolverPP, NoiseSchedule, trajectory
from medseg_diff.diffusion.exact import GaussianDenoiser

diffusers = pytest.importorskip("diffusers")

STEPS = 10


@pytest.fixture(params=["linear", "scaled_linear", "cosine"])
def denoiser(request):
    return GaussianDenoiser(NoiseSchedule(kind=request.param), 0.3, 0.5)


def their_betas(schedule):
    abar = torch.stack([schedule.level(t).alpha ** 2 for t in range(schedule.length + 1)])
    return (1 - abar[1:] / abar[:-1]).numpy()


def start():
    return torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def drawn(step):
    return torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + step))


def our_steps(denoiser, solver):
    times = denoiser.schedule.times(STEPS)
    return [step.x for step in trajectory(denoiser, solver, start(), times, noise=lambda like, step: drawn(step))]


def their_steps(denoiser, scheduler, step_noise):
    x, ours = start(), denoiser.schedule.times(STEPS)
    for step, (t, theirs) in enumerate(zip(ours, scheduler.timesteps, strict=False), start=1):
        assert int(theirs) == t - 1  # they count the noise levels from 0
        x = scheduler.step(denoiser(x, t).noise, theirs, x, **step_noise(step)).prev_sample
        yield x


def assert_same(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other.to(mine.dtype), atol=tolerance, rtol=tolerance)


def test_ddpm(denoiser):
    scheduler = diffusers.DDPMScheduler(
        trained_betas=their_betas(denoiser.schedule),
        clip_sample=False,
        variance_type="fixed_small",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(STEPS)

    def step_noise(step):
        return {"generator": torch.Generator().manual_seed(100 + step)}

    assert_same(our_steps(denoiser, DDPM()), list(their_steps(denoiser, scheduler, step_noise)), 1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(denoiser, eta):
    scheduler = diffusers.DDIMScheduler(
        trained_betas=their_betas(denoiser.schedule), clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)

    def step_noise(step):
        return {"eta": eta, "variance_noise": drawn(step) if eta else None}

    assert_same(our_steps(denoiser, DDIM(eta=eta)), list(their_steps(denoiser, scheduler, step_noise)), 1e-4)


def test_dpm_solver_pp(denoiser):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=their_betas(denoiser.schedule),
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=False,
    )
    scheduler.set_timesteps(STEPS)
    assert_same(our_steps(denoiser, DPMSolverPP()), list(their_steps(denoiser, scheduler, lambda step: {})), 2e-3)
