"""Generators: images of one size, made of the latent alone, each by itself; and what they are trained beside."""

import pytest
import torch
from pydantic import ValidationError

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.generators import GeneratorSettings, latent_in, noise_with
from medseg_diff.training.fit import channels_last
from tests.conftest import shake

T = torch.ones(1)
SIZES = pytest.mark.parametrize("size", [(12, 20), (12, 20, 16)], ids=["2D", "3D"])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def settings(size, **changes):
    return GeneratorSettings(**{"latent": 5, "widths": (8, 16), "stem": 2, "groups": 4, "size": size} | changes)


def steep(network):
    """A network that changes its answer with a little rounding."""
    shake(network, torch.Generator().manual_seed(1))
    return channels_last(network.eval())


def generator(size, **changes):
    return steep(settings(size, **changes).build(dims=len(size), channels=2, outputs=2))


def noise(count, size, seed=0):
    return torch.randn(count, 2, *size, generator=torch.Generator().manual_seed(seed))


@SIZES
@pytest.mark.parametrize("shape", [{}, {"stem": 1}, {"stem": 1, "widths": (8, 8, 8)}], ids=str)
def test_an_image_is_what_its_latent_says_and_nothing_else(size, shape):
    network, x = generator(size, **shape), noise(3, size)
    with torch.no_grad():
        images = network(x, T, Condition())
        other = noise(3, size, seed=1)
        other.flatten(1)[:, :5] = x.flatten(1)[:, :5]
        again = network(other, torch.full((3,), 7.0), Condition(covariates=torch.ones(3, 1)))
        changed = network(noise(3, size, seed=1), T, Condition())
    assert images.shape == x.shape and images.abs().max() <= 1 and images.std() > 0.01
    assert torch.equal(images, again) and not torch.equal(images, changed)


def test_noise_holds_the_latent_that_is_put_in():
    latent = torch.randn(3, 5)
    held = noise_with(latent, (2, 4, 6))
    assert held.shape == (3, 2, 4, 6) and torch.equal(latent_in(held, 5), latent)
    assert torch.equal(latent_in(held.to(memory_format=torch.channels_last), 5), latent)


@pytest.mark.usefixtures("threads")
@PRECISIONS
@SIZES
def test_an_image_is_its_own_whatever_stands_beside_it(size, precision):
    """To the byte in batches of one size; in another one up to rounding."""
    network, x, order = generator(size), noise(5, size), torch.tensor([4, 0, 3, 3, 0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        together, again = network(x, T, Condition()), network(x[order], T, Condition())
        alone = network(x[:1], T, Condition())
    assert torch.equal(again, together[order])
    torch.testing.assert_close(alone, together[:1], rtol=0, atol=1e-4 if precision == "fp32" else 0.05)


@SIZES
def test_verdicts_and_latents_are_of_each_image_by_itself(size):
    asked, images, order = settings(size), noise(5, size), torch.tensor([4, 0, 3, 3, 0])
    discriminator, encoder = (steep(build(channels=2)) for build in (asked.discriminator, asked.encoder))
    with torch.no_grad():
        judged, again = discriminator(images), discriminator(images[order])
        said, said_again = encoder(images), encoder(images[order])
    assert judged.verdict.shape == (5,) and judged.maps.shape == (5, 16, *(n // 4 for n in size))
    assert said.shape == (5, 2, 5) and judged.verdict.std() > 0 and said.std() > 0
    for one, other in ((judged.verdict, again.verdict), (judged.maps, again.maps), (said, said_again)):
        torch.testing.assert_close(other, one[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": (12, 18)}, "multiples of 4, at least 12, not 12×18"),
        ({"size": (8, 12)}, "multiples of 4, at least 12, not 8×12"),
        ({"groups": 3}, "8 channels do not divide by 3 groups"),
        ({"widths": (2048,) * 8, "size": ()}, "a network of about"),
        ({"widths": (8,)}, "at least 2 items"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        settings((12, 12)).model_validate(settings((12, 12)).model_dump() | changes)
