"""Does a sample depend on what stands beside it? Equal bytes at one network batch; and batch 1 against 32."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medseg_diff.device import autocast
from medseg_diff.diffusion import Denoiser
from medseg_diff.methods.plan import Sample
from medseg_diff.methods.sampled_segmentation import sample_masks
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.seeds import seed_of
from medseg_diff.training.fit import channels_last

STEPS, TOGETHER = 3, 32
LARGEST = {"fp32": 1e-4, "bf16": 1e-2}  # allowed difference in probability between network batches
EQUAL_VOXELS = 0.999
ROUGHNESS = 0.1


def invariance(
    recipe: SegmentationRecipe, images: Tensor, *, members: int, device: torch.device, precision: str
) -> dict[str, Any]:
    """Draw members of a few slices, images [N, C, *S], in several companies; the network has random weights.

    precision: bf16, fp32 (as PyTorch sets it: convolutions may run in TF32 on a GPU) or `fp32 without TF32`.
    """
    denoiser = rough_denoiser(recipe).to(device)
    slices, images = list(range(len(images))), images.to(device)

    def draw(slices: Sequence[int], *, members_at_once: int, network_batch: int) -> dict[Sample, Tensor]:
        plan = recipe.plan(steps=STEPS, members=members, members_at_once=members_at_once, network_batch=network_batch)
        with _as_asked(device, precision):
            drawn = sample_masks(
                recipe.for_masks(denoiser), images, slices, plan, regions=len(recipe.regions), seed_of=_own_seed
            )
            return {place: probability.cpu().clone() for place, probability in drawn}

    usual = draw(slices, members_at_once=members, network_batch=TOGETHER)
    others = {
        "other_order": draw(slices[::-1], members_at_once=1, network_batch=TOGETHER),
        "shard": draw(slices[-1:], members_at_once=members, network_batch=TOGETHER),
    }
    alone = draw(slices, members_at_once=members, network_batch=1)
    together, apart = (torch.stack([found[place] for place in sorted(found)]) for found in (usual, alone))
    difference = float((together - apart).abs().max())
    voxels = float(((together > 0.5) == (apart > 0.5)).double().mean())
    return {
        "byte_equal": {
            name: all(torch.equal(usual[place], found[place]) for place in found) for name, found in others.items()
        },
        "batch_1_against_32": {
            "largest_difference": difference,
            "allowed": LARGEST[precision.split()[0]],
            "mask_voxels_equal": voxels,
            "kept": difference <= LARGEST[precision.split()[0]] and voxels >= EQUAL_VOXELS,
        },
        "probability_deviation": float(together.std()),
    }


def rough_denoiser(recipe: SegmentationRecipe) -> Denoiser:
    """Untrained, but with random numbers where training starts from zero: else every answer would be the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = recipe.build_denoiser()
        for parameter in denoiser.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=ROUGHNESS)
    channels_last(denoiser)
    return denoiser.eval()


def precisions_of(device: torch.device) -> tuple[str, ...]:
    """Which ways of computing there are to check."""
    return ("bf16", "fp32", "fp32 without TF32") if device.type == "cuda" else ("bf16", "fp32")


@contextmanager
def _as_asked(device: torch.device, precision: str) -> Iterator[None]:
    contexts: list[AbstractContextManager[Any]] = [autocast(device, precision)]
    if precision == "fp32 without TF32":
        contexts.append(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _own_seed(z: int, member: int) -> int:
    return seed_of(0, "invariance", z, member)
