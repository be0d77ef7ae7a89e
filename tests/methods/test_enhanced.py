"""A fine volume out of a coarse one: whose bytes it is, what it is shown, and where its tiles begin."""

from dataclasses import replace

import pytest
import torch

from medseg_diff.diffusion import DDIM, DDPM, Denoiser, NoiseSchedule
from medseg_diff.diffusion.coarse import Detail, coarse, enlarged
from medseg_diff.methods.enhanced import Enhancing
from medseg_diff.networks.unet import UNetSettings

SCHEDULE = NoiseSchedule(kind="cosine", length=100)
CPU = torch.device("cpu")
HOW = Enhancing(2, (8, 8, 8), 0.25, DDPM(), SCHEDULE.times(3), condition_noise=20, network_batch=3)
LOW = torch.rand(1, 5, 7, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Shown(torch.nn.Module):
    """Says that the clean image is the condition's, and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.told, self.images = [], []

    def forward(self, x_t, t, condition):
        self.told.append(condition.covariates)
        self.images.append(condition.image)
        return condition.image


def denoiser(network=None):
    return Denoiser(network or Shown(), SCHEDULE, target="clean")


def unet():
    torch.manual_seed(0)
    settings = UNetSettings(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, stem=2, covariates=1)
    network = settings.build(dims=3, channels=1, outputs=1, image_channels=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_what_is_shown_is_the_enlarged_volume_and_its_noise():
    clean = replace(HOW, condition_noise=0, solver=DDIM())
    torch.testing.assert_close(clean.volume(denoiser(), LOW, [1], CPU), enlarged(LOW[None], 2)[0])
    network = Shown()
    noisy = HOW.volume(denoiser(network), LOW, [1], CPU)
    assert all(torch.allclose(told, SCHEDULE.level(20).sigma.float()) for told in network.told)
    assert 0.05 < float((coarse(noisy[None], 2)[0] - LOW).std()) < 0.5


@pytest.mark.parametrize("gain", [0.0, 4.0])
def test_a_draw_stays_in_the_range_of_scans_whatever_is_learned_of_it(gain):
    """With a gain what is said is what the fine scan has beyond the coarse one: nothing gives the coarse one back."""
    how = replace(HOW, detail=Detail(gain), solver=DDIM(), condition_noise=0)
    assert how.volume(denoiser(unet()), LOW, [1], CPU).abs().max() <= 1 + 1e-5

    class Nothing(torch.nn.Module):
        def forward(self, x_t, t, condition):
            return torch.zeros_like(x_t)

    found = how.volume(denoiser(Nothing()), LOW, [1], CPU)
    torch.testing.assert_close(found, enlarged(LOW[None], 2)[0] if gain else torch.zeros_like(found))


def test_a_draw_depends_on_its_seed_alone():
    network = denoiser(unet())
    one, other = (HOW.volume(network, LOW, [seed], CPU) for seed in (1, 2))
    assert not torch.equal(one, other)
    torch.testing.assert_close(HOW.volume(network, LOW, [1, 2], CPU), (one + other) / 2)
    assert torch.equal(HOW.volume(network, LOW, [1], CPU), one)
    torch.testing.assert_close(replace(HOW, network_batch=1).volume(network, LOW, [1], CPU), one, atol=1e-5, rtol=0)


def test_tiles_begin_where_coarse_voxels_do():
    """Of a volume whose coarse voxels alternate a tile that began inside one would see other means."""
    size = (9, 7, 3)  # of 18 fine voxels the middle one of three tiles would begin at 5
    low = torch.ones(1, *size)
    low[:, ::2] = -1
    network, told = Shown(), []
    how = replace(HOW, times=SCHEDULE.times(1), condition_noise=0)
    how.volume(denoiser(network), low, [0], CPU, advance=told.append)
    assert sum(told) == how.tiles(size) > 1
    for image in torch.cat(network.images)[:, None]:
        assert (coarse(image, 2)[..., 1:-1, :, :].abs() > 0.4).all()  # of odd beginnings it would be 0
