"""MONAI's U-Net behind our signature: the same numbers as MONAI's, any size, and its state dicts in and refused."""

import pytest
import torch

from medseg_diff.diffusion.condition import Condition
from medseg_diff.errors import CheckpointError
from medseg_diff.networks.monai_unet import MonaiUNetSettings, load_monai_state

SMALL = MonaiUNetSettings(widths=(8, 16), blocks=(1, 1), attention=(1,), groups=4)
VARIANTS = {
    "plain": {},
    "residual resampling": {"resampling": "residual"},
    "context": {"context": 6},
    "two transformers": {"context": 6, "transformer_layers": 2, "attention": (0, 1)},
    "uneven blocks, no projection": {"widths": (8, 8, 16), "blocks": (1, 2, 1), "projection": False},
}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(settings=SMALL, *, dims=2, channels=1, outputs=1, image_channels=2, shaken=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=dims, channels=channels, outputs=outputs, image_channels=image_channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters() if shaken else ():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def monai(settings=SMALL, *, dims=2, channels=1, outputs=1):
    """The same network as its makers build it."""
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=channels,
            out_channels=outputs,
            num_res_blocks=settings.blocks,
            channels=settings.widths,
            attention_levels=[level in settings.attention for level in range(len(settings.widths))],
            norm_num_groups=settings.groups,
            resblock_updown=settings.resampling == "residual",
            num_head_channels=settings.head_width,
            with_conditioning=bool(settings.context),
            transformer_num_layers=settings.transformer_layers,
            cross_attention_dim=settings.context or None,
            include_fc=settings.projection,
        )
        torch.nn.init.normal_(network.out[-1].conv.weight, std=0.1)  # it begins as zero, which would hide everything
    return network.eval()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("dims", "size", "batch"), [(2, (16, 12), 2), (2, (13, 7), 3), (2, (1, 5), 1), (3, (8, 8, 4), 1), (3, (5, 3, 7), 2)]
)
def test_every_variant_takes_2d_and_3d_any_size_and_any_batch(name, dims, size, batch):
    network = built(SMALL.but(**VARIANTS[name]), dims=dims, channels=2, outputs=3)
    x, image = noise(batch, 2, *size), noise(batch, 2, *size, seed=1)
    context = noise(batch, 3, 6, seed=2) if network.settings.context else None
    known = Condition(image=image, context=context)
    with torch.no_grad():
        out = network(x, torch.full((batch,), 7), known)
        shared = network(x, torch.tensor([7]), known)
        later = network(x, torch.tensor([700]), known)
        elsewhere = network(x, torch.tensor([7]), known._replace(image=image.flip(0, 1)))
        told = network(x, torch.tensor([7]), known._replace(context=None if context is None else context + 1))
    assert out.shape == (batch, 3, *size) and out.isfinite().all()
    torch.testing.assert_close(shared, out, rtol=1e-4, atol=1e-5)
    assert min((later - out).abs().max(), (elsewhere - out).abs().max()) > 1e-3
    assert ((told - out).abs().max() > 1e-4) == (context is not None)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_with_monais_weights_it_says_what_monais_network_says(name, dims):
    settings = SMALL.but(**VARIANTS[name])
    theirs = monai(settings, dims=dims, channels=3, outputs=2)
    ours = built(settings, dims=dims, channels=1, outputs=2, image_channels=2)
    load_monai_state(ours, theirs.state_dict())
    size = (8, 12, 4)[:dims]
    x, image = noise(2, 1, *size), noise(2, 2, *size, seed=1)
    context = noise(2, 3, 6, seed=2) if settings.context else None
    t = torch.tensor([3, 900])
    with torch.no_grad():
        wanted = theirs(torch.cat([x, image], dim=1), t, context)
        found = ours(x, t, Condition(image=image, context=context))
    assert wanted.abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def in_former_words(state):
    """A state dict as MONAI Generative named it."""
    swaps = ((".attn.to_", ".to_"), (".attn.out_proj.", ".proj_attn."), ("postconv", "conv"))
    renamed = {}
    for name, tensor in state.items():
        for now, then in swaps:
            name = name.replace(now, then)
        if "transformer_blocks" in name:
            name = name.replace("out_proj", "to_out.0")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("name", ["plain", "two transformers"])
