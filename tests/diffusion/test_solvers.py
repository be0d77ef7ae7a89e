"""Single steps by hand, between two levels whose numbers are round; and that the laws notice a wrong step."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, DPMSolverPP, NoiseSchedule, Prediction, solvers
from medseg_diff.diffusion.laws import worst_moment_error
from medseg_diff.diffusion.schedule import Level
from medseg_diff.diffusion.solvers import Posterior, mixed_log_variance, posterior

NOW, THEN = (Level(*torch.tensor([abar, 1 - abar], dtype=torch.float64).sqrt()) for abar in (0.25, 0.64))
BETA, POSTERIOR = 1 - 0.25 / 0.64, 0.36 / 0.75 * (1 - 0.25 / 0.64)  # of the step between them
X, CLEAN, ONE = torch.full((1, 1, 1), 2.0, dtype=torch.float64), torch.tensor(1.0), torch.tensor(1.0)
SEEN = Prediction(CLEAN, (X - 0.5 * CLEAN) / 0.75**0.5)
MEAN = (
    0.65 * 1 + 0.3 * 2
)  # Ho 2020 Eq. 7: sqrt(0.64) beta / 0.75 of the clean image, sqrt(0.25 / 0.64) 0.36 / 0.75 of x


def test_the_posterior_of_a_step():
    found = posterior(NOW, THEN)
    assert [float(part) for part in found] == pytest.approx([0.65, 0.3, POSTERIOR, BETA])


@pytest.mark.parametrize(("variance", "expected"), [("posterior", POSTERIOR), ("beta", BETA)])
def test_a_step_of_ddpm(variance, expected):
    step = DDPM(variance=variance)
    assert float(step(X, NOW, THEN, SEEN, None, None)) == pytest.approx(MEAN)
    assert float(step(X, NOW, THEN, SEEN, None, ONE)) == pytest.approx(MEAN + expected**0.5)


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_a_learned_variance_mixes_logs(mix):
    told = SEEN._replace(variance_mix=torch.tensor(mix))
    variance = BETA**mix * POSTERIOR ** (1 - mix)
    assert float(mixed_log_variance(posterior(NOW, THEN), torch.tensor(mix)).exp()) == pytest.approx(variance)
    found = DDPM(variance="learned")(X, NOW, THEN, told, None, ONE)
    assert float(found) == pytest.approx(MEAN + variance**0.5)


def test_a_step_of_ddim_and_of_ddpm_where_it_has_all_its_noise():
    assert float(DDIM()(X, NOW, THEN, SEEN, None, None)) == pytest.approx(0.8 + 0.6 * 1.5 / 0.75**0.5)
    everything = DDIM(eta=1.0)(X, NOW, THEN, SEEN, None, ONE)
    assert float(everything) == pytest.approx(float(DDPM()(X, NOW, THEN, SEEN, None, ONE)))


def test_towards_more_noise_ddpm_is_the_forward_process_and_ddim_takes_the_noise_it_sees():
    clean = NoiseSchedule().level(0)
    assert float(DDPM()(X, clean, NOW, SEEN, None, ONE)) == pytest.approx(0.5 * 2 + 0.75**0.5)
    assert float(DDIM(eta=1.0)(X, THEN, NOW, SEEN, None, ONE)) == pytest.approx(0.5 + 0.75**0.5 * float(SEEN.noise))


def test_the_first_step_of_dpm_solver_is_ddims():
    found, other = (solver(X, NOW, THEN, SEEN, None, None) for solver in (DPMSolverPP(), DDIM()))
    assert float(found) == pytest.approx(float(other))


def test_the_laws_notice_the_tables_beta_in_a_strided_step(monkeypatch):
    """The libraries' classic fault: the beta of t → t - 1 in a step that goes further."""
    schedule = NoiseSchedule()
    assert worst_moment_error(DDPM(), schedule) < 1e-6
    alphas = torch.stack([schedule.level(t).alpha for t in range(schedule.length + 1)])

    def with_the_tables_beta(now, then):
        t = int((alphas - now.alpha).abs().argmin())
        beta = 1 - (alphas[t] / alphas[t - 1]) ** 2
        mean_of_clean, mean_of_x = then.alpha * beta, (1 - beta).sqrt() * then.sigma**2
        variance = then.sigma**2 / now.sigma**2 * beta
        return Posterior(mean_of_clean / now.sigma**2, mean_of_x / now.sigma**2, variance, beta)

    monkeypatch.setattr(solvers, "posterior", with_the_tables_beta)
    assert worst_moment_error(DDPM(), schedule) > 0.1
