"""A network without skip connections: what it says is a function of its code, and the code is as narrow as it was set."""

import pytest
import torch

from medseg_diff.diffusion import Condition
from medseg_diff.networks.bottleneck import BottleneckSettings

SMALL = BottleneckSettings(width=8, multipliers=(1, 2, 2), blocks=1, attention=(), groups=8, code=3)
VARIANTS = {
    "plain": {},
    "stem 2, residual, adaptive": {"stem": 2, "resampling": "residual", "time_embedding": "adaptive"},
    "attention": {"attention": (2,)},
}


def network_of(dims=2, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SMALL.but(**changes).build(dims=dims, channels=2, outputs=4)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    return network.eval()


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dims", "size"), [(2, (16, 12)), (2, (13, 7)), (2, (1, 5)), (3, (9, 5, 6))])
def test_every_variant_takes_2d_and_3d_and_any_size(variant, dims, size):
    network, x = network_of(dims, **VARIANTS[variant]), noise(3, 2, *size)
    with torch.no_grad():
        said = network(x, torch.tensor([1]), Condition())
        other = network(x + 1, torch.tensor([1]), Condition())
        each = network(x, torch.full((3,), 1), Condition(image=x))
    assert said.shape == (3, 4, *size) and said.isfinite().all() and (other - said).abs().max() > 1e-4
    torch.testing.assert_close(each, said, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(("stem", "places"), [(1, 4 * 3), (2, 2 * 2)])
def test_all_that_passes_are_the_numbers_of_the_code(stem, places):
    network, codes = network_of(stem=stem), []
    network.to_code.register_forward_hook(lambda module, given, code: codes.append(code))
    x = noise(1, 2, 16, 12)
    with torch.no_grad():
        network(x, torch.tensor([1]), Condition())
        network.to_code.weight.zero_()  # every image has one code now, and comes back as one image
        one, other = (network(each, torch.tensor([1]), Condition()) for each in (x, x.flip(2)))
    assert codes[0].numel() == SMALL.code * places
    assert torch.equal(one, other)


def test_every_parameter_takes_part():
    network = network_of().train()
    network(noise(2, 2, 16, 12), torch.tensor([1, 1]), Condition()).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_its_channels_have_places():
    network, state = network_of(), network_of().state_dict()
    axes = network.channel_axes(("t1", "t2"), (), ("t1", "t2", "a", "b"))
    assert set(axes) == {"stem.weight", "head.2.weight", "head.2.bias"}
    assert all(state[name].shape[axis] == len(names) for name, (axis, names) in axes.items())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_answer_to_a_sample_does_not_depend_on_its_neighbours(variant, precision):
    network = network_of(**VARIANTS[variant]).to(memory_format=torch.channels_last)
    x, order = noise(4, 2, 20, 24), torch.tensor([2, 0, 0, 0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        together, apart = (network(each, torch.tensor([5]), Condition()) for each in (x, x[order]))
    assert torch.equal(apart, together[order])