def test_former_names_are_read_as_monai_reads_them(name):
    settings = SMALL.but(**VARIANTS[name])
    theirs = monai(settings)
    former = in_former_words(theirs.state_dict())
    assert former.keys() != theirs.state_dict().keys()
    other = monai(settings)
    other.load_old_state_dict(dict(former))  # MONAI's own translation agrees that these are the former names
    ours = built(settings, image_channels=0)
    load_monai_state(ours, former)
    for key, tensor in ours.network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])


def test_a_safetensors_file_is_read_and_a_damaged_one_refused(tmp_path):
    from safetensors.torch import save_file

    theirs, ours = monai(), built(image_channels=0)
    path = tmp_path / "zoo.safetensors"
    save_file(theirs.state_dict(), path)
    load_monai_state(ours, path)
    assert torch.equal(ours.network.conv_in.conv.weight, theirs.conv_in.conv.weight)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"zoo.safetensors: cannot be read as safetensors .* Fix: convert it"):
        load_monai_state(ours, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_monai_state(ours, tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("conv_in.conv.bias"), "has no `conv_in.conv.bias`"),
        (lambda state: state.update(extra=torch.zeros(1)), "has `extra`, which the recipe's network does not have"),
        (lambda state: state.update({"conv_in.conv.bias": torch.zeros(3)}), "is 3, the recipe's network has 8"),
        (lambda state: state.update({"conv_in.conv.bias": torch.full((8,), torch.nan)}), "holds NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change, said):
    state, ours = dict(monai().state_dict()), built(image_channels=0)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    change(state)
    with pytest.raises(CheckpointError, match=said):
        load_monai_state(ours, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_the_blanks_are_learned_and_stand_where_nothing_is_known():
    network = built(SMALL.but(context=6))
    x, t = noise(2, 1, 8, 8), torch.tensor([4])
    full = Condition(image=noise(2, 2, 8, 8, seed=1), context=noise(2, 3, 6, seed=2))
    out = network(x, t, full.drop(torch.tensor([True, False])))
    for null in (network.null_image, network.null_context):
        (gradient,) = torch.autograd.grad(out[0].square().sum(), null, retain_graph=True)
        assert gradient.abs().sum() > 0
    with torch.no_grad():
        known, unknown = network(x, t, full), network(x, t, full.null())
        wordless = network(x, t, full._replace(context=None).null())
    torch.testing.assert_close(out[1], known[1])
    torch.testing.assert_close(wordless, unknown)  # one null token says what several of them say
    assert (out[0] - known[0]).abs().max() > 1e-3


def test_an_untrained_network_says_nothing():
    network = built(shaken=False)
    assert not network(noise(2, 1, 8, 8), torch.tensor([3]), Condition(image=noise(2, 2, 8, 8))).any()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_sample_has_the_same_bytes_whatever_its_neighbours(precision):
    network = built(SMALL.but(widths=(16, 32))).to(memory_format=torch.channels_last)
    x, image = noise(6, 1, 36, 40), noise(6, 2, 36, 40, seed=1)
    order = torch.tensor([3, 0, 5, 3, 3, 3])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        together = network(x, torch.tensor([300]), Condition(image=image))
        again = network(x[order], torch.tensor([300]), Condition(image=image[order]))
    assert torch.equal(again, together[order])


def test_every_parameter_takes_part():
    network = built(SMALL.but(context=6)).train()
    known = Condition(image=noise(2, 2, 8, 8), context=noise(2, 3, 6))
    network(noise(2, 1, 8, 8), torch.tensor([3, 9]), known).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["null_image", "null_context"]  # all was known


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"attention": (2,)}, "attention at level 2, but the levels are 0 … 1"),
        ({"groups": 3}, "8 channels do not divide by 3 groups"),
        ({"head_width": 5}, "16 channels at level 1 do not divide by 5"),
        ({"blocks": (1,)}, "one number for each level"),
        ({"widths": ()}, "at least 1 item"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        SMALL.but(**wrong)
