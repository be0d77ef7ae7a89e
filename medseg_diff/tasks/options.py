"""Options that verbs share, each said once, in groups; a verb takes all groups whole, or all their fields as keywords.

Nothing heavy is imported here: the command line reads the same groups before it knows which verb is wanted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from medseg_diff.cluster import Cluster, Sharing
from medseg_diff.data.tables.case import SPLITS
from medseg_diff.errors import UsageError
from medseg_diff.tasks.keywords import option

Shard = tuple[int, int]
Threshold = Literal["healthy", "otsu"] | float
Format = Literal["nifti", "dicom-seg"]

ON_DEVICE = "auto, cpu, cuda, cuda:N or mps."
DEVICES, PRECISIONS = ("auto", "cpu", "cuda", "cuda:N", "mps"), ("auto", "fp32", "bf16")
NOISES, FUSIONS = ("independent", "shared"), ("mean", "vote", "staple")
STRENGTH = 0.5  # of the noise on masks to start from: see `benchmarks/start_from.py`


def share_of_all(word: str) -> Shard:
    """K/N, such as 1/2."""
    first, _, second = word.partition("/")
    return int(first), int(second)


def _threshold(word: str) -> Threshold:
    """healthy, otsu or a number."""
    return word if word in ("healthy", "otsu") else float(word)  # type: ignore[return-value]


def check_sharing(cluster: str, workers: int | None) -> None:
    """Raises: UsageError for a cluster that there is none of, or workers without one."""
    if cluster not in get_args(Cluster):
        raise UsageError(f"unknown cluster `{cluster}`", fix=f"use one of {', '.join(get_args(Cluster))}")
    if workers is not None and cluster == "none":
        raise UsageError("--workers needs a cluster", fix="add --cluster ray, or leave it out")


def _named(name: str) -> Callable[[str], float]:
    """The number of a word such as fnr=0.1."""

    def parse(word: str) -> float:
        key, _, value = word.partition("=")
        if key != name:
            raise ValueError(word)
        return float(value)

    parse.__doc__ = f"{name}=NUMBER."
    return parse


def _names(word: str) -> tuple[str, ...]:
    """names with commas between, such as flair,t1."""
    return tuple(name.strip() for name in word.split(","))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which cases: one by its files (`volumes`) or the rows of a table (`data`), and how they are read."""

    panel: ClassVar[str] = "Source"
    volumes: Sequence[str] = option(
        (), "Scan to read: a folder, a file, or CHANNEL=FILE (repeat).", names=("-i", "--volume"), metavar="PATH"
    )
    data: Path | None = option(None, "Table of cases.", metavar="CSV")
    split: str | None = option(None, "Only cases of this split.", choices=SPLITS)
    shard: Shard = option(
        (1, 1), "Every N-th case, starting with the K-th.", usual="1/1", parse=share_of_all, metavar="K/N"
    )
    data_root: Path | None = option(
        None, "Folder that paths in the table are relative to.", usual="the table's", metavar="FOLDER"
    )
    channels: Sequence[str] = option(
        (), "Channels of numbered files and 4D volumes, in order: flair,t1.", parse=_names, metavar="NAME,…"
    )
    resample_to: str | None = option(None, "Bring the other channels onto this one's grid.", metavar="CHANNEL")

    def check(self) -> None:
        """Raises: UsageError unless cases are named in exactly one way, and described by options of that way."""
        if bool(self.volumes) == (self.data is not None):
            raise UsageError("one of --volume and --data is needed", fix="name a scan, or a table of cases")
        for given, name in ((self.split, "--split"), (self.data_root, "--data-root")):
            if self.volumes and given is not None:
                raise UsageError(f"{name} is for the rows of a table, --data", fix="leave it out")
        if self.channels and self.data is not None:
            raise UsageError("--channels is for --volume: the columns of a table name its channels", fix="leave it out")


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """What of a dataset comes into its table, and what decides where that is not clear."""

    panel: ClassVar[str] = "Dataset"
    channels: Sequence[str] = option(
        (), "Channels that every case must have: t1,flair.", usual="the dataset's", parse=_names, metavar="NAME,…"
    )
    seg: str | None = option(None, "Word that mask file names end in.", usual="the dataset's", metavar="WORD")
    prefer: Sequence[str] = option(
        (), "Which image to take where a channel has several: run-1.", parse=_names, metavar="WORD,…"
    )
    covariates: Path | None = option(None, "Table of UK Biobank fields, with a column eid.", metavar="CSV")
    skip_incomplete: bool = option(False, "Leave out cases that lack a channel.")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which trained run: a folder, a name below `runs`, a registered `models:/NAME/VERSION`; or a study of folds."""

    panel: ClassVar[str] = "Model"
    model: Path | None = option(
        None,
        "Run, or study of folds: its folder or name.",
        usual="the newest of its kind below --runs",
        metavar="RUN",
        complete="runs",
    )
    runs: Path = option(Path("runs"), "Where to look for the newest run.", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how precisely the networks run, and how many samples they are given at once."""

    panel: ClassVar[str] = "Compute"
    device: str = option("auto", ON_DEVICE, metavar="DEVICE", choices=DEVICES)
    precision: str | None = option(None, "Number format of the networks.", usual="the recipe's", choices=PRECISIONS)
    network_batch: int | None = option(None, "Samples per network pass.", usual="the recipe's", min=1)
    cluster: Cluster = option("none", "ray: share cases among processes, across machines with RAY_ADDRESS.")
    workers: int | None = option(None, "Processes of --cluster.", usual="one a GPU, else one a CPU", min=1)

    def check(self) -> None:
        """Raises: UsageError for words that do not go together."""
        check_sharing(self.cluster, self.workers)
        if self.cluster != "none" and self.device.startswith("cuda:"):
            raise UsageError(
                f"--device {self.device} is one GPU for all workers", fix="use --device cuda: each has its own"
            )

    @property
    def sharing(self) -> Sharing | None:
        """How cases are shared among processes; None where this one does them."""
        wanted = Sharing(self.workers, gpus=self.device in ("auto", "cuda"))
        return None if self.cluster == "none" else wanted

    @property
    def here(self) -> "Compute":
        """That of the process that was called, which only looks after the workers where there are any."""
        return self if self.cluster == "none" else replace(self, device="cpu")


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What happens to results that are there and to cases that fail, and what the results are called."""

    panel: ClassVar[str] = "Result"
    overwrite: bool = option(False, "Redo existing results.")
    keep_going: bool = option(False, "Continue past bad cases; OUT/failures.csv lists them.")
    pseudonymise: bool = option(False, "Name results by pseudonyms instead of case names.")
    pseudonym_key: Path | None = option(
        None, "File with the secret key of the pseudonyms.", usual="RUNS/pseudonym.key", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class ResultFolder(ResultOptions):
    """Where results go, a folder for each case, and what happens to those that are there and to cases that fail."""

    out: Path = option(..., "Where results go, a folder for each case.", names=("-o", "--out"), metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """How an ensemble of masks is drawn and fused; None is the recipe's own, or as `tune` has stored it beside the
    model (steps and members, where none of them and no other kind of samples is asked for)."""

    panel: ClassVar[str] = "Sampling"
    members: int | None = option(None, "Samples in the ensemble.", usual="as tuned, else the recipe's", min=1)
    steps: int | None = option(None, "Denoising steps.", usual="as tuned, else the recipe's", min=1)
    seed: int = option(0, "Random seed.")
    members_at_once: int | None = option(None, "Members drawn together; does not change results.", min=1)
    adaptive: bool | None = option(
        None, "Draw no more members than a case needs, up to --members.", usual="the recipe's"
    )
    tolerance: float | None = option(
        None, "With --adaptive: accepted 1 - Dice to a mask of endless members.", usual="the recipe's"
    )
    screen: bool | None = option(None, "Skip slices that a one-step look finds empty.", usual="the recipe's")
    noise: str | None = option(
        None, "A member's noise: independent per slice, or shared by all.", usual="the recipe's", choices=NOISES
    )
    fusion: str | None = option(None, "How members are fused into the mask.", usual="the recipe's", choices=FUSIONS)
    start_from: Path | None = option(
        None, "Masks CASE.nii.gz to noise and refine.", usual="noise alone", metavar="FOLDER"
    )
    strength: float | None = option(
        None, "How far --start-from is noised: near 0 keeps the masks, 1 forgets them.", usual=f"{STRENGTH}"
    )
    calibrated: bool = option(False, "Also write the probability at the run's temperature.", panel="Result")
    level: float = option(
        0.95, "Level of the volume interval, if the model was measured on enough patients.", panel="Result"
    )
    guarantee: float | None = option(
        None,
        "Also write a mask that misses at most this share of a lesion (fnr=0.1), on average over patients.",
        parse=_named("fnr"),
        metavar="fnr=X",
        panel="Result",
    )
    save_members: bool = option(False, "Also write members/NN.nii.gz.", panel="Result")
    format: Format = option(
        "nifti", "dicom-seg: for DICOM scans, also write mask.seg.dcm and probability.seg.dcm.", panel="Result"
    )

    def check(self) -> None:
        """Raises: UsageError for a strength or a tolerance of nothing, or one that is none."""
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(
                f"tolerance {self.tolerance:g} is out of range", fix="use one above 0 and below 1, such as 0.05"
            )
        if self.screen and self.start_from is not None:
            found = "--screen looks at the scan alone, and would skip what the masks of --start-from mark"
            raise UsageError(found, fix="leave one of them out")
        if self.strength is None:
            return
        if self.start_from is None:
            raise UsageError(
                "--strength says how far the masks of --start-from are noised",
                fix="add --start-from, or leave --strength out",
            )
        if not 0 < self.strength <= 1:
            raise UsageError(
                f"strength {self.strength:g} is out of range", fix="use one above 0 and at most 1, such as 0.5"
            )

    @property
    def noised_to(self) -> float | None:
        """The share of the schedule that given masks are noised to; None where none are given."""
        strength = STRENGTH if self.strength is None else self.strength
        return None if self.start_from is None else strength


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """How anomaly maps are made and cut. `overrides` lay `engine.…=…` and `findings.…=…` over the recipe."""

    panel: ClassVar[str] = "Map"
    overrides: Sequence[str] = option((), "engine.…=… or findings.…=… laid over the recipe.", words="KEY=VALUE")
    threshold: Threshold | None = option(
        None,
        "Where the map is cut: healthy (stored with the model), otsu, or a number.",
        usual="the recipe's",
        parse=_threshold,
        metavar="healthy|otsu|X",
    )
    guarantee: float | None = option(
        None,
        "Threshold that marks at most this much of a healthy brain (fp_ml=1).",
        parse=_named("fp_ml"),
        metavar="fp_ml=X",
    )
    level: float | None = option(
        None, "Share of healthy brains for which --guarantee holds.", usual="0.9; needs 9 measured ones"
    )
    seed: int = option(0, "Random seed, for engines that draw noise.")
    baselines: bool = option(False, "Also write baseline maps for `evaluate` to compare with.")

    @property
    def promises(self) -> bool:
        """Whether the threshold is asked for by what it promises."""
        return self.guarantee is not None or self.level is not None


@dataclass(frozen=True, kw_only=True)
class MapOrSweep(MapOptions):
    """Maps, or settings tried on a few slices."""

    sweep: bool = option(False, "Write no maps; try settings of the engine on a few slices.")
