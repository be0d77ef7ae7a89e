"""Covariates as an embedding, as channels and as tokens: each way is looked at, has its null, and is a sample's own."""

import pytest
import torch
from torch.nn import functional

from medseg_diff.diffusion import DDIM, ClassifierFree, Condition, Denoiser, NoiseSchedule, walk
from medseg_diff.networks.blocks import Conditioning, CrossAttention
from medseg_diff.networks.unet import UNetSettings
from tests.conftest import shake

SMALL = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4, covariates=2)
ALONE = [("embedding",), ("channels",), ("attention",)]
WAYS = pytest.mark.parametrize("ways", [*ALONE, ("attention", "channels", "embedding")], ids="+".join)
SCHEDULE = NoiseSchedule(kind="cosine")
T = torch.tensor([400])


def built(ways, *, dims=2, shaken=True, channels=1, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = SMALL.but(covariates_by=ways, **changes)
        network = settings.build(dims=dims, channels=channels, outputs=channels)
    if shaken:
        shake(network, torch.Generator().manual_seed(1), 0.1)
    return network.eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@WAYS
@pytest.mark.parametrize("stem", [1, 2])
@pytest.mark.parametrize(("dims", "size", "batch"), [(2, (12, 8), 1), (2, (13, 7), 3), (3, (6, 3, 5), 2)])
def test_every_way_takes_2d_and_3d_any_size_and_any_batch_and_looks_at_each_covariate(ways, stem, dims, size, batch):
    network = built(ways, dims=dims, stem=stem, channels=2)
    x, facts = noise(batch, 2, *size), noise(batch, 2, seed=1)
    with torch.no_grad():
        said = network(x, T, Condition(covariates=facts))
        older = [network(x, T, Condition(covariates=facts + change)) for change in torch.eye(2)]
    assert said.shape == x.shape and said.isfinite().all()
    assert all((other - said).flatten(1).abs().amax(1).min() > 1e-4 for other in older)


@WAYS
def test_what_is_not_known_is_a_learned_null_whatever_it_is(ways):
    network, x, facts = built(ways), noise(3, 1, 9, 8), noise(3, 2, seed=1)
    kept = torch.tensor([True, False, True])
    with torch.no_grad():
        known, unknown = (network(x, T, Condition(covariates=each)) for each in (facts, None))
        some, others = (network(x, T, Condition(covariates=each, keep=kept)) for each in (facts, facts + 5))
        torch.testing.assert_close(network(x, T, Condition(covariates=facts).null()), unknown)
    assert (known - unknown).flatten(1).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(some, torch.where(kept.view(-1, 1, 1, 1), known, unknown))
    assert torch.equal(others[1], some[1]) and not torch.equal(others[0], some[0])


@WAYS
def test_the_null_is_learned_where_it_stands_and_all_else_where_it_does_not(ways):
    network, x, facts = built(ways).train(), noise(2, 1, 8, 8), Condition(covariates=noise(2, 2, seed=1))
    idle = {}
    for name, condition in {"known": facts, "null": facts.null()}.items():
        network.zero_grad()
        network(x, torch.tensor([3, 9]), condition).square().sum().backward()
        idle[name] = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    nulls = {"embedding": "embed_known.null_covariates", "channels": "covariate_channels.null"}
    nulls |= {"attention": "covariate_tokens.null"}
    assert idle["known"] == {nulls[way] for way in ways}
    assert not idle["null"] & {nulls[way] for way in ways}


@WAYS
def test_guidance_walks_alike_with_and_without_what_is_prepared(ways):
    network, x, known = built(ways), noise(3, 1, 9, 8), Condition(covariates=noise(3, 2, seed=1))
    times = SCHEDULE.times(3, start=600)

    def walked(asked, scale=2.0):
        return walk(ClassifierFree(Denoiser(asked, SCHEDULE, target="velocity"), scale), DDIM(), x, times, known)

    guided, once = walked(network), walked(lambda *given: network(*given))
    assert torch.equal(guided, once)
    assert (walked(network, 1.0) - guided).abs().max() > 1e-3  # it is pushed
    prepared = network.prepare(known)
    assert (prepared.context is not None) == ("attention" in ways) and network.prepare(prepared) == prepared
    unknown = walk(Denoiser(network, SCHEDULE, target="velocity"), DDIM(), x, times)
    torch.testing.assert_close(walked(network, 0.0), unknown, rtol=1e-4, atol=1e-4)


def test_tokens_are_made_once_a_walk():
    network, made = built(("attention",)), []
    original = network.covariate_tokens.known
    network.covariate_tokens.known = lambda covariates: made.append(1) or original(covariates)
    denoiser = ClassifierFree(Denoiser(network, SCHEDULE), 2.0)
    walk(denoiser, DDIM(), noise(2, 1, 8, 8), SCHEDULE.times(4), Condition(covariates=noise(2, 2)))
    assert len(made) == 1


def test_cross_attention_is_its_formula_and_begins_as_the_identity():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = CrossAttention(8, 2, 4, tokens=6).eval()
    x, tokens = noise(2, 8, 3, 5), noise(2, 3, 6, seed=1)
    assert torch.equal(block(x, Conditioning(noise(2, 4), tokens)), x)
    shake(block, torch.Generator().manual_seed(1), 0.3)
    voxels = functional.group_norm(x, 4, block.norm.weight, block.norm.bias).flatten(2).transpose(1, 2)
    query, (key, value) = block.query(voxels), block.key_value(tokens).chunk(2, dim=2)
    heads = [slice(0, 4), slice(4, 8)]
    weights = [(query[..., own] @ key[..., own].transpose(1, 2) / 2).softmax(dim=2) for own in heads]
    seen = torch.cat([weight @ value[..., own] for weight, own in zip(weights, heads, strict=True)], dim=2)
    expected = x + block.projection(seen).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x, Conditioning(noise(2, 4), tokens)), expected, rtol=1e-4, atol=1e-5)


