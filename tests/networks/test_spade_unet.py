"""A U-Net that paints a mask: any size, 2D and 3D, its edges, its null map, own bytes; and it does paint."""

import re

import pytest
import torch
from torch.nn import functional

from medseg_diff.diffusion import DDIM, ClassifierFree, Condition, Denoiser, NoiseSchedule, walk
from medseg_diff.networks.encoder import EncoderSettings
from medseg_diff.networks.spade_unet import SpadeNormSiLU, SpadeUNetSettings, with_edges
from medseg_diff.networks.unet import UNetSettings
from tests.conftest import shake

SMALL = SpadeUNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, map_channels=3, hidden=6)
VARIANTS = {
    "additive, plain": {},
    "adaptive, residual, attention": {"time_embedding": "adaptive", "resampling": "residual", "attention": (1,)},
    "stem 2": {"stem": 2},
}
SCHEDULE = NoiseSchedule(kind="cosine")
T = torch.tensor([400])


def built(*, dims=2, shaken=True, image_channels=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SMALL.but(**changes).build(dims=dims, channels=1, outputs=2, image_channels=image_channels)
    if shaken:
        shake(network, torch.Generator().manual_seed(1), 0.1)
    return network.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(batch, *size, seed=0):
    """Two boxes on a background, one-hot [B, 3, *S]."""
    random, labels = torch.Generator().manual_seed(seed), torch.zeros(batch, *size, dtype=torch.long)
    for each in labels:
        for label in (1, 2):
            corner = [int(torch.randint(0, side // 2, (), generator=random)) for side in size]
            each[tuple(slice(start, start + side // 2) for start, side in zip(corner, size, strict=True))] = label
    return functional.one_hot(labels, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dims", "size", "batch"), [(2, (12, 8), 1), (2, (13, 7), 3), (3, (6, 3, 5), 2)])
def test_every_variant_takes_2d_and_3d_any_size_and_any_batch(variant, dims, size, batch):
    network = built(dims=dims, image_channels=1, **VARIANTS[variant])
    x, image, mask = noise(batch, 1, *size), noise(batch, 1, *size, seed=1), masks(batch, *size)
    with torch.no_grad():
        said = network(x, T, Condition(image=image, mask=mask))
        others = [
            network(x, T, Condition(image=image, mask=mask.flip(1))),
            network(x, T, Condition(image=image + 1, mask=mask)),
            network(x, T + 300, Condition(image=image, mask=mask)),
            network(x, T, Condition(image=image)),
        ]
    assert said.shape == (batch, 2, *size) and said.isfinite().all()
    assert min((other - said).flatten(1).abs().amax(1).min() for other in others) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_edges_are_where_classes_meet(dtype):
    labels = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [2, 0, 0, 0]])
    mask = functional.one_hot(labels, 3).movedim(-1, 0)[None].to(dtype)
    found = with_edges(mask)
    assert found.dtype == dtype and torch.equal(found[:, :3], mask)
    assert found[0, 3].int().tolist() == [[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]]
    assert not with_edges(torch.ones(1, 2, 3, 1, 4))[:, 2].any()


def test_a_mask_on_another_grid_is_brought_to_that_of_x():
    network, x, mask = built(), noise(2, 1, 10, 8), masks(2, 10, 8)
    finer = network.prepare(Condition(mask=mask)).mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        assert torch.equal(network(x, T, Condition(mask=finer)), network(x, T, Condition(mask=mask)))


def test_a_mask_of_other_classes_is_no_mask_of_this_network():
    with pytest.raises(AssertionError, match="masks of 3 channels"):
        built()(noise(1, 1, 8, 8), T, Condition(mask=torch.zeros(1, 1, 8, 8)))


def test_what_is_not_known_is_a_learned_null_map_whatever_it_is():
    network, x, mask = built(), noise(3, 1, 9, 8), masks(3, 9, 8)
    kept = torch.tensor([True, False, True])
    with torch.no_grad():
        known, unknown = (network(x, T, Condition(mask=each)) for each in (mask, None))
        some, others = (network(x, T, Condition(mask=each, keep=kept)) for each in (mask, mask.flip(1)))
        assert torch.equal(network(x, T, Condition(mask=mask).null()), unknown)
    torch.testing.assert_close(some, torch.where(kept.view(-1, 1, 1, 1), known, unknown))
    assert torch.equal(others[1], some[1]) and not torch.equal(others[0], some[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_takes_part(variant):
    network = built(**VARIANTS[variant]).train()
    known = Condition(mask=masks(2, 8, 8), keep=torch.tensor([True, False]))
    network(noise(2, 1, 8, 8), torch.tensor([3, 9]), known).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_it_begins_as_a_u_net_that_is_shown_no_mask():
    network = built(shaken=False)
    assert not network(noise(2, 1, 8, 8), T, Condition(mask=masks(2, 8, 8))).any()
    plain = UNetSettings(**SMALL.model_dump(include=set(EncoderSettings.model_fields)))
    plain = plain.build(dims=2, channels=1, outputs=2).eval()
    shake(plain, torch.Generator().manual_seed(1), 0.1)
    names = {name: re.sub(r"(norm_in|norm_out)\.norm\.", r"\1.", name) for name in network.state_dict()}
    given = {name: plain.state_dict()[own] for name, own in names.items() if own in plain.state_dict()}
    assert len(given) == len(plain.state_dict())
    network.load_state_dict(given, strict=False)
    x = noise(2, 1, 8, 8)
    torch.testing.assert_close(network(x, T, Condition(mask=masks(2, 8, 8))), plain(x, T, Condition()))


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_norm_is_its_formula(adaptive):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = SpadeNormSiLU(4, 3, 5, dims=2, groups=2).eval()
    shake(norm, torch.Generator().manual_seed(1), 0.3)
    x, mask, (scale, shift) = noise(2, 4, 3, 4), noise(2, 3, 6, 8, seed=1), noise(2, 2, 4, seed=2)
    gamma, beta = norm.modulate(functional.relu(norm.look(mask[:, :, ::2, ::2]))).chunk(2, dim=1)
    h = functional.group_norm(x, 2, norm.norm.weight, norm.norm.bias) * (1 + gamma) + beta
    if adaptive:
        h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    found = norm(x, mask, scale, shift) if adaptive else norm(x, mask)
    torch.testing.assert_close(found, functional.silu(h), rtol=1e-4, atol=1e-5)


def test_guidance_walks_alike_with_and_without_what_is_prepared():
    network, x, known = built(), noise(3, 2, 9, 8)[:, :1], Condition(mask=masks(3, 9, 8))
    say = lambda x_t, t, condition: network(x_t, t, condition)[:, :1]  # noqa: E731
    ready = network.prepare(known)
    assert ready.mask.shape == (3, 4, 9, 8) and network.prepare(ready) is ready

    def walked(condition, scale=2.0):
        denoiser = ClassifierFree(Denoiser(say, SCHEDULE, target="velocity"), scale)
        return walk(denoiser, DDIM(), x, SCHEDULE.times(3), condition)

    assert torch.equal(walked(ready), walked(known)) and not torch.equal(walked(known, 1.0), walked(known))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_sample_has_the_same_bytes_whatever_its_neighbours(variant, precision):
    network = built(width=16, **VARIANTS[variant]).to(memory_format=torch.channels_last)
    x, known = noise(5, 1, 20, 24), Condition(mask=masks(5, 20, 24), keep=torch.arange(5) % 3 > 0)
    order = torch.tensor([4, 0, 3, 3, 0])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        together, again = network(x, T, known), network(x[order], T, known.take(order))
    assert torch.equal(again, together[order])


def test_it_learns_to_paint_a_mask():
    network, values = built(shaken=False, width=16, hidden=16, multipliers=(1,)).train(), torch.tensor([-1.0, 0.3, 1.0])
    optimiser, random = torch.optim.Adam(network.parameters(), 5e-3), torch.Generator().manual_seed(0)
    painted = lambda mask: (mask * values.view(3, 1, 1)).sum(1, keepdim=True)  # noqa: E731
    for step in range(60):
        mask = masks(8, 16, 16, seed=step)
        said = network(torch.randn(8, 1, 16, 16, generator=random), T, Condition(mask=mask))[:, :1]
        loss = (said - painted(mask)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mask = masks(6, 16, 16, seed=1000)
    with torch.no_grad():
        said = network.eval()(noise(6, 1, 16, 16), T, Condition(mask=mask))[:, :1]
    assert (said - painted(mask)).square().mean().sqrt() < 0.4 < painted(mask).std()
