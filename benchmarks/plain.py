"""The same methods in straightforward code from MONAI's public pieces: what ours is compared with, and must equal.

One sample after the other, in float32, every step of the schedule, the way tutorials and the papers' repositories do it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from medseg_diff.diffusion import NoiseSchedule
from medseg_diff.networks.monai_unet import MonaiUNet


def monai_network(ours: MonaiUNet) -> DiffusionModelUNet:
    """MONAI's network as MONAI builds it, with copies of the weights of ours."""
    settings, outer = ours.settings, ours.network
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=outer.in_channels,
        out_channels=outer.out_channels,
        num_res_blocks=settings.blocks,
        channels=settings.widths,
        attention_levels=[level in settings.attention for level in range(len(settings.widths))],
        norm_num_groups=settings.groups,
        norm_eps=settings.epsilon,
        num_head_channels=settings.head_width,
    )
    network.load_state_dict({name: weight.clone() for name, weight in outer.state_dict().items()})
    return network.eval()


def ddpm(schedule: NoiseSchedule) -> DDPMScheduler:
    """MONAI's DDPM of masks with the levels of our schedule; what it calls time t is our t + 1."""
    scheduler = DDPMScheduler(num_train_timesteps=schedule.length, prediction_type="sample")
    alpha, _ = schedule.level(torch.arange(schedule.length + 1))
    scheduler.alphas_cumprod = (alpha[1:] ** 2).float()
    scheduler.alphas = (alpha[1:] ** 2 / alpha[:-1] ** 2).float()
    scheduler.betas = 1 - scheduler.alphas
    return scheduler


def ensemble(
    network: nn.Module,
    scheduler: DDPMScheduler,
    images: Tensor,
    *,
    members: int,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """The probability of `members` masks of each of the slices images [N, C, H, W], as [N, members, H, W], after the first
    `steps` of the scheduler's steps: all of them for a result, fewer to see how long one takes."""
    drawn = []
    for image in images.split(1):
        for _ in range(members):
            noise = torch.randn(1, 1, *image.shape[2:], generator=generator)
            drawn.append((walked(network, scheduler, noise, image, steps=steps, generator=generator) + 1) / 2)
    return torch.cat(drawn).view(len(images), members, *images.shape[2:])


def walked(
    network: nn.Module, scheduler: DDPMScheduler, x: Tensor, image: Tensor, *, steps: int, generator: torch.Generator
) -> Tensor:
    """x [1, 1, H, W] of a slice after the first `steps` of DDPM."""
    with torch.no_grad():
        for t in scheduler.timesteps[:steps]:
            said = network(torch.cat([x, image], dim=1), timesteps=t[None] + 1)
            x, _ = scheduler.step(torch.tanh(said / 2), int(t), x, generator=generator)
    return x


def anomaly_map(
    network: Callable[[Tensor, Tensor], Tensor],
    classifier: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    image: Tensor,
    *,
    times: Sequence[int],
    scale: float,
) -> Tensor:
    """Σ over channels of |image - healthy| [1, H, W] of one slice [1, C, H, W]: encoded with DDIM along times 0 … L, decoded
    along the same times, pushed to label 0 by the classifier's gradient. The network says the velocity."""
    alpha, sigma = (part.float().tolist() for part in schedule.level(torch.arange(schedule.length + 1)))
    x = image
    with torch.no_grad():
        for t, then in itertools.pairwise(times):
            asked = max(t, 1)  # no network has learned t = 0
            velocity = network(x, torch.tensor([asked]))
            clean = alpha[t] * x - sigma[t] * velocity
            noise = sigma[asked] * x + alpha[asked] * velocity
            x = alpha[then] * clean + sigma[then] * noise
    for t, then in itertools.pairwise(times[::-1]):
        at = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(at, torch.tensor([t])).log_softmax(dim=1)[:, 0].sum(), at)
        with torch.no_grad():
            noise = sigma[t] * x + alpha[t] * network(x, torch.tensor([t])) - scale * sigma[t] * gradient
            x = alpha[then] * (x - sigma[t] * noise) / alpha[t] + sigma[then] * noise
    return (image - x).abs().sum(dim=1)


def training_steps(
    network: nn.Module, schedule: NoiseSchedule, image: Tensor, mask: Tensor, generator: torch.Generator
) -> Iterator[float]:
    """Losses of a training on one batch, image [B, C, H, W] and mask [B, 1, H, W] in [-1, 1]: binary cross-entropy of the
    clean mask, AdamW."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    alpha, sigma = (part.float() for part in schedule.level(torch.arange(schedule.length + 1)))
    network.train()
    while True:
        t = torch.randint(1, schedule.length + 1, (len(mask),), generator=generator)
        noise = torch.randn(mask.shape, generator=generator)
        x_t = alpha[t].view(-1, 1, 1, 1) * mask + sigma[t].view(-1, 1, 1, 1) * noise
        logits = network(torch.cat([x_t, image], dim=1), timesteps=t)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, (mask + 1) / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
