"""A run, or the runs of a study, that map a scan as one model: the mean of maps in units of each run's own threshold."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medseg_diff.data.transforms import Prepared
from medseg_diff.errors import UsageError
from medseg_diff.methods.anomaly.normative import RECONSTRUCTED, AnomalyFindings, above_normal, cleaned, depth_of
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.calibration import MapCalibration
from medseg_diff.recipes.trained import Trained, facts_of_study, open_other, open_run
from medseg_diff.recipes.typicality import judged
from medseg_diff.studies import FoundModel
from medseg_diff.tasks.apply.anomaly_volume import Advance, AnomalySystem, AnomalyVolume, map_volume, system_of
from medseg_diff.tasks.options import Compute
from medseg_diff.training.weights import load_weights


@dataclass(frozen=True)
class AnomalyModel:
    """The networks of a run, or of the runs of a study, verified and on a device: they are read once, for any number of
    ensembles; of a study those of the first run, which put on the others' weights."""

    found: FoundModel
    trained: tuple[Trained[AnomalyRecipe], ...]

    @classmethod
    def load(cls, found: FoundModel, compute: Compute) -> "AnomalyModel":
        """Raises: CheckpointError where a run's files are damaged or do not fit each other, or the runs are of several
        recipes; UsageError, EnvironmentFault for the device."""
        first = open_run(found.runs[0], AnomalyRecipe, device=compute.device, precision=compute.precision)
        return cls(found, (first, *(open_other(run, first) for run in found.runs[1:])))


@dataclass(frozen=True)
class AnomalyEnsemble:
    """A run, or the runs of a study, ready to map; `facts` is what every case.json says of it. The `networks` of several put
    on one set of `weights` after the other: the memory is that of one."""

    systems: tuple[AnomalySystem, ...]
    networks: Mapping[str, nn.Module]
    weights: tuple[Mapping[str, Path], ...]
    facts: dict[str, Any]

    @property
    def recipe(self) -> AnomalyRecipe:
        return self.systems[0].recipe

    @property
    def is_study(self) -> bool:
        return len(self.systems) > 1

    @property
    def learned_from_phantoms(self) -> bool:
        """Whether one of its runs saw nothing but phantoms."""
        return any(system.typicality.phantoms for system in self.systems if system.typicality)

    def typicality(self, appearance: Mapping[str, float]) -> dict[str, Any] | None:
        """What the run says of a scan that finds it most like its own."""
        return judged([system.typicality for system in self.systems if system.typicality], appearance)

    def volumes(
        self, prepared: Prepared, batch: int, *, slices: Sequence[int], baselines: bool, advance: Advance
    ) -> list[AnomalyVolume]:
        """What each run says of a volume, with so many slices in one pass of the networks."""
        found = []
        for system, weights in zip(self.systems, self.weights, strict=True):
            if self.is_study:
                for name, file in weights.items():
                    load_weights(self.networks[name], file)
            now = system.but(network_batch=batch)
            found.append(map_volume(prepared, now, slices=slices, baselines=baselines, advance=advance))
        return found

    def joined(self, name: str, raw: Sequence[Tensor], prepared: Prepared) -> "Joined":
        """The map `name` of the raw ones [1, *S] of all runs, each brought above its normative mean at the scan's own gain.

        That of a run alone is as it is; those of several are each divided by their run's own threshold, and averaged.
        """
        depth_mm, findings = depth_of(prepared.brain, prepared.spacing_mm), self.recipe.findings
        known = self._known(name)
        found = [
            finished(name, each, prepared, depth_mm, findings, calibration)
            for each, calibration in zip(raw, known, strict=True)
        ]
        if not self.is_study:
            ((score, gain),) = found
            return Joined(score, depth_mm, (gain,))
        units = [calibration.threshold for calibration in known if calibration]
        parts = [score / unit for (score, _), unit in zip(found, units, strict=True)]
        return Joined(torch.stack(parts).mean(dim=0), depth_mm, tuple(gain for _, gain in found))

    def _known(self, name: str) -> list[MapCalibration | None]:
        """What each run measured of the map `name` with the present settings."""
        calibrated = [system.calibrated for system in self.systems]
        return [each.maps.get(name) if each else None for each in calibrated]

    def threshold(self, name: str) -> float | None:
        """Above which the stated share of healthy voxels of the map `name` lies; None where it was not measured, or, of a
        study, cannot be a unit."""
        known = self._known(name)
        if not self.is_study:
            return known[0].threshold if known[0] else None
        return 1.0 if all(calibration and calibration.threshold > 0 for calibration in known) else None

    def joins(self, name: str) -> bool:
        """Whether there can be one map `name` of all runs."""
        return not self.is_study or self.threshold(name) is not None


