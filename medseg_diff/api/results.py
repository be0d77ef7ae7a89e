"""What `segment` and `anomaly` return in Python: the arrays of a case on its own grid, in memory or in its folder."""

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from medseg_diff.data.results import FACTS
from medseg_diff.errors import ImageError, UsageError, plain
from medseg_diff.files import check_writable, read_facts, write_bytes
from medseg_diff.tasks.apply.case_folder import made_anew
from medseg_diff.tasks.apply.summary import summarised

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image
    from pandas import DataFrame

Array = npt.NDArray[Any]
NIFTI = ".nii.gz"


class _Folder(Mapping[str, bytes]):
    """Files of a folder by their names in it, read when they are asked for."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names

    def __getitem__(self, name: str) -> bytes:
        if name not in self.names:
            raise KeyError(name)
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})", fix="make the results again", file=name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Result:
    """What both results have. `facts` is case.json; `files` the bytes of every file that the command line would write, by
    its name in the case's folder; `folder` is that folder, None where nothing was written."""

    TASK: ClassVar[str]
    MAIN: ClassVar[str]  # the file that every case has

    def __init__(self, facts: dict[str, Any], files: Mapping[str, bytes], folder: Path | None = None) -> None:
        self.facts, self.files, self.folder = facts, files, folder
        self._images: dict[str, Nifti1Image] = {}
        self._arrays: dict[str, Array] = {}

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The results in a case's folder, OUT/CASE; arrays are read when they are asked for.

        Raises: UsageError where the folder holds no results of this kind.
        """
        folder = Path(folder).absolute()
        facts = read_facts(folder / FACTS)
        if facts.get("task") != cls.TASK or not isinstance(facts.get("outputs"), dict):
            fix = f"give the folder of a case that `{cls.TASK}` has completed"
            raise UsageError(f"holds no results of `{cls.TASK}`", fix=fix, file=folder.name)
        inside = [name for name in facts["outputs"] if (folder / name).resolve().is_relative_to(folder.resolve())]
        return cls(facts, _Folder(folder, (*inside, FACTS)), folder)

    def in_memory(self) -> Self:
        """The same without its folder, which may then go."""
        return type(self)(self.facts, dict(self.files))

    @property
    def name(self) -> str:
        """What the case is called."""
        return str(self.facts["case"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about the scan or the result."""
        return tuple(self.facts["warnings"])

    @property
    def affine(self) -> Array:
        """Voxels → RAS millimetres [4, 4], of the grid that every array lies on."""
        return np.asarray(self.image(self.MAIN).affine)

    def image(self, kind: str) -> "Nifti1Image":
        """A file of the case as an image of nibabel, by its name without `.nii.gz`: `mask`, `probability`, `members/00` …

        Raises: UsageError where there is none of that name; ImageError where it is not as it was written.
        """
        if kind not in self._images:
            from nibabel.nifti1 import Nifti1Image

            self._images[kind] = Nifti1Image.from_bytes(gzip.decompress(self._bytes(f"{kind}{NIFTI}")))
        return self._images[kind]

    def array(self, kind: str) -> Array:
        """The voxels [X, Y, Z] of that image. Raises: as `image`."""
        if kind not in self._arrays:
            self._arrays[kind] = np.asanyarray(self.image(kind).dataobj).copy()
        return self._arrays[kind]

    def save(self, folder: str | Path) -> Path:
        """Write to `folder`/CASE what `out=` would have written there, and renew the table of the cases in `folder`.

        Returns that folder of the case. Raises: UsageError where other results are there; EnvironmentFault.
        """
        out = Path(folder)
        place = out / self.name
        if place.exists() and read_facts(place / FACTS) != self.facts:
            raise UsageError("is there already, with other results", fix="save to another folder", file=place.name)
        check_writable(out)
        with summarised(out), made_anew(place) as new:
            for name, content in self.files.items():
                write_bytes(new / name, content)
        return place

    def _bytes(self, name: str) -> bytes:
        """A file as it was written. Raises: UsageError where there is none, ImageError where it has changed."""
        if name not in self.files:
            there = ", ".join(sorted(each.removesuffix(NIFTI) for each in self.files if each.endswith(NIFTI)))
            asked = name.removesuffix(NIFTI)
            raise UsageError(f"this case has no `{asked}`", fix=f"ask for one of {there}", case=self.name)
        content = self.files[name]
        if hashlib.sha256(content).hexdigest() != self.facts["outputs"][name]:
            raise ImageError(
                "has changed since it was written", fix="make the results again", case=self.name, file=name
            )
        return content

    def _lines(self) -> list[str]:
        raise AssertionError("each kind of result says itself what is in it")

    def __repr__(self) -> str:
        lines = [*self._lines(), *(f"warning: {plain(warning)}" for warning in self.warnings)]
        return "\n  ".join([f"{type(self).__name__} of {self.name}", *lines])


