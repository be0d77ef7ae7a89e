"""Made of the options of the verbs by `python -m tests.stub`: what type checkers and editors see of the package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from medseg_diff.api.models import LoadedModel as LoadedModel
from medseg_diff.api.models import load_model as load_model
from medseg_diff.api.results import AnomalyResult as AnomalyResult
from medseg_diff.api.results import SegmentationResult as SegmentationResult
from medseg_diff.api.volumes import Volume
from medseg_diff.recipes.tuned import Tuned
from medseg_diff.run import Run
from medseg_diff.studies import FoldStudy
from medseg_diff.tasks.audit_volumes import audit_volumes as audit_volumes
from medseg_diff.tasks.demo import demo as demo
from medseg_diff.tasks.evaluate import evaluate as evaluate
from medseg_diff.tasks.info import info as info
from medseg_diff.tasks.phantom import phantom as phantom
from medseg_diff.tasks.report import report as report
from medseg_diff.tasks.selftest import selftest as selftest
from medseg_diff.tasks.ui import ui as ui
from medseg_diff.tasks.validate import validate as validate

VERBS: dict[str, str]
NOUNS: dict[str, str]
__version__: str

class SegmentOptions(TypedDict, total=False):
    split: str | None
    shard: str | tuple[int, int]
    data_root: str | Path | None
    channels: str | Sequence[str]
    resample_to: str | None
    overwrite: bool
    keep_going: bool
    pseudonymise: bool
    pseudonym_key: str | Path | None
    out: str | Path | None
    model: str | Path | LoadedModel | None
    runs: str | Path
    members: int | None
    steps: int | None
    seed: int
    members_at_once: int | None
    adaptive: bool | None
    tolerance: float | None
    screen: bool | None
    noise: str | None
    fusion: str | None
    start_from: str | Path | None
    strength: float | None
    calibrated: bool
    level: float
    guarantee: str | float | None
    save_members: bool
    format: Literal["nifti", "dicom-seg"]
    device: str
    precision: str | None
    network_batch: int | None
    cluster: Literal["none", "ray"]
    workers: int | None

@overload
def segment(  # type: ignore[overload-overlap]  # a path is a sequence too
    volume: Volume, **options: Unpack[SegmentOptions]
) -> SegmentationResult:
    """Segment scans: mask, probability and uncertainty on each scan's own grid.

    Returns the result of the one case that `volume` (or `volumes`, in the words of the command line) names, or a list of
    them, in order, of a list or a table. Nothing is written unless `out` names a folder; then cases that are complete there
    are only read. Options that are None are the recipe's.

    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.

    Args:
        volume: A path, an image of nibabel, a dict of channel → either, or a list of these: several cases.
        volumes: Scan to read: a folder, a file, or CHANNEL=FILE (repeat).
        data: Table of cases.
        split: Only cases of this split.
        shard: Every N-th case, starting with the K-th. [default: 1/1]
        data_root: Folder that paths in the table are relative to. [default: the table's]
        channels: Channels of numbered files and 4D volumes, in order: flair,t1.
        resample_to: Bring the other channels onto this one's grid.
        overwrite: Redo existing results.
        keep_going: Continue past bad cases; OUT/failures.csv lists them.
        pseudonymise: Name results by pseudonyms instead of case names.
        pseudonym_key: File with the secret key of the pseudonyms. [default: RUNS/pseudonym.key]
        out: Where results are written too, a folder for each case [nowhere].
        model: Run or study of folds: folder or name, or what load_model returns [the newest, else `starter`].
        runs: Where to look for the newest run.
        members: Samples in the ensemble. [default: as tuned, else the recipe's]
        steps: Denoising steps. [default: as tuned, else the recipe's]
        seed: Random seed.
        members_at_once: Members drawn together; does not change results.
        adaptive: Draw no more members than a case needs, up to --members. [default: the recipe's]
        tolerance: With --adaptive: accepted 1 - Dice to a mask of endless members. [default: the recipe's]
        screen: Skip slices that a one-step look finds empty. [default: the recipe's]
        noise: A member's noise: independent per slice, or shared by all. [default: the recipe's]
        fusion: How members are fused into the mask. [default: the recipe's]
        start_from: Masks CASE.nii.gz to noise and refine. [default: noise alone]
        strength: How far --start-from is noised: near 0 keeps the masks, 1 forgets them. [default: 0.5]
        calibrated: Also write the probability at the run's temperature.
        level: Level of the volume interval, if the model was measured on enough patients.
        guarantee: Also write a mask that misses at most this share of a lesion (fnr=0.1), on average over patients.
        save_members: Also write members/NN.nii.gz.
        format: dicom-seg: for DICOM scans, also write mask.seg.dcm and probability.seg.dcm.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: Number format of the networks. [default: the recipe's]
        network_batch: Samples per network pass. [default: the recipe's]
        cluster: ray: share cases among processes, across machines with RAY_ADDRESS.
        workers: Processes of --cluster. [default: one a GPU, else one a CPU]
    """

@overload
def segment(volume: Sequence[Volume], **options: Unpack[SegmentOptions]) -> list[SegmentationResult]: ...
@overload
def segment(*, data: str | Path, **options: Unpack[SegmentOptions]) -> list[SegmentationResult]: ...
@overload
def segment(*, volumes: Sequence[str], **options: Unpack[SegmentOptions]) -> SegmentationResult: ...

class AnomalyOptions(TypedDict, total=False):
    split: str | None
    shard: str | tuple[int, int]
    data_root: str | Path | None
    channels: str | Sequence[str]
    resample_to: str | None
    overwrite: bool
    keep_going: bool
    pseudonymise: bool
    pseudonym_key: str | Path | None
    out: str | Path | None
    model: str | Path | LoadedModel | None
    runs: str | Path
    overrides: Sequence[str]
    threshold: str | Literal["healthy", "otsu"] | float | None
    guarantee: str | float | None
    level: float | None
    seed: int
    baselines: bool
    device: str
    precision: str | None
    network_batch: int | None
    cluster: Literal["none", "ray"]
    workers: int | None

@overload
def anomaly(  # type: ignore[overload-overlap]  # a path is a sequence too
    volume: Volume, **options: Unpack[AnomalyOptions]
) -> AnomalyResult:
    """Map anomalies: score, mask, lesions and the pseudo-healthy brain on each scan's own grid.

    Returns the result of the one case that `volume` (or `volumes`, in the words of the command line) names, or a list of
    them, in order, of a list or a table. Nothing is written unless `out` names a folder; then cases that are complete there
    are only read.

    Raises: UsageError, ConfigError, ManifestError, ImageError, CheckpointError, EnvironmentFault.

    Args:
        volume: A path, an image of nibabel, a dict of channel → either, or a list of these: several cases.
        volumes: Scan to read: a folder, a file, or CHANNEL=FILE (repeat).
        data: Table of cases.
        split: Only cases of this split.
        shard: Every N-th case, starting with the K-th. [default: 1/1]
        data_root: Folder that paths in the table are relative to. [default: the table's]
        channels: Channels of numbered files and 4D volumes, in order: flair,t1.
        resample_to: Bring the other channels onto this one's grid.
        overwrite: Redo existing results.
        keep_going: Continue past bad cases; OUT/failures.csv lists them.
        pseudonymise: Name results by pseudonyms instead of case names.
        pseudonym_key: File with the secret key of the pseudonyms. [default: RUNS/pseudonym.key]
        out: Where results are written too, a folder for each case [nowhere].
        model: Run or study of folds: folder or name, or what load_model returns [the newest, else `starter`].
        runs: Where to look for the newest run.
        overrides: engine.…=… or findings.…=… laid over the recipe.
        threshold: Where the map is cut: healthy (stored with the model), otsu, or a number. [default: the recipe's]
        guarantee: Threshold that marks at most this much of a healthy brain (fp_ml=1).
        level: Share of healthy brains for which --guarantee holds. [default: 0.9; needs 9 measured ones]
        seed: Random seed, for engines that draw noise.
        baselines: Also write baseline maps for `evaluate` to compare with.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: Number format of the networks. [default: the recipe's]
        network_batch: Samples per network pass. [default: the recipe's]
        cluster: ray: share cases among processes, across machines with RAY_ADDRESS.
        workers: Processes of --cluster. [default: one a GPU, else one a CPU]
    """

@overload
def anomaly(volume: Sequence[Volume], **options: Unpack[AnomalyOptions]) -> list[AnomalyResult]: ...
@overload
def anomaly(*, data: str | Path, **options: Unpack[AnomalyOptions]) -> list[AnomalyResult]: ...
@overload
def anomaly(*, volumes: Sequence[str], **options: Unpack[AnomalyOptions]) -> AnomalyResult: ...
def train_seg(
    data: str | Path,
    device: str = ...,
    data_root: str | Path | None = ...,
    *,
    overrides: Sequence[str] = ...,
    config: str | None = ...,
    out: str | Path | None = ...,
    resume: Literal["auto", "must"] | None = ...,
    init_from: str | None = ...,
    resample_to: str | None = ...,
    runs: str | Path = ...,
    mlflow: bool = ...,
    parent: str | None = ...,
    folds: int | None = ...,
    shard: str | tuple[int, int] = ...,
) -> Run | FoldStudy:
    """Train a recipe on the table `data`. Returns the run, or the study of so many `folds`.

    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.

    Args:
        data: Table of cases (CSV).
        overrides: Settings laid over the recipe, such as training.steps=1000.
        config: Recipe: its name (see `info`) or file. [default: the verb's own]
        out: Run folder. [default: runs/TIME-RECIPE]
        resume: Go on with the unfinished run in --out, or the newest of this recipe and data; auto: else begin one.
        init_from: A run whose weights to begin with; channels and regions may differ, the network not.
        resample_to: Read the other channels of every case onto this one's grid.
        runs: Folder of runs, cache and MLflow store.
        mlflow: Mirror the run in MLflow.
        parent: Name of a study whose runs stand together in MLflow.
        folds: So many trainings, each without another part of the patients; --out is their study.
        shard: Every N-th fold, starting with the K-th. [default: 1/1]
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder that paths in the table are relative to [the table's].
    """

def train_anomaly(
    data: str | Path,
    device: str = ...,
    data_root: str | Path | None = ...,
    *,
    overrides: Sequence[str] = ...,
    config: str | None = ...,
    out: str | Path | None = ...,
    resume: Literal["auto", "must"] | None = ...,
    init_from: str | None = ...,
    resample_to: str | None = ...,
    runs: str | Path = ...,
    mlflow: bool = ...,
    parent: str | None = ...,
    folds: int | None = ...,
    shard: str | tuple[int, int] = ...,
) -> Run | FoldStudy:
    """Train the networks of a recipe's engine on the table `data`, one after the other; then measure healthy brains.

    Returns the run: weights/denoiser.safetensors, calibration.json (normative mean and threshold); with a classifier also
    weights/classifier.safetensors and classifier.csv (how well it tells slices apart, time by time). With `folds` it is a
    study of so many runs, each measured on patients that it has not learned from.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.

    Args:
        data: Table of cases (CSV).
        overrides: Settings laid over the recipe, such as training.steps=1000.
        config: Recipe: its name (see `info`) or file. [default: the verb's own]
        out: Run folder. [default: runs/TIME-RECIPE]
        resume: Go on with the unfinished run in --out, or the newest of this recipe and data; auto: else begin one.
        init_from: A run whose weights to begin with; channels and regions may differ, the network not.
        resample_to: Read the other channels of every case onto this one's grid.
        runs: Folder of runs, cache and MLflow store.
        mlflow: Mirror the run in MLflow.
        parent: Name of a study whose runs stand together in MLflow.
        folds: So many trainings, each without another part of the patients; --out is their study.
        shard: Every N-th fold, starting with the K-th. [default: 1/1]
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder that paths in the table are relative to [the table's].
    """

def train_synth(
    data: str | Path,
    device: str = ...,
    data_root: str | Path | None = ...,
    *,
    overrides: Sequence[str] = ...,
    config: str | None = ...,
    out: str | Path | None = ...,
    resume: Literal["auto", "must"] | None = ...,
    init_from: str | None = ...,
    resample_to: str | None = ...,
    runs: str | Path = ...,
    mlflow: bool = ...,
    parent: str | None = ...,
) -> Run:
    """Train the networks that draw scans like those of the table `data`, one after the other.

    Returns the run: weights/denoiser.safetensors, in a latent space weights/autoencoder.safetensors, and with covariates
    weights/regressor.safetensors and covariates.json, their ranges.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.

    Args:
        data: Table of cases (CSV).
        overrides: Settings laid over the recipe, such as training.steps=1000.
        config: Recipe: its name (see `info`) or file. [default: the verb's own]
        out: Run folder. [default: runs/TIME-RECIPE]
        resume: Go on with the unfinished run in --out, or the newest of this recipe and data; auto: else begin one.
        init_from: A run whose weights to begin with; channels and regions may differ, the network not.
        resample_to: Read the other channels of every case onto this one's grid.
        runs: Folder of runs, cache and MLflow store.
        mlflow: Mirror the run in MLflow.
        parent: Name of a study whose runs stand together in MLflow.
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder that paths in the table are relative to [the table's].
    """

def train_enhance(
    data: str | Path,
    device: str = ...,
    data_root: str | Path | None = ...,
    *,
    overrides: Sequence[str] = ...,
    config: str | None = ...,
    out: str | Path | None = ...,
    resume: Literal["auto", "must"] | None = ...,
    init_from: str | None = ...,
    resample_to: str | None = ...,
    runs: str | Path = ...,
    mlflow: bool = ...,
    parent: str | None = ...,
) -> Run:
    """Train the network that draws scans at a finer resolution, from scans of that resolution: those of the table `data`.

    Returns the run: weights/denoiser.safetensors.
    Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; Diverged.

    Args:
        data: Table of cases (CSV).
        overrides: Settings laid over the recipe, such as training.steps=1000.
        config: Recipe: its name (see `info`) or file. [default: the verb's own]
        out: Run folder. [default: runs/TIME-RECIPE]
        resume: Go on with the unfinished run in --out, or the newest of this recipe and data; auto: else begin one.
        init_from: A run whose weights to begin with; channels and regions may differ, the network not.
        resample_to: Read the other channels of every case onto this one's grid.
        runs: Folder of runs, cache and MLflow store.
        mlflow: Mirror the run in MLflow.
        parent: Name of a study whose runs stand together in MLflow.
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder that paths in the table are relative to [the table's].
    """

def synthesise(
    out: str | Path,
    device: str = ...,
    *,
    model: str | Path | None = ...,
    runs: str | Path = ...,
    covariates: Sequence[str] = ...,
    number: int | None = ...,
    masks: str | Path | None = ...,
    split: str | None = ...,
    data_root: str | Path | None = ...,
    enhance: str | Path | None = ...,
    age: float | None = ...,
    sex: str | None = ...,
    unconditional: bool = ...,
    guidance: float | None = ...,
    steps: int | None = ...,
    limit: float | None = ...,
    seed: int = ...,
    precision: str | None = ...,
    network_batch: int | None = ...,
    overwrite: bool = ...,
) -> list[str | Path]:
    """Draw `number` scans into OUT/synthetic_0000 …, and their table OUT/cases.csv; returns the folders. With `masks`, a
    table, `number` scans are painted into the mask of each of its cases: OUT/CASE_00 …, on the case's own grid. With
    `enhance`, a run of train-enhance, scans are drawn again at its finer resolution.

    A scan depends on the model, the seed, its number and what is asked for alone. Those that are complete are skipped.
    Raises: UsageError, CheckpointError, EnvironmentFault; with `masks` also ManifestError, ImageError.

    Args:
        out: Where scans go, a folder for each.
        model: Run, or study of folds: its folder or name. [default: the newest of its kind below --runs]
        runs: Where to look for the newest run.
        covariates: Covariates asked for, such as ventricle_volume_ml=40.
        number: How many scans; with --masks, of each mask. [default: 8; with --masks 1]
        masks: Table of cases whose masks (column seg) are painted into scans.
        split: Only these cases of --masks.
        data_root: Folder that paths of --masks are relative to. [default: the table's]
        enhance: Run of train-enhance that refines scans to its resolution.
        age: Age in years, the covariate age_years.
        sex: The covariate sex.
        unconditional: Leave covariates out: draw from the whole population.
        guidance: 1: covariates or mask as learned; above 1 exaggerates them. [default: the recipe's]
        steps: Denoising steps. [default: the recipe's]
        limit: Bound of intensities under guidance (dynamic thresholding). [default: the recipe's]
        seed: Random seed.
        precision: Number format of the networks. [default: the recipe's]
        network_batch: Samples per network pass. [default: the recipe's]
        overwrite: Redo existing results.
        device: auto, cpu, cuda, cuda:N or mps.
    """

def enhance(
    volumes: Sequence[str] = ...,
    *,
    out: str | Path,
    data: str | Path | None = ...,
    split: str | None = ...,
    shard: str | tuple[int, int] = ...,
    data_root: str | Path | None = ...,
    channels: str | Sequence[str] = ...,
    resample_to: str | None = ...,
    overwrite: bool = ...,
    keep_going: bool = ...,
    pseudonymise: bool = ...,
    pseudonym_key: str | Path | None = ...,
    model: str | Path | None = ...,
    runs: str | Path = ...,
    draws: int = ...,
    steps: int | None = ...,
    condition_noise: int | None = ...,
    seed: int = ...,
    device: str = ...,
    precision: str | None = ...,
    network_batch: int | None = ...,
    cluster: Literal["none", "ray"] = ...,
    workers: int | None = ...,
) -> list[str | Path]:
    """Draw one case (`volumes`, as on the command line) or a table's cases at a finer resolution; returns the folders.

    OUT/CASE/CHANNEL.nii.gz has voxels smaller by the model's factor, and the scan's own field of view and orientation. What
    it shows beyond the scan is drawn, not measured: one of many fine scans that the scan may be the coarse form of. Cases
    that are complete with the same settings are skipped, and so are those that another process is working on.
    Raises: UsageError, ConfigError, ManifestError, ImageError, CheckpointError, EnvironmentFault.

    Args:
        volumes: Scan to read: a folder, a file, or CHANNEL=FILE (repeat).
        data: Table of cases.
        split: Only cases of this split.
        shard: Every N-th case, starting with the K-th. [default: 1/1]
        data_root: Folder that paths in the table are relative to. [default: the table's]
        channels: Channels of numbered files and 4D volumes, in order: flair,t1.
        resample_to: Bring the other channels onto this one's grid.
        overwrite: Redo existing results.
        keep_going: Continue past bad cases; OUT/failures.csv lists them.
        pseudonymise: Name results by pseudonyms instead of case names.
        pseudonym_key: File with the secret key of the pseudonyms. [default: RUNS/pseudonym.key]
        out: Where results go, a folder for each case.
        model: Run, or study of folds: its folder or name. [default: the newest of its kind below --runs]
        runs: Where to look for the newest run.
        draws: Samples averaged into the result: one is sharp, many are accurate.
        steps: Denoising steps. [default: the recipe's]
        condition_noise: Time the scan is noised to first; higher tolerates worse scans. [default: the recipe's]
        seed: Random seed.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: Number format of the networks. [default: the recipe's]
        network_batch: Samples per network pass. [default: the recipe's]
        cluster: ray: share cases among processes, across machines with RAY_ADDRESS.
        workers: Processes of --cluster. [default: one a GPU, else one a CPU]
    """

def audit(
    data: str | Path,
    out: str | Path,
    device: str = ...,
    data_root: str | Path | None = ...,
    *,
    model: str | Path | None = ...,
    runs: str | Path = ...,
    number: int = ...,
    guidance: str | Sequence[float] = ...,
    split: str = ...,
    real: int = ...,
    trained: int | None = ...,
    steps: int | None = ...,
    seed: int = ...,
    keep_scans: bool = ...,
    precision: str | None = ...,
    network_batch: int | None = ...,
) -> dict[str, Any]:
    """Sweep every covariate of a trained run, measure it in what is drawn, and compare with held-out scans of the table.

    With `keep_scans` the scans of the sweeps and the held-out ones, as they were measured, lie in OUT/scans: segment them
    with another program, and give its masks to `audit_volumes`. Returns what audit.json says.
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.

    Args:
        data: Table of cases (CSV).
        out: Folder for audit.json, audit.csv and audit.png, and with `keep_scans` for scans.
        model: Run, or study of folds: its folder or name. [default: the newest of its kind below --runs]
        runs: Where to look for the newest run.
        number: Scans drawn for each covariate.
        guidance: Scales of guidance to try. [default: the recipe's]
        split: Split of real scans to compare with.
        real: At most this many held-out scans.
        trained: Look for copies among at most this many scans trained on. [default: all]
        steps: Denoising steps. [default: the recipe's]
        seed: Random seed.
        keep_scans: Also write OUT/scans, for another program to segment: see `audit-volumes`.
        precision: Number format of the networks. [default: the recipe's]
        network_batch: Samples per network pass. [default: the recipe's]
        device: auto, cpu, cuda, cuda:N or mps.
        data_root: Folder that paths in the table are relative to [the table's].
    """

def prepare(
    folder: str | Path,
    *,
    source: str,
    out: str | Path,
    channels: str | Sequence[str] = ...,
    seg: str | None = ...,
    prefer: str | Sequence[str] = ...,
    covariates: str | Path | None = ...,
    skip_incomplete: bool = ...,
    seed: int = ...,
    overwrite: bool = ...,
    register: str | None = ...,
) -> str | Path:
    """Write the manifest of the dataset in `folder` to `out`, and return its path.

    One patient in five is for testing and one in ten for validation, at least one each; a source that brings its own
    splits keeps them, and fewer than four patients get none. With `register` the images of every case are registered to
    that channel first, into a folder beside `out` (see `tasks.register`).
    Raises: UsageError, ManifestError where `out` exists, ImageError where a case is incomplete.

    Args:
        folder: Folder of the dataset.
        source: What the folder is: brats, bids, nnunet, dicom and others.
        out: Table to write.
        channels: Channels that every case must have: t1,flair. [default: the dataset's]
        seg: Word that mask file names end in. [default: the dataset's]
        prefer: Which image to take where a channel has several: run-1.
        covariates: Table of UK Biobank fields, with a column eid.
        skip_incomplete: Leave out cases that lack a channel.
        seed: Random seed of the splits.
        overwrite: Redo existing results.
        register: Channel that the others of a case are registered to first.
    """

def tune(
    data: str | Path,
    device: str = ...,
    network_batch: int | None = ...,
    data_root: str | Path | None = ...,
    *,
    model: str | Path | None = ...,
    runs: str | Path = ...,
    split: str = ...,
    steps: str | Sequence[int] = ...,
    members: str | Sequence[int] = ...,
    loss: float = ...,
    loss_ged2: float = ...,
    loss_ece: float = ...,
    resample_to: str | None = ...,
    seed: int = ...,
) -> Tuned:
    """Measure a segmentation model with every number of `steps` and `members` on cases with a reference, and store the
    cheapest setting that is about as good as the best, in tuned.json beside the model; `segment` draws it from then on.

    Where no setting is within all that may be lost, none is stored as chosen, and `segment` goes on with the recipe's.
    Of a study whose volumes have intervals only settings are chosen that keep these.
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.

    Args:
        data: Table of cases (CSV).
        model: Run, or study of folds: its folder or name. [default: the newest of its kind below --runs]
        runs: Where to look for the newest run.
        split: Split whose cases with a reference are used.
        steps: Denoising steps to try. [default: 1,2,3,5,10 and the recipe's]
        members: Members to try. [default: 3,5,10 and the recipe's]
        loss: Largest acceptable loss of Dice against the best setting.
        loss_ged2: Largest acceptable increase of GED².
        loss_ece: Largest acceptable increase of the calibration error in doubt.
        resample_to: Bring the other channels onto this one's grid. [default: as trained]
        seed: Random seed.
        device: auto, cpu, cuda, cuda:N or mps.
        network_batch: Samples in one pass of the networks [the recipe's].
        data_root: Folder that paths in the table are relative to [the table's].
    """
