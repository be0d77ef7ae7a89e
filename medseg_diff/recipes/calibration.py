"""What a run measured after its training, typed: calibration.json of segmentation and of anomaly runs."""

from typing import ClassVar, TypeVar

from pydantic import Field

from medseg_diff.errors import counted
from medseg_diff.files import write_json
from medseg_diff.methods.anomaly import AnyEngine
from medseg_diff.methods.anomaly.normative import OWN, AnomalyFindings, NormativeMean
from medseg_diff.run import Run
from medseg_diff.settings import Settings, read_measured

FEW_PATIENTS = 20  # below it a screening says so
BETTER_THAN_CHANCE = 0.55  # balanced accuracy or AUROC at which to follow a gradient; below it the map is noise


class PresenceScores(Settings):
    """`presence.score` of patients with a lesion and of patients without, ascending."""

    diseased: tuple[float, ...] = ()
    healthy: tuple[float, ...] = ()


class OutOfFold(Settings):
    """What a study's patients showed, each predicted whole by the run that never saw it, of one region.

    `volume_errors`: `conformal.volume_error`, one of each patient, the worst of several scans. `presence`: the score of each
    patient's first scan. `missed`: the share of a lesion that is not above each of `conformal.THRESHOLDS`, the mean over
    `lesions` patients. Of a run, which predicts nobody, all of it is empty.
    """

    volume_errors: tuple[float, ...] = ()
    presence: PresenceScores = PresenceScores()
    missed: tuple[float, ...] = ()
    lesions: int = 0


class RegionCalibration(Settings):
    """One region: `threshold` is one half unless `best_threshold` is clearly better; ECE and log loss (nats) over brain
    voxels, of the plain mean and at the temperature, on the slices that it was fitted on; and what whole patients showed."""

    threshold: float
    best_threshold: float
    dice_at_half: float
    dice_at_best: float
    temperature: float
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float
    out_of_fold: OutOfFold = OutOfFold()


class ScreeningCalibration(Settings):
    """Which slices `segment --screen` leaves out: those of which one look says less than `threshold` everywhere. Of `slices`
    of so many `patients` it left out the share `left_out`, and with them the share `missed` of a lesion's voxels (of the
    region where that is largest); no more than `allowed` was to be."""

    threshold: float
    missed: float
    allowed: float
    left_out: float
    slices: int
    patients: int

    def in_words(self) -> str:
        """What is left out, and what that is worth."""
        few = "; so few say little about a new one" if self.patients < FEW_PATIENTS else ""
        patients = counted(self.patients, "patient")
        return (
            f"slices that a one-step look scores below {self.threshold:.3g} are skipped: on {patients} this left out "
            f"{self.left_out:.0%} of the slices and {self.missed:.2%} of the lesions' voxels{few}"
        )


class SegmentationCalibration(Settings):
    """What was chosen, on how many slices of how many patients; `separate`: none of them was trained on. `screening` of runs
    that measured it: not of a study, of patches, or without a lesion to miss."""

    slices: int
    patients: int
    separate: bool
    members: int
    steps: int
    regions: dict[str, RegionCalibration]
    screening: ScreeningCalibration | None = None

    def threshold(self, region: str) -> float:
        """What the mean of a region is cut at unless the recipe says otherwise: one half where patients are not separate."""
        return self.regions[region].threshold if self.separate and region in self.regions else 0.5


class MapCalibration(Settings):
    """One map: its normative mean, and the threshold above which the stated share of healthy voxels lies.

    `thresholds_by_volume`: of each healthy validation brain that was mapped whole, one a patient, the thresholds above which
    no more than each of `conformal.FALSE_POSITIVES_ML` lies, its scores taken above the normative mean of the other brains.
    """

    normative_mean: NormativeMean
    threshold: float
    thresholds_by_volume: tuple[tuple[float, ...], ...] = ()


class RoundTrip(Settings):
    """Relative error of healthy slices that came back without any push, and how large it may be; None without such."""

    error: float | None = None
    limit: float | None = None


class ClassifierSkill(Settings):
    """How well a classifier tells validation slices apart: means over the times that the engine passes, and by time."""

    balanced_accuracy: float | None = None
    auroc: float | None = None
    by_time: tuple[dict[str, float], ...] = ()

    @property
    def is_chance(self) -> bool | None:
        """Whether it guesses; None where the validation slices were of one kind only."""
        if self.balanced_accuracy is None or self.auroc is None:
            return None
        return max(self.balanced_accuracy, self.auroc) < BETTER_THAN_CHANCE


class AnomalyCalibration(Settings):
    """What healthy brains showed: `maps` by name (none where nothing healthy was there; `anomaly` is the engine's own),
    `reference` for the engine's quality checks, and how all of it was measured. `separate`: they belong to patients that
    the run was not trained on; None where that was not noted, or nothing healthy was there. `widened`: what thresholds of
    reconstructions were multiplied by, where no whole healthy brain was measured."""

    no_matter: ClassVar[set[str]] = {"network_batch", "threshold", "smallest_ml", "false_positive_rate"}  # to the map

    source: str
    separate: bool | None = None
    widened: float = 1.0
    engine: AnyEngine
    findings: AnomalyFindings
    voxels: int
    slices: int
    maps: dict[str, MapCalibration] = Field(default_factory=dict)
    reference: dict[str, float] = Field(default_factory=dict)
    round_trip: RoundTrip = RoundTrip()
    classifier: ClassifierSkill = ClassifierSkill()

    @property
    def own(self) -> MapCalibration | None:
        return self.maps.get(OWN)

    def holds_for(self, engine: AnyEngine, findings: AnomalyFindings) -> bool:
        """Whether it was measured with these settings, apart from those that change no map."""
        return all(
            known.model_dump(exclude=self.no_matter) == now.model_dump(exclude=self.no_matter)
            for known, now in ((self.engine, engine), (self.findings, findings))
        )


Kind = TypeVar("Kind", SegmentationCalibration, AnomalyCalibration)


def write_calibration(run: Run, calibration: Settings) -> None:
    """RUN/calibration.json; the run is to be sealed after it. Raises: EnvironmentFault."""
    write_json(run.calibration_file, calibration.model_dump(mode="json"))


def read_calibration(run: Run, kind: type[Kind]) -> Kind | None:
    """What the run measured; None for a run without. Raises: CheckpointError where the file is not what was written."""
    return read_measured(run.calibration_file, kind)