class SegmentationResult(Result):
    """A segmented case. Arrays lie on the grid of the case's first channel, [X, Y, Z]; maps are a dict of region → array
    where the model has several regions. `facts` is case.json."""

    TASK, MAIN = "segment", "mask"

    @property
    def regions(self) -> tuple[str, ...]:
        """What the model segments."""
        return tuple(self.facts["regions"])

    @property
    def labels(self) -> dict[int, str]:
        """The numbers in `mask`, and what they are called."""
        return {int(each["label"]): str(each["name"]) for each in self.facts["mask_labels"]}

    @property
    def mask(self) -> Array:
        """Labels of the dataset, 0 outside."""
        return self.array("mask")

    def mask_of(self, region: str) -> npt.NDArray[np.bool_]:
        """Where the mask lies in a region. Raises: UsageError where there is no such region."""
        if region not in self.regions:
            raise UsageError(f"there is no region `{region}`", fix=f"ask for one of {', '.join(self.regions)}")
        inside = [each["label"] for each in self.facts["mask_labels"] if region in each["regions"]]
        return np.isin(self.mask, inside)

    @property
    def probability(self) -> Array | dict[str, Array]:
        """Mean over the ensemble, in [0, 1]."""
        return self._of_regions("probability")

    @property
    def variance_between(self) -> Array | dict[str, Array]:
        """How far the members differ: their variance."""
        return self._of_regions("variance_between")

    @property
    def variance_within(self) -> Array | dict[str, Array]:
        """How undecided each member is in itself: the mean of p(1 − p)."""
        return self._of_regions("variance_within")

    @property
    def uncertainty(self) -> Array | dict[str, Array]:
        """The sum of both variances, m(1 − m) of the mean m."""
        return self._of_regions("uncertainty")

    @property
    def volume_ml(self) -> dict[str, float]:
        """Of each region's mask."""
        return {region: float(volume["mask"]) for region, volume in self.facts["volume_ml"].items()}

    @property
    def interval_ml(self) -> dict[str, tuple[float, float] | None]:
        """What each region's true volume lies between, at the level in `facts`; None where the model cannot say."""
        volumes = self.facts["volume_ml"].items()
        return {region: None if each["low"] is None else (each["low"], each["high"]) for region, each in volumes}

    def _of_regions(self, kind: str) -> Array | dict[str, Array]:
        if len(self.regions) == 1:
            return self.array(kind)
        return {region: self.array(f"{kind}_{region}") for region in self.regions}

    def _lines(self) -> list[str]:
        from medseg_diff.tasks.apply.promises import volume_in_words  # brings torch

        facts, presence = self.facts, self.facts["lesion_presence"]
        return [
            f"{region}: {volume_in_words(volume, presence[region], applies=facts['promises_apply'])}"
            for region, volume in facts["volume_ml"].items()
        ]


class AnomalyResult(Result):
    """The anomaly map of a case. Arrays lie on the grid of the case's first channel, [X, Y, Z]. `facts` is case.json."""

    TASK, MAIN = "anomaly", "anomaly"

    @property
    def score(self) -> Array:
        """The anomaly map, 0 outside the brain."""
        return self.array("anomaly")

    @property
    def mask(self) -> Array:
        """1 where the map lies above the threshold, 0 elsewhere."""
        return self.array("anomaly_mask")

    @property
    def healthy(self) -> dict[str, Array]:
        """The pseudo-healthy reconstruction of each channel; empty where the engine makes none."""
        kinds = {f"healthy_{channel}": channel for channel in self.facts["channels"]}
        return {channel: self.array(kind) for kind, channel in kinds.items() if f"{kind}{NIFTI}" in self.files}

    @property
    def lesions(self) -> "DataFrame":
        """A row for each component of the mask: volume in ml, centre in RAS mm, mean and peak score."""
        import io

        import pandas

        return pandas.read_csv(io.BytesIO(self._bytes("lesions.csv")))

    @property
    def volume_ml(self) -> float:
        """Of the mask."""
        return float(self.facts["volume_ml"])

    @property
    def threshold(self) -> float | None:
        """Where the map was cut; None where nothing lies above any."""
        value = self.facts["threshold"]["value"]
        return None if value is None else float(value)

    def _lines(self) -> list[str]:
        lesions = self.facts["lesions"]
        above = "" if self.threshold is None else f" above {self.threshold:.3g}"
        return [f"{lesions} lesion{'' if lesions == 1 else 's'}, {self.volume_ml:.1f} ml{above}"]
