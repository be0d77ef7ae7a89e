"""The engine's laws against answers that can be computed; `medseg-diff selftest` prints the same list."""

import pytest

from medseg_diff.diffusion.laws import all_laws

LAWS = list(all_laws())


@pytest.mark.parametrize("law", LAWS, ids=[law.name for law in LAWS])
def test_law_holds(law):
    assert law.measure() <= law.bound


def test_laws_notice_a_wrong_solver(monkeypatch):
    """The libraries' classic fault, the table's beta in a strided step, must not pass."""
    from medseg_diff.diffusion import DDPM, NoiseSchedule, solvers
    from medseg_diff.diffusion.laws import worst_moment_error

    right = solvers.posterior

    def table_beta(now, then):
        return right(now, then)._replace(variance=0.5 * right(now, then).variance)

    monkeypatch.setattr(solvers, "posterior", table_beta)
    assert worst_moment_error(DDPM(), NoiseSchedule()) > 0.01


def test_guidance_law_notices_a_flipped_sign():
    import torch

    from medseg_diff.diffusion import ClassifierGuided, Condition, NoiseSchedule
    from medseg_diff.diffusion.exact import MixtureDenoiser

    mixture = MixtureDenoiser(NoiseSchedule(kind="cosine"))
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).view(-1, 1, 1)
    flipped = ClassifierGuided(mixture, mixture.classifier, 1, scale=-1.0)
    difference = flipped(x, 500, Condition()).noise - mixture.component(1)(x, 500).noise
    assert difference.abs().max() > 0.1
