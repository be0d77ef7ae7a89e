"""A U-Net that is told a code of an image: encoded once, and nothing but the code passes."""

import pytest
import torch

from medseg_diff.diffusion import Condition
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.networks.noisy_classifier import NoisyClassifierSettings

ENCODER = NoisyClassifierSettings(
    width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=None, groups=4, pooling="max_mean"
)
SMALL = WithEncoderSettings(
    width=8, multipliers=(1, 2), blocks=1, attention=(), groups=8, time_embedding="adaptive", code=5, encoder=ENCODER
)


def network_of(dims=2, settings=SMALL):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=dims, channels=2, outputs=2, image_channels=3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    return network.eval()


def given(dims=2, size=(13, 10, 7)):
    random = torch.Generator().manual_seed(1)
    x_t, image = (torch.randn(2, channels, *size[:dims], generator=random) for channels in (2, 3))
    return x_t, torch.tensor([900, 40]), image


@pytest.mark.parametrize("dims", [2, 3])
def test_it_looks_at_x_t_the_time_and_the_image(dims):
    network, (x_t, t, image) = network_of(dims), given(dims)
    with torch.no_grad():
        said = network(x_t, t, Condition(image=image))
        others = [network(x_t.flip(0), t, Condition(image=image)), network(x_t, t.flip(0), Condition(image=image))]
        others += [network(x_t, t, Condition(image=image.flip(0)))]
    assert said.shape == x_t.shape and said.isfinite().all()
    assert all((other - said).abs().max() > 1e-4 for other in others)


def test_prepared_once_it_gives_the_same_bytes_without_looking_again():
    network, (x_t, t, image) = network_of(), given()
    looked = []
    network.encoder.register_forward_hook(lambda *_: looked.append(1))
    known = network.prepare(Condition(image=image))
    assert known.image is None and known.covariates.shape == (2, SMALL.code) and network.prepare(known) is known
    once = network(x_t, t, known)
    assert len(looked) == 1
    assert torch.equal(once, network(x_t, t, Condition(image=image))) and len(looked) == 2


def test_two_images_of_one_code_are_one_to_it():
    network, (x_t, t, image) = network_of(), given()
    with torch.no_grad():  # an encoder that is blind says the same code of all images
        for parameter in network.encoder.stem.parameters():
            parameter.zero_()
        said = [network(x_t, t, Condition(image=each)) for each in (image, image + 1)]
    assert torch.equal(*said)


def test_the_image_may_have_another_size():
    network, (x_t, t, image) = network_of(), given()
    assert network(x_t, t, Condition(image=image[:, :, :9, :8])).shape == x_t.shape


def test_encoder_and_denoiser_learn_together():
    network, (x_t, t, image) = network_of().train(), given()
    network(x_t, t, Condition(image=image)).square().mean().backward()
    for part in (network.encoder, network.unet):
        assert any(weight.grad is not None and bool(weight.grad.any()) for weight in part.parameters())


def test_its_channels_have_places_in_both_parts():
    network = network_of()
    axes = network.channel_axes(("t1", "t2"), ("seen a", "seen b", "seen c"), ("t1", "t2"))
    state = network.state_dict()
    assert axes["encoder.stem.weight"] == (1, ("seen a", "seen b", "seen c"))
    assert axes["unet.stem.weight"] == (1, ("t1", "t2"))
    assert all(state[name].shape[axis] == len(names) for name, (axis, names) in axes.items())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_code_and_answer_of_a_sample_do_not_depend_on_its_neighbours(precision):
    network = network_of().to(memory_format=torch.channels_last)
    random, order = torch.Generator().manual_seed(2), torch.tensor([2, 0, 0, 0])
    x_t, image = (torch.randn(4, channels, 20, 24, generator=random) for channels in (2, 3))

    def asked(x_t, image):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            known = network.prepare(Condition(image=image))
            return known.covariates, network(x_t, torch.tensor([5]), known)

    for together, apart in zip(asked(x_t, image), asked(x_t[order], image[order]), strict=True):
        assert torch.equal(apart, together[order])
