"""The parts of the U-Net by hand: what the time does to a residual block, and how time is written."""

import math

import pytest
import torch
from torch.nn import functional

from medseg_diff.networks.blocks import CONVOLUTION, Conditioning, Residual, each_row, sinusoids

EMBEDDED = 3


def built(*, adaptive, channels=4):
    """A block with random weights in everything that begins as zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Residual(channels, channels, EMBEDDED, dims=2, groups=2, adaptive=adaptive).eval()
        with torch.no_grad():
            for parameter in block.parameters():
                parameter += 0.3 * torch.randn(parameter.shape)
    return block


def images(channels=4):
    return torch.randn(2, channels, 5, 6, generator=torch.Generator().manual_seed(1))


def normed(norm, x):
    return functional.group_norm(x, norm.groups, norm.weight, norm.bias, norm.epsilon)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_residual_block_is_its_formula(adaptive):
    """ADM 2021, Eq. 2 as its code has it, (1 + y_s) GroupNorm(h) + y_b; or the time added before the norm (Ho 2020)."""
    block, x, time = built(adaptive=adaptive), images(), torch.tensor([[0.5, -1.0, 2.0]])
    h = block.conv_in(functional.silu(normed(block.norm_in, x)))
    told = (functional.silu(time) @ block.project[1].weight.T + block.project[1].bias)[..., None, None]
    h = (1 + told[:, :4]) * normed(block.norm_out, h) + told[:, 4:] if adaptive else normed(block.norm_out, h + told)
    torch.testing.assert_close(
        block(x, Conditioning(time)), x + block.conv_out(functional.silu(h)), atol=1e-5, rtol=1e-5
    )


def test_a_time_that_says_nothing_leaves_the_norm_as_it_is():
    adaptive, plain = built(adaptive=True), built(adaptive=False)
    plain.load_state_dict(
        {name: value for name, value in adaptive.state_dict().items() if "project" not in name}, strict=False
    )
    for block in (adaptive, plain):
        torch.nn.init.zeros_(block.project[1].weight)
        torch.nn.init.zeros_(block.project[1].bias)
    shown = Conditioning(torch.ones(2, EMBEDDED))
    torch.testing.assert_close(adaptive(images(), shown), plain(images(), shown))


def test_time_is_written_in_cosines_and_sines_from_fast_to_slow():
    found = sinusoids(torch.tensor([3]), 4)
    slow = 3 / math.sqrt(10_000)
    assert found.tolist() == [pytest.approx([math.cos(3), math.cos(slow), math.sin(3), math.sin(slow)])]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 9, 11, 18])
def test_a_row_is_multiplied_alike_wherever_it_stands(rows):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = torch.nn.Linear(64, 32)
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    found = each_row(linear, row.repeat(rows, 1))
    assert found.shape == (rows, 32) and torch.equal(found, found[:1].expand(rows, -1))
    torch.testing.assert_close(found, linear(row).expand(rows, -1))


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 3, 5), (1, 1, 1), (4, 3, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_volume_of_few_voxels_is_learned_from_whatever_lies_in_the_memory(size, stride):
    """In bfloat16 torch's own convolution takes numbers from memory that it has not written to."""
    convolution = CONVOLUTION[3](16, 16, 3, padding=1, stride=stride).to(memory_format=torch.channels_last_3d)
    for _ in range(8):
        rubbish = [torch.full((2**power,), torch.nan) for power in range(6, 18)]
        del rubbish
        x = torch.randn(4, 16, *size, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            answer = convolution(x)
        answer.float().square().sum().backward()
        assert x.grad.isfinite().all() and convolution.weight.grad.isfinite().all()
        convolution.zero_grad()
