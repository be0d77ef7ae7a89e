"""Tiles cover a volume and lose nothing; what is said voxel by voxel is the same in tiles; the seeds decide the bytes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_diff.diffusion import DDIM, DDPM, Clipped, Condition, Denoiser, NoiseSchedule, SeededNoise, walk
from medseg_diff.methods.plan import Plan
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.methods.tiled import Tiled, corners_of, weights_of
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.seeds import seed_of

SCHEDULE = NoiseSchedule(kind="cosine", length=1000, input_scale=0.3)
SIZES = {2: (13, 9), 3: (13, 6, 11)}
TILES = {2: (6, 5), 3: (6, 8, 5)}  # in 3D one axis is shorter than the tile


class Pointwise(torch.nn.Module):
    """Says of each voxel what only that voxel, the time and its sample tell."""

    def __init__(self, outputs=1):
        super().__init__()
        self.outputs, self.shapes = outputs, []

    def forward(self, x_t, t, condition):
        self.shapes.append(tuple(x_t.shape))
        said = torch.sin(3 * x_t) + condition.image.mean(1, keepdim=True) + t.view(-1, *(1,) * (x_t.ndim - 1)) / 1000
        if condition.label is not None:
            said = said + condition.label.view(-1, *(1,) * (x_t.ndim - 1))
        return torch.cat([said, 0.3 * said], dim=1) if self.outputs == 2 else said


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image_and_condition(dims, batch=2):
    size = SIZES[dims]
    return drawn(batch, 1, *size), Condition(image=drawn(batch, 3, *size, seed=1), label=torch.arange(batch))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.25, 0.5, 0.8]),
)
@settings(deadline=None)
def test_tiles_cover_every_voxel_and_overlap_as_asked(axes, overlap):
    size, tile = [n for n, _ in axes], [edge for _, edge in axes]
    corners = corners_of(size, tile, overlap)
    assert len(set(corners)) == len(corners)
    for axis, (n, edge) in enumerate(axes):
        starts = sorted({corner[axis] for corner in corners})
        assert starts[0] <= 0 and starts[-1] + edge >= n
        if n > edge:
            assert starts[0] == 0 and starts[-1] == n - edge
            assert all(b - a <= max(1, int(edge * (1 - overlap)) + 1) for a, b in itertools.pairwise(starts))
        else:
            assert len(starts) == 1 and -starts[0] == (edge - n) // 2


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.5]))
@settings(deadline=None)
def test_tiles_may_begin_at_multiples_alone(n, edge, step, overlap):
    corners = [start for (start,) in corners_of([n * step], [edge * step], overlap, step)]
    assert corners == [step * start for (start,) in corners_of([n], [edge], overlap)]
    assert corners[0] <= 0 and corners[-1] + edge * step >= n * step


def test_the_weights_are_gaussian_and_even():
    weights = weights_of((8, 9))
    assert weights.shape == (8, 9) and torch.equal(weights, weights.flip(0, 1)) and weights.min() > 0
    assert weights[4, 4] == weights.max() and weights[0, 4] / weights[3, 4] < 0.01


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("target", ["logits", "noise", "velocity", "clean"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_pointwise_belief_is_the_same_in_tiles(dims, target, batch):
    whole = Denoiser(Pointwise(), SCHEDULE, target=target)
    x, condition = image_and_condition(dims)
    tiled = Tiled(whole, TILES[dims], overlap=0.5, batch=batch)
    for t in (1000, 400, torch.tensor([700, 30])):
        prediction, wanted = tiled(x, t, condition), whole(x, t, condition)
        largest = max(1.0, float(wanted.clean.abs().max()))
        assert float((prediction.clean - wanted.clean).abs().max()) < 1e-6 * largest * 4
        assert float((prediction.noise - wanted.noise).abs().max()) < 1e-5 * max(1.0, float(wanted.noise.abs().max()))
        assert prediction.variance_mix is None
    assert tiled.schedule is SCHEDULE


def test_the_blended_belief_explains_x_t():
    network = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=4).build(
        dims=3, channels=1, outputs=1, image_channels=3
    )
    x, condition = image_and_condition(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        prediction = Tiled(Denoiser(network, SCHEDULE), TILES[3], batch=3)(x, 500, condition)
    alpha, sigma = SCHEDULE.level(500)
    torch.testing.assert_close(alpha * prediction.clean + sigma * prediction.noise, x, atol=1e-4, rtol=0)


def test_at_time_zero_the_image_is_clean_and_the_noise_that_of_the_network():
    whole = Denoiser(Pointwise(), SCHEDULE, target="noise")
    x, condition = image_and_condition(2)
    prediction, wanted = Tiled(whole, TILES[2])(x, 0, condition), whole(x, 0, condition)
    assert torch.equal(prediction.clean, x)
    torch.testing.assert_close(prediction.noise, wanted.noise, atol=1e-5, rtol=1e-5)


def test_learned_variance_and_clipping_pass_through():
    whole = Clipped(Denoiser(Pointwise(outputs=2), SCHEDULE, target="clean", learned_variance=True))
    x, condition = image_and_condition(3)
    prediction, wanted = Tiled(whole, TILES[3], batch=5)(x, 300, condition), whole(x, 300, condition)
    assert prediction.clean.abs().max() <= 1 + 1e-6 and wanted.clean.abs().max() == 1
    torch.testing.assert_close(prediction.clean, wanted.clean, atol=1e-6, rtol=0)
    torch.testing.assert_close(prediction.variance_mix, wanted.variance_mix, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("solver", [DDPM(), DDIM()], ids=str)
def test_a_walk_in_tiles_ends_where_the_whole_does(dims, solver):
    whole = Denoiser(Pointwise(), SCHEDULE, target="logits")
    x, condition = image_and_condition(dims)
    noise, times = SeededNoise([3, 4]), SCHEDULE.times(4)
    tiled = Tiled(whole, TILES[dims], batch=4)
    apart = walk(tiled, solver, x, times, condition, noise) - walk(whole, solver, x, times, condition, noise)
    assert float(apart.abs().max()) < 1e-5


class Echo(torch.nn.Module):
    """Says that the clean image is the condition's, or x_t itself."""

    def forward(self, x_t, t, condition):
        return x_t if condition.image is None else condition.image


