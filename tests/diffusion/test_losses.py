"""Losses by hand: each target's error, the mask's cross-entropy, the bound in bits, and the weight between them."""

import math

import pytest
import torch
from pydantic import ValidationError

from medseg_diff.diffusion import Condition, Denoiser, NoiseSchedule, Prediction
from medseg_diff.diffusion.denoiser import DenoiserSettings
from medseg_diff.diffusion.losses import denoising_loss, hybrid, noised, soft_dice_loss, vlb_term

SCHEDULE = NoiseSchedule(kind="cosine")
NOTHING = Condition()
IMAGE, NOISE = torch.full((3, 1, 4, 4), 0.5), torch.full((3, 1, 4, 4), -1.5)
TIMES = torch.tensor([1, 400, 999])
X_T = noised(IMAGE, NOISE, SCHEDULE.level(TIMES, like=IMAGE))


def signal_to_noise(t):
    """abar / (1 - abar)."""
    alpha, sigma = SCHEDULE.level(t)
    return float(alpha**2 / sigma**2)


def beta_of(t):
    """(beta, beta~) of the step t → t - 1, from abar alone."""
    now, then = (float(SCHEDULE.level(u).alpha ** 2) for u in (t, t - 1))
    beta = 1 - now / then
    return beta, (1 - then) / (1 - now) * beta


