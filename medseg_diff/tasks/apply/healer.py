"""A trained anomaly system, brought back from its run folder and ready to heal, with what was measured of it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medseg_diff import __version__
from medseg_diff.console import log
from medseg_diff.device import find_device, find_precision
from medseg_diff.diffusion import DDIM, Denoiser, walk
from medseg_diff.errors import CheckpointError
from medseg_diff.files import read_json, sha256_of
from medseg_diff.methods.anomaly.inversion import Healed, HealingSettings, difference, heal
from medseg_diff.methods.anomaly.normative import Floor
from medseg_diff.networks.noisy_classifier import NoisyClassifier
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.run import Run
from medseg_diff.settings import of_a_run, parse_settings, read_yaml
from medseg_diff.training.fit import channels_last
from medseg_diff.training.weights import load_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CALIBRATION = "calibration.json"
CALLED_HEALTHY = 0.5  # p(healthy) of a slice above which the classifier calls it so
NO_MATTER = {"network_batch", "threshold", "smallest_ml", "false_positive_rate"}  # to the map itself
BETTER_THAN_CHANCE = (
    0.55  # balanced accuracy or AUROC at which a gradient is worth following; below it the map is noise
)


@dataclass(frozen=True)
class Calibration:
    """What healthy brains showed to this run, as its calibration.json says; `facts` is the file as it stands.

    `threshold`, `drift` and `floor` are None where there was nothing healthy to measure, `skill` where the validation
    held one kind of slice only.
    """

    facts: dict[str, Any]

    @property
    def threshold(self) -> float | None:
        return self.facts["threshold"]

    @property
    def floor(self) -> Floor | None:
        return Floor.from_facts(self.facts["floor"]) if self.facts["floor"] else None

    @property
    def skill(self) -> tuple[float | None, float | None]:
        """Balanced accuracy and AUROC of the classifier over the times that healing passes."""
        return self.facts["classifier"]["balanced_accuracy"], self.facts["classifier"]["auroc"]

    @property
    def drift(self) -> float | None:
        return self.facts["drift"]

    @property
    def round_trip_limit(self) -> float | None:
        return self.facts["round_trip"]["limit"]

    def holds_for(self, healing: dict[str, Any], findings: dict[str, Any]) -> bool:
        """Whether it was measured with these settings, apart from those that change no map; a setting that it does not
        know came later and stands at what it always was."""
        pairs = [(self.facts["healing"], healing), (self.facts["findings"], findings)]
        return all(known.get(name, now[name]) == now[name] for known, now in pairs for name in now.keys() - NO_MATTER)


@dataclass(frozen=True)
class Healer:
    """A trained anomaly system; `facts` is what every case.json says of it."""

    recipe: AnomalyRecipe
    denoiser: Denoiser
    classifier: NoisyClassifier
    healing: HealingSettings
    calibration: Calibration | None
    device: "torch.device"
    precision: str
    facts: dict[str, Any]

    @property
    def is_calibrated(self) -> bool:
        """Whether the calibration was measured with the present settings."""
        healing, findings = self.healing.model_dump(mode="json"), self.recipe.findings.model_dump(mode="json")
        return self.calibration is not None and self.calibration.holds_for(healing, findings)

    def at_once(self, batch: int) -> "Healer":
        """The same with so many slices in a pass of the networks."""
        return replace(self, healing=self.healing.but(network_batch=batch))

    @property
    def levels(self) -> list[int]:
        return self.healing.levels(self.recipe.schedule)

    def heal(self, image: "Tensor") -> Healed:
        """The healthy brain behind image [B, C, *S], watched by the classifier; on the device, inside `autocast`."""
        return heal(
            image,
            denoiser=self.denoiser,
            guided=self.healing.guided(self.denoiser, self.classifier),
            levels=self.levels,
            image_scale=self.recipe.image_scale,
            way_back=self.healing.way_back(image),
            classifier=self.classifier,
        )

    def back_unguided(self, noisy: "Tensor") -> "Tensor":
        """From x_L [B, C, *S] back without any guidance: the round trip at scale 0, in the units of the image."""
        return walk(self.denoiser, DDIM(), noisy, self.levels[::-1]) / self.recipe.image_scale

    def difference(self, image: "Tensor", healed: "Tensor") -> "Tensor":
        """The raw map [B, 1, *S] of the recipe's kind."""
        return difference(image, healed, kind=self.recipe.findings.map, channels=self.recipe.map_channels)


def load_healer(
    run: Run, *, device: str, precision: str | None, calibrated: bool = True, **changes: float | int | None
) -> Healer:
    """Denoiser and classifier of a run on a device, healing with some numbers changed (depth, steps, scale, network_batch).

    Raises: CheckpointError where the run's files are damaged or do not fit each other, where it was never calibrated
    (unless `calibrated` is False, for the calibration itself) or where its classifier guesses; UsageError where the
    numbers do not fit the schedule.
    """
    import torch

    run.verify(run.recipe_file)
    with of_a_run():
        recipe = parse_settings(AnomalyRecipe, read_yaml(run.recipe_file), source=f"{run.name}/recipe.yaml")
    place = find_device(device)
    denoiser, classifier = recipe.build_denoiser(), recipe.build_classifier()
    assert isinstance(denoiser.network, torch.nn.Module)
    digests = {}
    for name, network in (("denoiser", denoiser.network), ("classifier", classifier)):
        digests[name] = run.verify(run.weights(name))
        load_weights(network, run.weights(name))
        channels_last(network).to(place).eval().requires_grad_(False)
    calibration = _calibration_of(run) if calibrated else None
    healing, exact = recipe.heals(**changes), find_precision(precision or recipe.training.precision, place)
    facts = {
        "model": run.name,
        "sha256": digests["denoiser"],
        "classifier_sha256": digests["classifier"],
        "recipe": run.facts["recipe"],
        "recipe_sha256": sha256_of(run.recipe_file),
        "calibration_sha256": sha256_of(run.folder / CALIBRATION) if calibration else None,
        "healing": healing.model_dump(mode="json"),
        "passes_per_slice": healing.passes | {"guards": healing.steps + 2},  # p(healthy) at every time and before
        "precision": exact,
        "device": place.type,
        "threads": torch.get_num_threads(),
        "versions": {"medseg_diff": __version__, "torch": torch.__version__},
    }
    return Healer(recipe, denoiser, classifier, healing, calibration, place, exact, facts)


def _calibration_of(run: Run) -> Calibration:
    """What is known of the run, unless that forbids its use. Raises: CheckpointError."""
    run.verify(run.folder / CALIBRATION)
    try:
        calibration = Calibration(read_json(run.folder / CALIBRATION))
        accuracy, auroc = calibration.skill
        _ = (calibration.threshold, calibration.floor, calibration.drift, calibration.round_trip_limit)
        _ = (calibration.facts["healing"] | {}, calibration.facts["findings"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("is no calibration", fix="train again", file=f"{run.name}/{CALIBRATION}") from None
    if accuracy is None or auroc is None:
        log.warning(
            "the classifier of %s was validated on one kind of slice only: whether it guesses is not known", run.name
        )
    elif max(accuracy, auroc) < BETTER_THAN_CHANCE:
        raise CheckpointError(
            f"its classifier tells healthy from diseased validation slices no better than by chance (balanced accuracy "
            f"{accuracy:.2f}, AUROC {auroc:.2f}), so the way back leads nowhere",
            fix="train it longer, on more patients, or with more augmentation (classifier_training, augmentation)",
            file=run.name,
        )
    return calibration
