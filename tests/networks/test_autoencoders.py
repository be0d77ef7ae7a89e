"""Autoencoders: sizes and bytes that hang on nothing but the image, latents of deviation 1, and that they learn."""

import pytest
import torch

from medseg_diff.networks.autoencoders import KLSettings, VQSettings
from medseg_diff.training.fit import channels_last
from tests.conftest import shake

SMALL = [
    KLSettings(widths=(8, 16), latent=2, groups=4),
    KLSettings(widths=(8,), latent=3, groups=4, stem=2, attention=True),
    VQSettings(widths=(8, 8), latent=4, codes=16),
    VQSettings(widths=(8,), latent=4, codes=16, stem=2, checkpointing=True),
]
NAMES = ["kl", "kl in a stem", "vq", "vq in a stem"]


def built(settings, dims=2, channels=2):
    torch.manual_seed(0)
    network = settings.build(dims=dims, channels=channels)
    shake(network, torch.Generator().manual_seed(1), 0.1)
    return channels_last(network.eval())


@pytest.mark.parametrize("settings", SMALL, ids=NAMES)
@pytest.mark.parametrize("dims", [2, 3])
def test_any_size_comes_back_on_a_multiple_of_the_step(settings, dims):
    size = (13, 10, 6)[:dims]
    network, image = built(settings, dims), torch.randn(2, 2, *size)
    latent = network.encode(image)
    assert latent.shape == (2, settings.latent, *settings.grid(size))
    back = network.decode(latent)
    assert back.shape[2:] == tuple(n * settings.step for n in latent.shape[2:])
    coded = network(image)
    assert coded.image.shape == image.shape and coded.price.ndim == 0 and coded.price > 0


@pytest.mark.parametrize("settings", SMALL, ids=NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_is_coded_by_itself(settings, precision):
    """Whatever stands beside it, in batches of one size."""
    network = built(settings)
    images = torch.randn(4, 2, 12, 8)
    order = torch.tensor([2, 0, 0, 3])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        latent, again = network.encode(images), network.encode(images[order])
        back, back_again = network.decode(latent), network.decode(again)
    assert latent.dtype == torch.float32
    assert torch.equal(again, latent[order]) and torch.equal(back_again, back[order])


@pytest.mark.parametrize("settings", SMALL, ids=NAMES)
def test_latents_have_deviation_one_once_they_are_measured(settings):
    network, images = built(settings), torch.randn(16, 2, 16, 16)
    with torch.no_grad():
        before = network.decode(network.encode(images))
        network.standardise(network.raw(images))
        latent = network.encode(images)
        after = network.decode(latent)
    varied = network.deviation.flatten() > 1e-5
    assert varied.any()
    assert latent.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(latent.std(dim=(0, 2, 3))[varied], torch.ones(int(varied.sum())), atol=1e-3)
    assert torch.allclose(before, after, atol=1e-4)
    assert {"mean", "deviation"} <= set(network.state_dict())  # they are kept with the weights


def test_a_latent_beside_the_code_book_is_decoded_as_the_nearest_vector():
    network = built(VQSettings(widths=(8,), latent=4, codes=16))
    with torch.no_grad():
        raw = network.raw(torch.randn(2, 2, 8, 8))
        near = raw + 1e-4 * torch.randn_like(raw)
        assert torch.equal(network.image_of(near), network.image_of(raw))


def test_what_is_drawn_in_training_follows_the_generator():
    network, image = built(KLSettings(widths=(8,), latent=2, groups=4)), torch.randn(2, 2, 8, 8)
    first, second, third = (torch.manual_seed(seed) and network(image).image for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "kl", "widths": (12,), "groups": 8}, "12 channels do not divide by 8 groups"),
        ({"kind": "kl", "widths": (2048,) * 8, "blocks": 16, "groups": 8}, "a network of about"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        KLSettings(**settings)