@pytest.mark.parametrize("dims", [2, 3])
def test_cut_then_joined_is_what_it_was(dims):
    x, image = drawn(2, 1, *SIZES[dims]), drawn(2, 1, *SIZES[dims], seed=5)
    tiled = Tiled(Denoiser(Echo(), SCHEDULE, target="clean"), TILES[dims], overlap=0.4, batch=3)
    assert float((tiled(x, 10, Condition(image=image)).clean - image).abs().max()) < 1e-6
    assert float((tiled(x, 10, Condition()).clean - x).abs().max()) < 1e-6


def test_a_short_axis_continues_with_noise_and_the_condition_with_its_edge():
    shown = []

    class Watch(torch.nn.Module):
        def forward(self, x_t, t, condition):
            shown.append((x_t, condition.image))
            return x_t

    x, image = drawn(1, 1, 4, 3), drawn(1, 1, 4, 3, seed=2)
    Tiled(Denoiser(Watch(), SCHEDULE, target="clean"), (4, 6))(x, 10, Condition(image=image))
    ((prediction, told),) = shown
    assert prediction.shape == told.shape == (1, 1, 4, 6)
    assert torch.equal(prediction[..., 1:4], x) and torch.equal(told[..., 1:4], image)
    assert torch.equal(prediction[..., 0], x[..., 2]) and torch.equal(prediction[..., 4:], x[..., :2])
    assert torch.equal(told[..., 0], image[..., 0]) and torch.equal(told[..., 5], image[..., 2])


def test_the_network_sees_one_shape_and_the_tiles_are_counted():
    network, finished = Pointwise(), []
    tiled = Tiled(Denoiser(network, SCHEDULE), TILES[3], batch=4)
    tiled.advance = finished.append
    x, condition = image_and_condition(3, batch=3)
    tiled(x, 10, condition)
    assert set(network.shapes) == {(4, 1, *TILES[3])}  # whatever the volume's size: what bounds the memory
    assert len(network.shapes) == tiled.passes(3, x.shape[2:]) == -(-3 * tiled.tiles(x.shape[2:]) // 4)
    assert sum(finished) == 3 * tiled.tiles(x.shape[2:])


def steep(dims):
    settings = UNetSettings(
        width=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4, time_embedding="adaptive", stem=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = settings.build(dims=dims, channels=1, outputs=1, image_channels=2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.15 * torch.randn(parameter.shape)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    return Denoiser(network.to(memory_format=layout).eval(), SCHEDULE, target="logits")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_bytes_do_not_depend_on_how_many_volumes_walk_together(dims, precision):
    images = drawn(1, 2, *SIZES[dims], seed=9)
    tiled = Tiled(steep(dims), TILES[dims], batch=3)

    def sampled(together, at_once):
        plan = Plan(SCHEDULE.times(2), DDPM(), 3, together, at_once)  # so many volumes in a walk
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            own = {"regions": 1, "seed_of": lambda z, member: seed_of(0, "case", "volume", member)}
            return dict(sample_masks(tiled, images, [0], plan, **own))

    first = sampled(1, 3)
    assert len(first) == 3 and torch.stack(list(first.values())).std() > 0.05
    for other in (sampled(2, 3), sampled(4, 1)):
        assert all(torch.equal(first[place], other[place]) for place in first)


def test_a_learned_deviation_passes_through():
    denoiser = Denoiser(Pointwise(outputs=2), SCHEDULE, target="clean", learned_deviation=True)
    x, condition = image_and_condition(2)
    prediction, wanted = Tiled(denoiser, TILES[2], batch=4)(x, 500, condition), denoiser(x, 500, condition)
    torch.testing.assert_close(prediction.deviation, wanted.deviation, atol=1e-6, rtol=0)
    assert prediction.variance_mix is None
