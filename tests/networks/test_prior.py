"""A prior looks once at the image alone; what corrects it sees what it said, and cannot teach it."""

import pytest
import torch

from medseg_diff.diffusion import Condition, Denoiser, NoiseSchedule
from medseg_diff.diffusion.losses import denoising_loss, hybrid
from medseg_diff.errors import ConfigError
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.settings import parse_settings

SMALL = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=8, time_embedding="adaptive", stem=2)
SCHEDULE = NoiseSchedule(kind="cosine", length=1000, input_scale=0.3)


def network_of(dims=2):
    settings = WithPriorSettings(**SMALL.model_dump(include=set(EncoderSettings.model_fields)), correction=SMALL)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=dims, channels=1, outputs=1, image_channels=3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    return network.eval()


def given(dims=2, batch=2):
    random = torch.Generator().manual_seed(1)
    size = (12, 10, 8)[:dims]
    draw = lambda channels: torch.randn(batch, channels, *size, generator=random)  # noqa: E731
    return draw(1), torch.tensor([900, 40]), draw(3)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_says_the_corrected_mask_and_behind_it_the_prior(dims):
    network, (x_t, t, image) = network_of(dims), given(dims)
    value, prior = network(x_t, t, Condition(image=image)).chunk(2, dim=1)
    assert value.shape == prior.shape == x_t.shape
    other_value, other_prior = network(x_t.flip(0), t.flip(0), Condition(image=image)).chunk(2, dim=1)
    assert torch.equal(prior, other_prior) and not torch.equal(value, other_value)
    assert not torch.equal(prior, network(x_t, t, Condition(image=image.flip(0))).chunk(2, dim=1)[1])


def test_prepared_once_it_gives_the_same_bytes_without_looking_again():
    network, (x_t, t, image) = network_of(), given()
    looked = []
    network.prior.register_forward_hook(lambda *_: looked.append(1))
    known = network.prepare(Condition(image=image))
    assert len(looked) == 1 and network.prepare(known) is known
    once = network(x_t, t, known)
    assert len(looked) == 1
    assert torch.equal(once, network(x_t, t, Condition(image=image))) and len(looked) == 2


def moved(network):
    return any(weight.grad is not None and bool(weight.grad.any()) for weight in network.parameters())


def test_the_prior_learns_from_its_own_loss_and_the_correction_from_the_other():
    network, (x_t, t, image) = network_of(), given()
    denoiser = Denoiser(network, SCHEDULE, target="logits", dice=1.0)
    clean = x_t.sign()
    losses = denoising_loss(denoiser, clean, t, x_t, Condition(image=image))
    assert set(losses) == {"simple", "dice", "prior"}
    torch.testing.assert_close(hybrid(losses, 1000, dice=1.0), losses["simple"] + losses["dice"] + losses["prior"])
    losses["simple"].mean().backward(retain_graph=True)
    assert not moved(network.prior)
    assert moved(network.correction)
    corrected = [weight.grad.clone() for weight in network.correction.parameters() if weight.grad is not None]
    (losses["prior"] + losses["dice"]).mean().backward()
    assert moved(network.prior)
    again = [weight.grad for weight in network.correction.parameters() if weight.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(corrected, again, strict=True))


def test_a_prior_is_shown_an_image_alone():
    with pytest.raises(ConfigError, match="conditioned on an image"):
        parse_settings(WithPriorSettings, {"correction": {"classes": 2}}, source="network")
