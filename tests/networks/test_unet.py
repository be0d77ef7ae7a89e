"""The U-Net's contract: any size, any batch, 2D and 3D, every variant; the papers' parameter counts; own bytes."""

import pytest
import torch

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.encoder import pixel_shuffle, pixel_unshuffle
from medseg_diff.networks.unet import UNetSettings

SMALL = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4)


def shake(network, generator, *, size):
    """Random numbers in every weight, also in those that begin as zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def built(settings=SMALL, *, dims=2, channels=1, outputs=1, image_channels=2, shaken=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)
    if shaken:
        shake(network, torch.Generator().manual_seed(1), size=0.1)
    return network.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VARIANTS = {
    "additive, plain": {},
    "adaptive, residual": {"time_embedding": "adaptive", "resampling": "residual"},
    "adaptive, plain, two heads": {"time_embedding": "adaptive", "heads": 2},
    "additive, residual, heads by width": {"resampling": "residual", "head_width": 8},
    "stem 2": {"stem": 2},
    "stem 2, residual, no attention": {"stem": 2, "resampling": "residual", "attention": ()},
    "three levels, two blocks": {"multipliers": (1, 1, 2), "blocks": 2, "attention": (2,)},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("dims", "size", "batch"), [(2, (16, 12), 2), (2, (13, 7), 3), (2, (1, 5), 1), (3, (8, 8, 4), 1), (3, (5, 3, 7), 2)]
)
def test_every_variant_takes_2d_and_3d_any_size_and_any_batch(name, dims, size, batch):
    network = built(SMALL.but(**VARIANTS[name]), dims=dims, channels=2, outputs=3)
    x, image = noise(batch, 2, *size), noise(batch, 2, *size, seed=1)
    with torch.no_grad():
        out = network(x, torch.full((batch,), 7), Condition(image=image))
        shared = network(x, torch.tensor([7]), Condition(image=image))
        later = network(x, torch.tensor([700]), Condition(image=image))
        elsewhere = network(x, torch.tensor([7]), Condition(image=image.flip(0, 1)))
    assert out.shape == (batch, 3, *size) and out.isfinite().all()
    torch.testing.assert_close(shared, out, rtol=1e-4, atol=1e-5)  # one time for all
    assert (later - out).abs().max() > 1e-3  # it looks at the time
    assert (elsewhere - out).abs().max() > 1e-3  # and at the image


@pytest.mark.parametrize("dims", [2, 3])
def test_folding_and_unfolding_are_inverse_and_keep_neighbours_together(dims):
    x = noise(2, 3, *(8, 6, 4)[:dims])
    deep = pixel_unshuffle(x, 2)
    assert deep.shape == (2, 3 * 2**dims, *(4, 3, 2)[:dims])
    assert torch.equal(pixel_shuffle(deep, 2), x)
    corner = x[(slice(None), slice(None), *(slice(0, 2),) * dims)].flatten(1)
    assert torch.equal(deep[(slice(None), slice(None), *(0,) * dims)], corner)


@pytest.mark.parametrize("stem", [1, 2])
def test_padding_does_not_move_the_image(stem):
    """An odd size is the even one with its last row and column repeated, cropped again."""
    network = built(SMALL.but(stem=stem))
    x, image = noise(1, 1, 11, 9), noise(1, 2, 11, 9, seed=1)
    step = 2 * stem
    sides = (0, -9 % step, 0, -11 % step)
    wider = [torch.nn.functional.pad(part, sides, mode="replicate") for part in (x, image)]
    with torch.no_grad():
        small = network(x, torch.tensor([5]), Condition(image=image))
        large = network(wider[0], torch.tensor([5]), Condition(image=wider[1]))
    assert large.shape[2:] != small.shape[2:]
    torch.testing.assert_close(small, large[:, :, :11, :9])


def test_an_untrained_network_says_nothing():
    network = built(shaken=False)
    assert not network(noise(2, 1, 8, 8), torch.tensor([3]), Condition(image=noise(2, 2, 8, 8))).any()


def test_label_and_covariates_and_their_learned_blanks():
    network = built(SMALL.but(classes=3, covariates=2), image_channels=0)
    x, t = noise(3, 1, 8, 8).repeat_interleave(1, 0), torch.tensor([4])
    label, facts = torch.tensor([0, 1, 2]), noise(3, 2, seed=2)
    full = Condition(label=label, covariates=facts)
    with torch.no_grad():
        out = network(x, t, full)
        others = network(x, t, full._replace(label=label.roll(1)))
        older = network(x, t, full._replace(covariates=facts + 1))
        unknown, null = network(x, t, Condition()), network(x, t, full.null())
        half = network(x, t, full.drop(torch.tensor([False, True, False])))
    assert min((others - out).abs().max(), (older - out).abs().max(), (unknown - out).abs().max()) > 1e-3
    torch.testing.assert_close(null, unknown)
    torch.testing.assert_close(half[[0, 2]], out[[0, 2]])
    torch.testing.assert_close(half[1], null[1])
    for learned in (network.embed_known.label.weight, network.embed_known.null_covariates):
        (gradient,) = torch.autograd.grad(network(x, t, full.null()).square().sum(), learned)
        assert gradient.abs().sum() > 0  # learned, not constant


def test_the_blank_image_is_learned():
    network = built()
    condition = Condition(image=noise(2, 2, 8, 8, seed=1))
    out = network(noise(2, 1, 8, 8), torch.tensor([4]), condition.drop(torch.tensor([True, False])))
    (gradient,) = torch.autograd.grad(out[0].square().sum(), network.null_image, retain_graph=True)
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        full = network(noise(2, 1, 8, 8), torch.tensor([4]), condition)
    torch.testing.assert_close(out[1], full[1])
    assert (out[0] - full[0]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["additive, plain", "adaptive, residual"])
def test_every_parameter_takes_part(variant):
    network = built(SMALL.but(**VARIANTS[variant], classes=2)).train()
    out = network(noise(2, 1, 8, 8), torch.tensor([3, 9]), Condition(noise(2, 2, 8, 8), label=torch.tensor([0, 2])))
    out.square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["null_image"]  # every image was known


def test_the_papers_networks_have_their_papers_parameters():
    """Wolleb et al. 2022 (counted in their code); ADM 2021, Table 10, ImageNet 256 unconditional: 552.8 M."""
    adm = UNetSettings(
        width=256,
        multipliers=(1, 1, 2, 2, 4, 4),
        attention=(3, 4, 5),
        head_width=64,
        time_embedding="adaptive",
        resampling="residual",
    )
    with torch.device("meta"):
        wolleb = UNetSettings().build(dims=2, channels=1, outputs=2, image_channels=4)
        unconditional = adm.build(dims=2, channels=3, outputs=6)
    assert round(sum(p.numel() for p in wolleb.parameters()) / 1e6, 1) == 113.7
    assert round(sum(p.numel() for p in unconditional.parameters()) / 1e6, 1) == 552.8


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attention": (2,)}, "attention at level 2, but the levels are 0 … 1"),
        ({"heads": 3}, "16 channels at level 1 do not divide by 3"),
        ({"head_width": 12}, "do not divide by 12"),
        ({"attention": (0,), "multipliers": (3, 1), "heads": 3}, "8 channels at level 1 do not divide by 3"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        SMALL.but(**wrong)


def own_bytes(network, x, image, t, *, device="cpu", precision=torch.float32):
    """Whether each sample's bytes are the same in any order, with any neighbours, at one batch size."""
    size = len(x)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == torch.bfloat16):
        together = network(x, t, Condition(image=image))
        generator = torch.Generator().manual_seed(3)
        order = torch.randperm(size, generator=generator).to(x.device)
        order[size // 2 :] = order[0]  # half of the neighbours replaced by copies of one
        return torch.equal(network(x[order], t, Condition(image=image[order])), together[order])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(20, 24), (40, 36), (22, 14)])
