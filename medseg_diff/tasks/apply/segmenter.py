"""A trained segmentation model, brought back from its run folder and ready to draw ensembles."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from medseg_diff import __version__
from medseg_diff.device import find_device, find_precision
from medseg_diff.diffusion import Denoiser
from medseg_diff.errors import UsageError
from medseg_diff.files import sha256_of
from medseg_diff.methods.components import HALF, Findings
from medseg_diff.methods.fusion import Fusion
from medseg_diff.methods.sampled_segmentation import Plan
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.run import Run
from medseg_diff.settings import of_a_run, parse_settings, read_yaml
from medseg_diff.tasks.train.calibration import read_calibration
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
    findings: Findings
    thresholds: dict[str, float]  # of each region
    temperatures: dict[str, float]  # of each region; empty unless calibrated maps are asked for

    def at_once(self, batch: int) -> "Segmenter":
        """The same with so many samples in a pass of the network."""
        return replace(self, plan=replace(self.plan, network_batch=batch))


def load_segmenter(
    run: Run,
    *,
    seed: int,
    device: str,
    precision: str | None,
    findings: Mapping[str, Any] | None = None,
    **changes: int | str | None,
) -> Segmenter:
    """The run's best weights on a device, and the plan with some numbers changed; so with the recipe's `findings`.

    Raises: CheckpointError where the run's files are damaged or do not fit each other; UsageError for an unknown fusion,
    or where calibrated maps are asked of a run without calibration.
    """
    import torch

    run.verify(run.recipe_file)
    with of_a_run():
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
        "noise": "shared" if plan.shared_noise else "independent",
        "precision": exact,
        "device": place.type,
        "threads": torch.get_num_threads(),
        "versions": {"medseg_diff": __version__, "torch": torch.__version__},
    }
    found = _findings(recipe, findings or {})
    thresholds, temperatures = _chosen(run, recipe, found)
    facts |= {
        "nested": recipe.nested,
        "fusion": found.fusion,
        "thresholds": thresholds,
        "temperatures": temperatures,
    }
    return Segmenter(recipe, denoiser, plan, seed, place, exact, facts, found, thresholds, temperatures)


def _findings(recipe: SegmentationRecipe, changes: Mapping[str, Any]) -> Findings:
    """The recipe's, with what is not None changed. Raises: UsageError."""
    fusion = changes.get("fusion")
    if fusion is not None and fusion not in get_args(Fusion):
        raise UsageError(f"there is no fusion `{fusion}`", fix=f"use one of {', '.join(get_args(Fusion))}")
    return recipe.findings.but(**{name: value for name, value in changes.items() if value is not None})


def _chosen(run: Run, recipe: SegmentationRecipe, findings: Findings) -> tuple[dict[str, float], dict[str, float]]:
    """Each region's threshold, and its temperature where calibrated maps are asked for. Raises: UsageError."""
    calibration = read_calibration(run)
    known = calibration.regions if calibration else {}
    thresholds = {}
    for region in recipe.regions:
        tuned = calibration.threshold(region) if calibration and region in known else HALF
        thresholds[region] = HALF if findings.fusion != "mean" else findings.threshold or tuned
    if not findings.calibrated:
        return thresholds, {}
    missing = [region for region in recipe.regions if region not in known]
    if missing:
        raise UsageError(
            f"{run.name} has no calibration for {', '.join(missing)}",
            fix="train with validation.calibration_slices above 0, or leave --calibrated out",
        )
    return thresholds, {region: known[region].temperature for region in recipe.regions}
