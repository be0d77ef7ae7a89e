"""A trained anomaly system, and what its engine says of one volume, slice by slice in batches of one size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from medseg_diff.console import log
from medseg_diff.data.transforms import Prepared
from medseg_diff.device import autocast
from medseg_diff.diffusion import SeededNoise
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.evenly import evenly_spaced
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.anomaly.engine import Evidence, Networks
from medseg_diff.methods.batches import padded_batches
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.calibration import AnomalyCalibration, read_calibration
from medseg_diff.recipes.spaces import space_of
from medseg_diff.recipes.trained import Trained, open_run
from medseg_diff.recipes.typicality import Typicality
from medseg_diff.run import Run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.options import Compute

HEALTHY = "healthy"  # the reconstruction, among the maps of a volume
CHECKED_SLICES = 4  # of each volume, brought back without any push
Advance = Callable[[int], None]


@dataclass(frozen=True)
class AnomalySystem:
    """A trained run ready to map; `facts` is what every case.json says of it. `calibration` is None while it is made;
    `typicality` tells scans that are unlike those trained on, None of a run that did not measure it. Its noise is that of
    its `place` among the runs of a study; the first draws as it does alone."""

    recipe: AnomalyRecipe
    networks: Networks
    calibration: AnomalyCalibration | None
    device: torch.device
    precision: str
    seed: int
    facts: dict[str, Any]
    typicality: Typicality | None = None
    place: int = 0

    @property
    def engine(self) -> AnyEngine:
        return self.recipe.engine

    @property
    def calibrated(self) -> AnomalyCalibration | None:
        """The calibration, if it was measured with the present settings."""
        known = self.calibration
        return known if known and known.holds_for(self.engine, self.recipe.findings) else None

    def but(self, **engine: Any) -> "AnomalySystem":
        """The same with some settings of its engine changed."""
        return replace(self, recipe=self.recipe.model_copy(update={"engine": self.engine.but(**engine)}))

    def measure(self, image: Tensor, owners: Sequence[tuple[str, int]]) -> Tensor | None:
        """What the engine has to know of healthy image [B, C, *S], on the device and inside `autocast`."""
        noise = SeededNoise([seed_of(self.seed, *owner) for owner in owners], self.recipe.noise)
        return self.engine.measure(image, self.networks, noise)

    def evidence(self, image: Tensor, owners: Sequence[tuple[str, int]], *, baselines: bool = False) -> Evidence:
        """What the engine says of image [B, C, *S], on the device and inside `autocast`; `owners` [B] own the noise."""
        place = (self.place,) if self.place else ()
        noise = SeededNoise([seed_of(self.seed, *owner, *place) for owner in owners], self.recipe.noise)
        return self.engine.score(image, self.networks, noise, baselines=baselines)


def open_system(
    run: Run, *, compute: Compute, overrides: Sequence[str] = (), seed: int = 0, calibrated: bool = True
) -> AnomalySystem:
    """The networks of a run on a device, with settings of its engine and findings changed.

    Raises: CheckpointError where the run's files are damaged or do not fit each other, where it was never calibrated
    (unless `calibrated` is False, for the calibration itself), or where the classifier that guides it guesses; ConfigError.
    """
    trained = open_run(run, AnomalyRecipe, device=compute.device, precision=compute.precision)
    return system_of(run, trained, overrides, seed=seed, network_batch=compute.network_batch, calibrated=calibrated)


def system_of(
    run: Run,
    trained: Trained[AnomalyRecipe],
    overrides: Sequence[str],
    *,
    seed: int,
    network_batch: int | None,
    calibrated: bool = True,
    place: int = 0,
) -> AnomalySystem:
    """An opened run, at its `place` in a study, with settings of its engine and findings changed. Raises: as
    `open_system`."""
    changes = [f"engine.network_batch={network_batch}"] if network_batch else []
    recipe = trained.recipe.with_overrides([*overrides, *changes])
    calibration = _calibration_of(run, recipe) if calibrated else None
    denoiser = recipe.denoiser.around(trained.networks["denoiser"], recipe.schedule)
    networks = recipe.networks(
        denoiser,
        trained.networks.get("classifier"),
        space=space_of(recipe.space, trained.networks),
        reference=calibration.reference if calibration else {},
    )
    facts = trained.facts | {
        "calibration_sha256": trained.digests[run.calibration_file] if calibration else None,
        "separate": calibration and calibration.separate,
        "engine": recipe.engine.model_dump(mode="json", exclude={"network_batch"}),
        "findings": recipe.findings.model_dump(mode="json"),
        "seed": seed,
        "network_evaluations": recipe.engine.evaluations,
    }
    known = (trained.device, trained.precision, seed, facts, trained.typicality, place)
    return AnomalySystem(recipe, networks, calibration, *known)


def _calibration_of(run: Run, recipe: AnomalyRecipe) -> AnomalyCalibration:
    """What is known of the run, unless that forbids its use. Raises: CheckpointError."""
    calibration = read_calibration(run, AnomalyCalibration)
    if calibration is None:
        raise CheckpointError("has no calibration", fix="finish it: train-anomaly --resume auto", file=run.name)
    skill = calibration.classifier
    if "classifier" not in recipe.engine.networks:
        return calibration
    if skill.is_chance is None:
        log.warning(
            "the classifier of %s was validated on one kind of slice: it may be no better than chance", run.name
        )
    elif skill.is_chance and not recipe.engine.follows_classifier:
        log.warning("the classifier of %s is no better than chance: do not rely on what it says of a scan", run.name)
    elif skill.is_chance:
        raise CheckpointError(
            f"its classifier tells healthy from diseased validation slices no better than by chance (balanced accuracy "
            f"{skill.balanced_accuracy:.2f}, AUROC {skill.auroc:.2f}), so its guidance leads nowhere",
            fix="train it longer, on more patients, or with more augmentation (classifier_training, augmentation)",
            file=run.name,
        )
    return calibration


@dataclass(frozen=True)
class AnomalyVolume:
    """What an engine says of one volume, on the network's grid, CPU: the raw `score` [1, *S], `healthy` [C, *S] (the image
    itself where nothing was done; None of an engine that makes none), and further raw maps where asked for.

    `facts` [N] are of its `slices`, `mean_score` (over the brain of each) among them. `round_trip` is the relative error
    of some slices that came back without any push.
    """

    slices: list[int]
    score: Tensor
    healthy: Tensor | None
    baselines: dict[str, Tensor]
    facts: dict[str, Tensor]
    round_trip: float | None


def map_volume(
    prepared: Prepared,
    system: AnomalySystem,
    *,
    slices: Sequence[int] | None = None,
    baselines: bool = False,
    advance: Advance = lambda slices: None,
) -> AnomalyVolume:
    """Map the slices that hold brain (or those of `slices`); `baselines` adds the maps that the networks give for free.

    Each batch has `network_batch` slices, the last one padded, so that the networks always see one shape; one batch at a
    time is on the device. Raises: UsageError where the numbers run away, as they do under too large a scale.
    """
    view = system.recipe.view
    chosen = view.for_sampling(prepared.brain) if slices is None else list(slices)
    image, brain = view.cut(prepared.image), view.cut(prepared.brain)
    maps: dict[str, Tensor] = {}
    facts: dict[str, list[Tensor]] = {}
    frame = Frame.around(image.shape[2:], view.size, prepared.preparation.background)

    def keep(name: str, values: Tensor, group: Sequence[int]) -> None:
        if name not in maps:  # what is not mapped stays the image, and scores nothing
            maps[name] = image.clone() if name == HEALTHY else torch.zeros(len(image), 1, *image.shape[2:])
        maps[name][group] = frame.take(values)[: len(group)].cpu()

    with autocast(system.device, system.precision):
        for group, padded in padded_batches(chosen, system.engine.network_batch):
            batch = frame.put(image[padded]).to(system.device).contiguous()
            evidence = system.evidence(batch, [(prepared.name, z) for z in padded], baselines=baselines)
            _check_finite(evidence)
            for name, values in {"score": evidence.score, **evidence.baselines}.items():
                keep(name, values, group)
            if evidence.healthy is not None:
                keep(HEALTHY, evidence.healthy, group)
            for name, values in evidence.facts.items():
                facts.setdefault(name, []).append(values[: len(group)].cpu())
            advance(len(group))
        checked = evenly_spaced(chosen, CHECKED_SLICES)
        trip = _round_trip(system, frame, image[checked], brain[checked]) if checked else None
    healthy, score = maps.pop(HEALTHY, None), maps.pop("score", torch.zeros_like(image[:, :1])) * brain
    area = brain[chosen].flatten(1).sum(1).clamp(min=1)
    of_slices = {name: torch.cat(values) for name, values in facts.items()}
    return AnomalyVolume(
        chosen,
        view.join(score),
        None if healthy is None else view.join(healthy),
        {name: view.join(values * brain) for name, values in maps.items()},
        of_slices | {"mean_score": score[chosen].flatten(1).sum(1) / area},
        trip,
    )


def measure_volume(prepared: Prepared, system: AnomalySystem, slices: Sequence[int]) -> Tensor | None:
    """What the engine has to know of these healthy slices before it maps anything, [N] on the CPU; None of an engine that
    needs to know nothing."""
    view, found = system.recipe.view, []
    image = view.cut(prepared.image)
    frame = Frame.around(image.shape[2:], view.size, prepared.preparation.background)
    with autocast(system.device, system.precision):
        for group, padded in padded_batches(slices, system.engine.network_batch):
            batch = frame.put(image[padded]).to(system.device).contiguous()
            values = system.measure(batch, [(prepared.name, z) for z in padded])
            if values is None:
                return None
            kept = values[: len(group)].float().cpu().flatten()
            found.append(kept[~kept.isnan()])
    return torch.cat(found) if found else None


@dataclass(frozen=True)
class Frame:
    """Background around slices smaller than those of the training: a classifier that pools has never seen less of it."""

    sides: tuple[int, int, int, int]  # left, right of the last axis, then of the one before, as torch pads
    background: float

    @classmethod
    def around(cls, size: Sequence[int], trained: Sequence[int], background: float) -> "Frame":
        missing = [max(full - n, 0) for n, full in zip(size, trained, strict=True)]
        first, last = [(extra // 2, extra - extra // 2) for extra in missing]
        return cls((*last, *first), background)

    def put(self, slices: Tensor) -> Tensor:
        """[B, C, X, Y] with the frame around it."""
        return functional.pad(slices, self.sides, value=self.background)

    def take(self, slices: Tensor) -> Tensor:
        """[B, C, X, Y] without its frame."""
        left, right, top, bottom = self.sides
        return slices[:, :, top : slices.shape[2] - bottom, left : slices.shape[3] - right]


def _round_trip(system: AnomalySystem, frame: Frame, image: Tensor, brain: Tensor) -> float | None:
    """Root mean square of what a few slices lost without any push, relative to their own deviation inside the brain."""
    engine, parts = system.engine, frame.put(image).split(system.engine.network_batch)
    trips = (engine.round_trip(part.to(system.device).contiguous(), system.networks) for part in parts)
    back = [frame.take(trip).cpu() for trip in trips if trip is not None]
    if not back:
        return None
    inside = brain.expand_as(image)
    lost, own = (image - torch.cat(back))[inside].square().mean().sqrt(), image[inside].std()
    return float(lost / own.clamp(min=1e-6))


def _check_finite(evidence: Evidence) -> None:
    if not (
        torch.isfinite(evidence.score).all() and (evidence.healthy is None or torch.isfinite(evidence.healthy).all())
    ):
        raise UsageError("the reconstruction is not finite", fix="lower engine.scale or engine.depth")
