"""GroupNorm: the numbers of PyTorch's, both ways, and a sample's bytes whatever stands beside it."""

import pytest
import torch
from torch.nn import functional

from medseg_diff.networks.norm import GroupNorm, GroupNormSiLU

SHAPES = [(3, 16, 9, 7), (2, 12, 5, 4, 3), (4, 8, 6), (5, 32, 1, 1)]


def norm_of(channels, *, groups=8, dtype=torch.float32):
    norm = GroupNorm(channels, groups)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(channels, generator=generator))
        norm.bias.copy_(0.3 * torch.randn(channels, generator=generator))
    return norm.to(dtype)


def reference(norm, x):
    return functional.group_norm(x, norm.groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.epsilon)


def layouts(x):
    yield x
    if x.ndim == 4:
        yield x.to(memory_format=torch.channels_last)
    if x.ndim == 5:
        yield x.to(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_it_agrees_with_torch_forwards_and_backwards(shape, training):
    norm = norm_of(shape[1]).train(training)
    for x in layouts(torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1):
        told = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        ours, theirs = x.detach().requires_grad_(), x.detach().requires_grad_()
        torch.testing.assert_close(norm(ours), reference(norm, theirs), rtol=1e-5, atol=1e-5)
        mine = torch.autograd.grad(norm(ours), (ours, norm.weight, norm.bias), told)
        torchs = torch.autograd.grad(reference(norm, theirs), (theirs, norm.weight, norm.bias), told)
        for found, wanted in zip(mine, torchs, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 3, 2), (1, 6, 2, 2, 2)])
def test_the_backward_is_the_derivative_of_the_forward(shape):
    """In double precision, by finite differences; the sums over space are float32, hence the tolerance."""
    norm = norm_of(shape[1], groups=2, dtype=torch.float64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,), atol=1e-5, rtol=1e-3)
    out = norm(x)
    told = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(out, norm.parameters(), told),
        torch.autograd.grad(reference(norm, x), norm.parameters(), told),
        rtol=1e-5,
        atol=1e-5,
    )


def test_bf16_in_channels_last_stays_near_fp32():
    norm = norm_of(32)
    x = torch.randn(4, 32, 24, 24, generator=torch.Generator().manual_seed(0)) + 0.5
    told = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    exact_in = x.clone().requires_grad_()
    exact = norm(exact_in)
    wanted = torch.autograd.grad(exact, (exact_in, norm.weight, norm.bias), told)
    rough_in = x.bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    rough = norm(rough_in)
    found = torch.autograd.grad(rough, (rough_in, norm.weight, norm.bias), told.bfloat16())
    assert rough.dtype == torch.bfloat16 and rough.is_contiguous(memory_format=torch.channels_last)
    assert [part.dtype for part in found] == [torch.bfloat16, torch.float32, torch.float32]
    assert (rough.float() - exact).norm() < 0.01 * exact.norm()
    for mine, true in zip(found, wanted, strict=True):
        assert (mine.float() - true).norm() < 0.01 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Above 1024 voxels PyTorch's channels-last kernel splits its sums between threads, wherever a sample begins.
@pytest.mark.parametrize("shape", [(7, 32, 24, 20), (7, 32, 40, 36), (5, 16, 12, 10, 11)])
@pytest.mark.usefixtures("threads")
def test_in_eval_a_sample_does_not_see_its_neighbours(shape, dtype):
    norm = norm_of(shape[1]).eval()
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for x in layouts(whole):
        together = norm(x)
        for position in range(len(x)):
            assert torch.equal(norm(x[position : position + 1]), together[position : position + 1])
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
        assert torch.equal(norm(x[order]), together[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(7, 32, 24, 20), (7, 32, 40, 36), (3, 64, 72, 88), (5, 16, 12, 10, 11), (5, 3, 7, 5)]
)
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.usefixtures("threads")
def test_silu_in_the_same_go_is_silu_of_the_norm(shape, dtype, adaptive):
    """To the last byte where samples are whole vectors; and wherever a sample stands."""
    norm, fused = norm_of(shape[1]).eval(), GroupNormSiLU(shape[1], 8).eval()
    fused.load_state_dict(norm.state_dict())
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.randn(2, *shape[:2], generator=generator) if adaptive else (None, None)
    for x in layouts(torch.randn(shape, generator=generator).to(dtype)):
        with torch.no_grad():
            together, plain = fused(x, scale, shift), functional.silu(norm(x, scale, shift))
            last = [None if part is None else part[-1:] for part in (scale, shift)]
            assert torch.equal(fused(x[-1:], *last), together[-1:])
        assert together.dtype == dtype and together.stride() == plain.stride()
        if x[0].numel() % 64 == 0:
            assert torch.equal(together, plain)
        torch.testing.assert_close(together, plain)
        learned = fused(x.detach().requires_grad_(), scale, shift)
        torch.testing.assert_close(learned.detach(), plain)
        assert learned.requires_grad


def test_groups_that_do_not_divide_the_channels_are_made_to():
    assert [GroupNorm(channels).groups for channels in (128, 48, 24, 7)] == [32, 16, 8, 1]
    x = torch.randn(2, 24, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(GroupNorm(24)(x), functional.group_norm(x, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_sample_does_not_see_its_neighbours(dtype):
    norm = norm_of(64).cuda().eval()
    x = torch.randn(33, 64, 48, 40, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    for layout in layouts(x):
        together = norm(layout)
        for position in (0, 1, 17, 32):
            assert torch.equal(norm(layout[position : position + 1]), together[position : position + 1])