@pytest.mark.parametrize("variant", ["additive, plain", "adaptive, residual", "stem 2"])
def test_a_sample_has_the_same_bytes_whatever_its_neighbours(variant, size, precision):
    network = built(SMALL.but(**VARIANTS[variant], width=32)).to(memory_format=torch.channels_last)
    x, image = noise(6, 1, *size), noise(6, 2, *size, seed=1)
    assert own_bytes(network, x, image, torch.tensor([300]), precision=precision)


@pytest.mark.usefixtures("threads")
def test_a_label_is_told_with_the_same_bytes_whatever_the_neighbours():
    network = built(SMALL.but(classes=2), image_channels=0)
    x, t = noise(5, 1, 20, 24), torch.tensor([300])
    label, order = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([4, 0, 3, 3, 0])
    with torch.inference_mode():
        together, again = (network(x[each], t, Condition(label=label[each])) for each in (torch.arange(5), order))
    assert torch.equal(again, together[order])


@pytest.mark.usefixtures("threads")
def test_a_volume_has_the_same_bytes_whatever_its_neighbours():
    network = built(SMALL.but(time_embedding="adaptive", width=16), dims=3)
    x, image = noise(4, 1, 8, 10, 6), noise(4, 2, 8, 10, 6, seed=1)
    assert own_bytes(network, x, image, torch.tensor([300]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_sample_has_the_same_bytes_whatever_its_neighbours(precision):
    settings = SMALL.but(time_embedding="adaptive", resampling="residual", width=64, multipliers=(1, 2, 2))
    network = built(settings).to("cuda", memory_format=torch.channels_last)
    x, image = noise(16, 1, 56, 64).cuda(), noise(16, 2, 56, 64, seed=1).cuda()
    t = torch.tensor([300], device="cuda")
    assert own_bytes(network, x, image, t, device="cuda", precision=precision)
