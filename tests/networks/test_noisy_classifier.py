"""The noisy classifier: any size and batch, 2D and 3D, both poolings; the paper's size; own bytes and gradients."""

import pytest
import torch

from medseg_diff.diffusion.condition import Condition
from medseg_diff.networks.noisy_classifier import NoisyClassifierSettings, Standardise

SMALL = NoisyClassifierSettings(
    width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_width=None, groups=4, pooling="max_mean"
)
VARIANTS = {
    "max and mean": {},
    "attention": {"pooling": "attention", "head_width": 8},
    "stem 2, plain, additive": {"stem": 2, "resampling": "plain", "time_embedding": "additive", "attention": ()},
}


def built(dims=2, channels=2, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SMALL.but(**changes).build(dims=dims, channels=channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("dims", "size", "batch"), [(2, (16, 12), 2), (2, (13, 7), 3), (2, (1, 5), 1), (3, (5, 3, 7), 2)]
)
def test_every_variant_takes_2d_and_3d_any_size_and_any_batch(variant, dims, size, batch):
    network, x = built(dims, **VARIANTS[variant]), noise(batch, 2, *size)
    with torch.no_grad():
        logits = network(x, torch.full((batch,), 7), Condition())
        shared = network(x, torch.tensor([7]), Condition())
        later = network(x, torch.tensor([700]), Condition())
        other = network(x + 1, torch.tensor([7]), Condition())
    assert logits.shape == (batch, 2) and logits.isfinite().all()
    torch.testing.assert_close(shared, logits, rtol=1e-4, atol=1e-5)
    assert min((later - logits).abs().max(), (other - logits).abs().max()) > 1e-3


def test_the_papers_classifier_has_the_papers_parameters():
    """Wolleb et al. 2022, 5.5 M: ours, and the learned positions of 8 × 8 places and their mean, which we leave out."""
    with torch.device("meta"):
        network = NoisyClassifierSettings().build(dims=2, channels=4)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 5_444_642
    assert round((count + (8 * 8 + 1) * 128) / 1e6, 1) == 5.5


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_takes_part(variant):
    network = built(**VARIANTS[variant]).train()
    network(noise(2, 2, 8, 8), torch.tensor([3, 9]), Condition()).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_answer_and_gradient_of_a_sample_do_not_depend_on_its_neighbours(variant, precision):
    network = built(**VARIANTS[variant]).to(memory_format=torch.channels_last)
    order = torch.tensor([4, 0, 0, 0, 2])

    def asked(x):
        x = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = network(x, torch.tensor([5]), Condition())
        (gradient,) = torch.autograd.grad(logits.float().log_softmax(1)[:, 0].sum(), x)
        return logits, gradient

    x = noise(5, 2, 20, 24)
    together, apart = asked(x), asked(x[order])
    assert torch.equal(apart[0], together[0][order])
    assert torch.equal(apart[1], together[1][order])


def test_a_head_wider_than_what_the_pooling_attends_to_is_refused():
    words = {"width": 8, "multipliers": (1, 2), "attention": (), "head_width": 64}
    with pytest.raises(ValueError, match="16 channels at level 1 do not divide by 64"):
        NoisyClassifierSettings(**words, pooling="attention")
    assert NoisyClassifierSettings(**words, pooling="max_mean").attends == ()


def test_a_small_bright_spot_moves_the_largest_value_more_than_the_mean():
    """Why `max_mean` is there: a lesion of one place among many."""
    from medseg_diff.networks.noisy_classifier import MaxMeanPooling

    pool = MaxMeanPooling(1, 1)
    with torch.no_grad():
        pool.projection.weight.copy_(torch.tensor([[1.0, 1.0]]))
        pool.projection.bias.zero_()
    flat, spot = torch.zeros(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    spot[..., 4, 4] = 5.0
    with torch.no_grad():
        assert float(pool([spot]) - pool([flat])) == pytest.approx(5.0 + 0.05)


def test_a_batch_that_is_not_finite_leaves_no_trace_in_what_is_remembered():
    layer, x = Standardise(3), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    layer(x)
    known = [layer.mean.clone(), layer.variance.clone()]
    layer(x.index_fill(0, torch.tensor([2]), float("nan")))
    assert torch.equal(layer.mean, known[0]) and torch.equal(layer.variance, known[1])
    layer(x)
    assert not torch.equal(layer.mean, known[0])