@WAYS
def test_an_untrained_network_says_nothing(ways):
    assert not built(ways, shaken=False)(noise(2, 1, 8, 8), T, Condition(covariates=noise(2, 2))).any()


@pytest.mark.parametrize(("ways", "names"), [(("channels",), ("covariate 0", "covariate 1")), (("attention",), ())])
def test_covariates_that_are_channels_have_places_behind_the_others(ways, names):
    network = built(ways, stem=2)
    axis, found = network.channel_axes(("t1",), (), ("t1",))["stem.weight"]
    assert found == ("t1", *names) and network.stem.weight.shape[axis] == 4 * len(found)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [5, 6])
@WAYS
def test_a_sample_has_the_same_bytes_whatever_its_neighbours(ways, batch, precision):
    network = built(ways, width=16).to(memory_format=torch.channels_last)
    kept = torch.arange(batch) % 3 > 0
    x, known = noise(batch, 1, 20, 24), Condition(covariates=noise(batch, 2, seed=1), keep=kept)
    order = torch.tensor([4, 0, 3, 3, 0, 1])[:batch]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        together, again = network(x, T, known), network(x[order], T, known.take(order))
    assert torch.equal(again, together[order])


@pytest.mark.parametrize("ways", ALONE, ids="+".join)
def test_a_brightness_is_learned_in_sixty_steps(ways):
    network = built(ways, shaken=False, width=16, multipliers=(1,), attention=(0,), covariates=1, stem=2).train()
    optimiser, random = torch.optim.Adam(network.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(60):
        brightness = 2 * torch.rand(8, 1, generator=random) - 1
        said = network(torch.randn(8, 1, 16, 16, generator=random), T, Condition(covariates=brightness))
        loss = (said - brightness[..., None, None]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    asked = torch.linspace(-0.9, 0.9, 7)[:, None]
    with torch.no_grad():
        said = network.eval()(noise(7, 1, 16, 16), T, Condition(covariates=asked))
    assert (said.mean((2, 3)) - asked).abs().max() < 0.3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"covariates_by": ()}, "covariates_by"),
        ({"covariates_by": ("channels", "channels")}, "covariates_by names a way twice: channels, channels"),
        ({"covariates_by": ("tokens",)}, "covariates_by"),
        ({"covariates_by": ("attention",), "attention": ()}, "covariates_by attention needs levels with attention"),
    ],
)
def test_ways_that_cannot_be_built_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        SMALL.but(**words)