class Joined(NamedTuple):
    """A map as it is written [1, *S], how deep each voxel lies in the brain [*S], and the gain of the scan in each run."""

    score: Tensor
    depth_mm: npt.NDArray[np.float32]
    gains: tuple[float, ...]


def finished(
    name: str,
    raw: Tensor,
    prepared: Prepared,
    depth_mm: npt.NDArray[np.float32],
    findings: AnomalyFindings,
    known: MapCalibration | None,
) -> tuple[Tensor, float]:
    """A run's raw map `name` [1, *S] above its normative mean at the scan's own gain (unless the recipe takes it as it is),
    and that gain."""
    score = cleaned(raw, prepared.brain, findings, spacing_mm=prepared.spacing_mm)[0].numpy()
    inside, gain, normal = depth_mm > 0, 1.0, known.normative_mean if known and findings.normative else None
    if normal and name in RECONSTRUCTED:
        gain = normal.gain_of(score[inside], depth_mm[inside])
    return torch.from_numpy(above_normal(score, depth_mm, normal, rim_mm=findings.rim_mm, gain=gain))[None], gain


def open_ensemble(
    found: FoundModel, *, compute: Compute, overrides: Sequence[str] = (), seed: int = 0
) -> AnomalyEnsemble:
    """A run, or the runs of a study, with settings of engine and findings changed. Raises: as `AnomalyModel.load` and
    `ensemble_of`."""
    return ensemble_of(AnomalyModel.load(found, compute), overrides, seed=seed, network_batch=compute.network_batch)


def ensemble_of(
    model: AnomalyModel, overrides: Sequence[str], *, seed: int, network_batch: int | None
) -> AnomalyEnsemble:
    """A model with settings of engine and findings changed.

    Raises: as `system_of`; UsageError where the maps of a study have no unit in common with these settings.
    """
    runs, trained = model.found.runs, model.trained
    systems = tuple(
        system_of(run, each, overrides, seed=seed, network_batch=network_batch, place=place)
        for place, (run, each) in enumerate(zip(runs, trained, strict=True))
    )
    known = [system.calibration for system in systems if system.calibration]
    facts = systems[0].facts
    if len(runs) > 1:
        for system in systems:
            _check_unit(system, model.found)
        facts = facts | facts_of_study(model.found.name, trained)
        own = [
            {key: system.facts[key] for key in ("calibration_sha256", "separate")}
            | {"threshold": calibration.own.threshold if calibration.own else None, "source": calibration.source}
            | {"widened": calibration.widened}
            for system, calibration in zip(systems, known, strict=True)
        ]
        facts["models"] = [names | said for names, said in zip(facts["models"], own, strict=True)]
        joined = "".join(said["calibration_sha256"] for said in own)
        facts["calibration_sha256"] = hashlib.sha256(joined.encode()).hexdigest()
        facts["separate"] = _all_of([said["separate"] for said in own])
        facts["network_evaluations"] = {name: len(runs) * n for name, n in facts["network_evaluations"].items()}
    weights = tuple({name: run.weights(name) for name in trained[0].networks} for run in runs)
    return AnomalyEnsemble(systems, trained[0].networks, weights, facts)


def _check_unit(system: AnomalySystem, found: FoundModel) -> None:
    """Raises: UsageError where a run of a study has no threshold to divide its map by."""
    name, alone = system.facts["model"], f"name one run, such as --model {found.name}/{found.runs[0].name}"
    if not system.calibrated:
        said = "joins its runs' maps in units of their thresholds, which were measured with other settings"
        raise UsageError(said, fix=f"leave these settings of engine and findings out, or {alone}", file=found.name)
    if not (system.calibrated.own and system.calibrated.own.threshold > 0):
        said = f"joins its runs' maps in units of their thresholds, and {name} has none above 0"
        raise UsageError(f"{said} ({system.calibrated.source})", fix=alone, file=found.name)


def _all_of(said: Sequence[bool | None]) -> bool | None:
    """False where one is, None where one is not known."""
    return False if False in said else None if None in said else True