@pytest.mark.parametrize("target", ["noise", "clean", "velocity"])
def test_what_a_network_learns_is_what_the_denoiser_reads_back(target):
    alpha, sigma = SCHEDULE.level(TIMES, like=IMAGE)
    right = {"noise": NOISE, "clean": IMAGE, "velocity": alpha * NOISE - sigma * IMAGE}[target]
    for off, loss in ((0.0, 0.0), (0.3, 0.09)):
        denoiser = Denoiser(lambda x, t, c, off=off: right + off, SCHEDULE, target=target)
        found = denoising_loss(denoiser, IMAGE, TIMES, NOISE, NOTHING)["simple"]
        torch.testing.assert_close(found, torch.full((3,), loss), atol=1e-6, rtol=1e-5)
    predicted = Denoiser(lambda x, t, c: right, SCHEDULE, target=target)(X_T, TIMES, NOTHING)
    torch.testing.assert_close(predicted.clean[1:], IMAGE[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(predicted.noise[1:], NOISE[1:], atol=1e-3, rtol=0)


def test_the_loss_of_logits_is_the_cross_entropy_of_a_mask_of_0_and_1():
    """A probability of 3/4 costs log 4/3 inside the mask and log 4 outside it."""
    mask = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    says = Denoiser(lambda x, t, c: torch.full_like(x, math.log(3)), SCHEDULE, target="logits")
    found = denoising_loss(says, mask, torch.tensor([500, 500]), torch.zeros_like(mask), NOTHING)
    assert found["simple"].tolist() == pytest.approx([math.log(4 / 3), math.log(4)])


def test_the_dice_loss_is_that_of_the_whole_batch_and_of_each_channel():
    mask = -torch.ones(2, 2, 4, 4)
    mask[0, 0, :2], mask[1, 1] = 1, 1  # 8 voxels of the first channel, 16 of the second
    sure = soft_dice_loss(100 * mask, mask)
    assert sure.shape == (2,) and sure.tolist() == pytest.approx([0, 0], abs=1e-6)
    blind = soft_dice_loss(torch.zeros_like(mask), mask)  # 1/2 everywhere: 2 · 4 / (16 + 8) and 2 · 8 / (16 + 16)
    assert blind.tolist() == pytest.approx([1 - (1 / 3 + 1 / 2) / 2] * 2)
    nothing = soft_dice_loss(torch.full((1, 1, 4, 4), -200.0), -torch.ones(1, 1, 4, 4))
    assert nothing.isfinite().all()


def test_dice_counts_with_its_weight_and_of_masks_alone():
    mask = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    says = Denoiser(lambda x, t, c: torch.full_like(x, math.log(3)), SCHEDULE, target="logits", dice=2.0)
    losses = denoising_loss(says, mask, torch.tensor([500, 500]), torch.zeros_like(mask), NOTHING)
    assert losses["dice"].tolist() == pytest.approx([1 - 2 * 0.75 / 2.5] * 2)
    assert torch.equal(hybrid(losses, 1000, dice=2.0), losses["simple"] + 2 * losses["dice"])
    assert "dice" not in denoising_loss(
        Denoiser(says.network, SCHEDULE, target="logits"), mask, torch.tensor([5, 5]), mask, NOTHING
    )
    with pytest.raises(ValidationError, match="dice compares masks"):
        DenoiserSettings(target="noise", dice=1.0)


def test_the_bound_weighs_a_thousandth_of_its_terms():
    losses = {"simple": torch.tensor([1.0, 3.0]), "vlb": torch.tensor([2.0, 4.0])}
    assert hybrid(losses, 500).tolist() == [2.0, 5.0]  # 0.001 · 500 = 1/2 of the bound
    assert hybrid(losses, 1000).tolist() == [3.0, 7.0]
    assert hybrid({"simple": losses["simple"]}, 500).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("t", [2, 300, 999])
def test_the_bound_of_a_wrong_mean_is_half_the_fall_of_the_signal_to_noise_ratio_in_bits(t):
    """Kingma et al., Variational Diffusion Models, 2021, arXiv 2107.00630, Eq. 14: ½ (SNR(t - 1) - SNR(t)) |x - x'|²."""
    clean = torch.tensor([0.5, -0.2], dtype=torch.float64).view(2, 1, 1, 1)
    predicted = Prediction(clean + torch.tensor([0.1, -0.3]).view(2, 1, 1, 1), clean)
    found = vlb_term(SCHEDULE, clean, clean, torch.full((2,), t), predicted)
    nats = [0.5 * (signal_to_noise(t - 1) - signal_to_noise(t)) * off**2 for off in (0.1, 0.3)]
    assert found.tolist() == pytest.approx([value / math.log(2) for value in nats], rel=1e-5)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_the_bound_of_a_wrong_variance_is_the_divergence_of_two_gaussians_in_bits(mix):
    clean = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    predicted = Prediction(clean, clean, torch.full_like(clean, mix))
    beta, posterior = beta_of(300)
    wider = (beta / posterior) ** mix  # how many times the true variance; IDDPM Eq. 15
    found = vlb_term(SCHEDULE, clean, clean, torch.tensor([300]), predicted)
    assert float(found) == pytest.approx(0.5 * (math.log(wider) - 1 + 1 / wider) / math.log(2), abs=1e-9)


def test_the_bound_at_the_first_level_is_a_likelihood_in_bits():
    clean = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    off = torch.tensor([0.0, 0.1]).view(2, 1, 1, 1)
    _, variance = beta_of(2)  # stands in for that of t = 1, which is 0
    found = vlb_term(SCHEDULE, clean, clean, torch.tensor([1, 1]), Prediction(clean + off, clean))
    nats = [0.5 * (math.log(2 * math.pi * variance) + distance**2 / variance) for distance in (0.0, 0.1)]
    assert found.tolist() == pytest.approx([value / math.log(2) for value in nats], rel=1e-6)


def test_the_bound_teaches_only_the_variance():
    said = torch.zeros(3, 2, 4, 4, requires_grad=True)
    denoiser = Denoiser(lambda x, t, c: said, SCHEDULE, learned_variance=True)
    denoising_loss(denoiser, IMAGE, TIMES, NOISE, NOTHING)["vlb"].sum().backward()
    assert said.grad[:, 0].abs().max() == 0 and said.grad[:, 1].abs().max() > 0


@pytest.mark.parametrize("deviation", [0.1, 0.5, 2.0])
def test_the_loss_of_a_learned_deviation_is_least_where_it_is_right(deviation):
    """Of N(0, s²) the mean of (e² / v + log v) / 2 is (s² / v + log v) / 2, least at v = s²."""
    clean = deviation * torch.randn(1, 1, 200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(said):
        def network(x_t, t, condition):
            return torch.cat([torch.zeros_like(x_t), torch.full_like(x_t, 2 * math.log(said))], dim=1)

        denoiser = Denoiser(network, SCHEDULE, target="clean", learned_deviation=True)
        found = denoising_loss(denoiser, clean, torch.tensor([1000]), torch.zeros_like(clean), Condition())
        return float(found["simple"])

    assert loss(deviation) == pytest.approx((1 + 2 * math.log(deviation)) / 2, abs=0.02)
    assert loss(deviation) < min(loss(0.8 * deviation), loss(1.25 * deviation))


def test_only_what_has_weight_teaches_and_the_mean_over_a_batch_is_that_of_all_that_has():
    clean, noise = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    weight = (torch.rand(3, 1, 5, 4) > 0.5).float()
    weight[1] = 0
    t, said = torch.tensor([5, 300, 900]), torch.randn(3, 2, 5, 4)
    denoiser = Denoiser(lambda x, t, c: said, SCHEDULE, target="noise")
    each = denoising_loss(denoiser, clean, t, noise, Condition(), weight)["simple"]
    error = (said - noise) ** 2
    assert float(each[1]) == 0
    torch.testing.assert_close(each.mean(), error[weight.expand_as(error) > 0].mean())
    alike = denoising_loss(denoiser, clean, t, noise, Condition(), torch.ones_like(weight))["simple"]
    torch.testing.assert_close(alike, denoising_loss(denoiser, clean, t, noise, Condition())["simple"])
