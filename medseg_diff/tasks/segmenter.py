"""A trained segmentation model, brought back from its run folder and ready to draw ensembles."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medseg_diff import __version__
from medseg_diff.diffusion import Denoiser
from medseg_diff.files import sha256_of
from medseg_diff.methods.sampled_segmentation import Plan
from medseg_diff.recipes import SegmentationRecipe
from medseg_diff.run import Run
from medseg_diff.settings import parse_settings, read_yaml
from medseg_diff.tasks.device import find_device, find_precision
from medseg_diff.training.fit import channels_last
from medseg_diff.training.weights import load_weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Segmenter:
    """A trained model, ready to draw ensembles; `facts` is what every case.json says of it."""

    recipe: SegmentationRecipe
    denoiser: Denoiser
    plan: Plan
    seed: int
    device: "torch.device"
    precision: str
    facts: dict[str, Any]


def load_segmenter(run: Run, *, seed: int, device: str, precision: str | None, **changes: int | None) -> Segmenter:
    """The run's best weights on a device, and the plan with some numbers changed.

    Raises: CheckpointError where the run's files are damaged or do not fit each other.
    """
    import torch

    run.verify(run.recipe_file)
    recipe = parse_settings(SegmentationRecipe, read_yaml(run.recipe_file), source=f"{run.name}/recipe.yaml")
    digest = run.verify(run.weights("best"))
    denoiser = recipe.build_denoiser()
    assert isinstance(denoiser.network, torch.nn.Module)
    load_weights(denoiser.network, run.weights("best"))
    place = find_device(device)
    channels_last(denoiser.network).to(place).eval()
    plan, exact = recipe.plan(**changes), find_precision(precision or recipe.training.precision, place)
    facts = {
        "model": run.name,
        "sha256": digest,
        "recipe": run.facts["recipe"],
        "recipe_sha256": sha256_of(run.recipe_file),
        "regions": {region: list(labels) for region, labels in recipe.regions.items()},
        "seed": seed,
        "solver": plan.solver.model_dump(mode="json"),
        "steps": len(plan.times) - 1,
        "members": plan.members,
        "network_batch": plan.network_batch,
        "precision": exact,
        "device": place.type,
        "threads": torch.get_num_threads(),
        "versions": {"medseg_diff": __version__, "torch": torch.__version__},
    }
    return Segmenter(recipe, denoiser, plan, seed, place, exact, facts)
