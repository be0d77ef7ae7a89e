"""What `segment` or `anomaly` wrote for one case, read back: case.json, masks and maps, all checked to lie on one grid."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data.brain import find_brain_or_head, onto_grid
from medseg_diff.data.geometry import Volume, axes_of, difference, reoriented, same_grid
from medseg_diff.data.reading import read_case, read_labels, read_map, read_volume
from medseg_diff.data.tables.case import TWIN, Case
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.files import read_facts

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

FACTS, SCHEMA = "case.json", 3
PAGE = "report.html"  # of a case, and of a folder of cases: `report` writes them afterwards
MEMBER_MASKS = "member_masks"  # of members whose masks are cut out of the mean of all, beside the soft ones
TASKS = {"segment": "mask.nii.gz", "anomaly": "anomaly.nii.gz"}  # and what a complete case must hold
DRAWN = ("synthesise", "enhance")  # tasks whose results are scans


@dataclass(frozen=True)
class CaseResult:
    """The folder of one case. `facts` is its case.json, `task` the verb that made it; all lies on the grid of `main`, the
    mask or the anomaly map.

    `regions` maps each region to the labels of the reference that belong to it; those of an anomaly map are the one region
    `anomaly`, and None stands for all labels above 0. Of a segmentation `in_mask` are the labels of each region in its mask.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    task: str
    regions: Mapping[str, tuple[int, ...] | None]
    main: Volume
    in_mask: Mapping[str, tuple[int, ...]]

    def mask(self, region: str) -> Mask:
        """Where the final mask lies in a region, [X, Y, Z]. Raises: ImageError where its own file is damaged."""
        if self.task == "segment":
            return np.isin(self.main.voxels, self.in_mask[region])
        path = self.folder / "anomaly_mask.nii.gz"
        mask = read_labels(path, case=self.name, channel="mask")
        self._check_grid(mask, channel="mask", file=path.name)
        return np.asarray(mask.voxels > 0)

    def map(self, kind: str, region: str = "") -> Floats | None:
        """A map [X, Y, Z], or None where it was not written.

        `kind` is probability, calibrated, variance_between, variance_within or uncertainty, of a region, or healthy_CHANNEL.
        Raises: ImageError where the file is damaged or not on the grid.
        """
        path = self.folder / f"{kind}{self._suffix(region)}.nii.gz"
        return self._read_map(path, kind) if path.is_file() else None

    def members(self, region: str) -> Iterator[Floats]:
        """Each member's mask, or its probability where that decides alone, [X, Y, Z] in the order of their numbers; none
        without --save-members.

        One at a time, because all of them as floats would be gigabytes. Raises: ImageError.
        """
        name = re.compile(rf"(\d+){re.escape(self._suffix(region))}\.nii\.gz")
        folder = MEMBER_MASKS if (self.folder / MEMBER_MASKS).is_dir() else "members"
        found = [(name.fullmatch(path.name), path) for path in self.folder.glob(f"{folder}/*.nii.gz")]
        numbered = sorted((int(match[1]), path) for match, path in found if match)
        yield from (self._read_map(path, "members") for _, path in numbered)

    def baselines(self) -> Iterator[tuple[str, Floats]]:
        """(name, map [X, Y, Z]) of what stands beside an anomaly map, by name, one at a time. Raises: ImageError."""
        for path in sorted(self.folder.glob("baselines/*.nii.gz")):
            yield path.name.removesuffix(".nii.gz"), self._read_map(path, "baselines")

    def references(self, case: Case) -> dict[str, npt.NDArray[np.int16]]:
        """The labels [X, Y, Z] of seg, seg_1 … as far as the manifest names them, on the grid. Raises: ImageError."""
        return {
            name: self._on_grid(read_labels(path, case=case.name, channel=name), name, path.name).voxels
            for name, path in case.references.items()
        }

    def marked(self, labels: npt.NDArray[np.int16], region: str) -> Mask:
        """Where a reference's labels belong to a region."""
        counted = self.regions[region]
        return np.asarray(labels > 0 if counted is None else np.isin(labels, counted))

    def image(self, case: Case, channel: str) -> Floats:
        """One channel of the case [X, Y, Z] on the grid. Raises: ImageError; ManifestError without that channel."""
        read = read_case(case, [channel], reference=False)
        volume = Volume(read.image[0], read.affine)
        return self._on_grid(volume, channel, case.file_of(channel).name).voxels

    def twin(self, case: Case, channel: str) -> Floats:
        """One channel of the case's lesion-free twin [X, Y, Z] on the grid. Raises: ImageError."""
        path, name = case.twins[channel], TWIN + channel
        return self._on_grid(read_volume(path, case=case.name, channel=name), name, path.name).voxels

    def brain(self, case: Case, channels: Sequence[str]) -> Mask:
        """Where the brain is in some channels of the case [X, Y, Z], on the grid; the head where it was not stripped."""
        return np.asarray(find_brain_or_head(np.stack([self.image(case, channel) for channel in channels])))

    def brain_seen(self, case: Case) -> Mask:
        """The same of the first channel that the result was made from, where it says so, else of the case's first."""
        read = [channel for channel in self.facts.get("channels", ()) if channel in case.channels]
        return self.brain(case, (read or case.channels)[:1])

    def _on_grid(self, volume: Volume, channel: str, file: str) -> Volume:
        """Axes may be turned; interpolated is only what was when the result was made. Raises: ImageError."""
        turned = volume if same_grid(volume, self.main) else reoriented(volume, axes_of(self.main.affine))
        if same_grid(turned, self.main):
            return turned
        if self.facts.get("resample_to") not in (None, channel):
            return onto_grid(volume, self.main)
        raise ImageError(
            f"not on the grid of the result: {difference(turned, self.main)}",
            fix=f"run `medseg-diff {self.task}` on the grid of its reference, or resample the reference"
            if self.facts
            else "resample the mask onto the grid of the scan, with nearest-neighbour interpolation",
            case=self.name,
            channel=channel,
            file=file,
        )

    def _suffix(self, region: str) -> str:
        return f"_{region}" if region and len(self.regions) > 1 else ""

    def _read_map(self, path: Path, kind: str) -> Floats:
        found = _read_map(path, self.name, self._remedy)
        self._check_grid(found, channel=kind, file=path.name)
        if self.task == "segment" and not (found.voxels.min() >= 0 and found.voxels.max() <= 1):
            place = {"case": self.name, "channel": kind, "file": path.name}
            raise ImageError("holds values outside 0 to 1", fix=self._remedy, **place)
        return found.voxels

    def _check_grid(self, volume: Volume, *, channel: str, file: str) -> None:
        if not same_grid(volume, self.main):
            found = "not on the grid of the other files of the case"
            raise ImageError(found, fix=self._remedy, case=self.name, channel=channel, file=file)

    @property
    def _remedy(self) -> str:
        return _again(self.task) if self.facts else "make it again, or remove it from the folder"


@dataclass(frozen=True)
class OwnResults:
    """What a verb of ours wrote, a folder with a case.json for each case."""

    folder: Path
    task: str

    def begun(self, name: str) -> bool:
        """Whether the folder of a case is there."""
        return (self.folder / name).is_dir()

    def holds(self, name: str) -> bool:
        """Whether a case is complete."""
        return holds_result(self.folder / name, self.task)

    def read(self, name: str) -> CaseResult:
        """As `read_result`."""
        return read_result(self.folder / name, name)


def facts_of_result(folder: Path, name: str) -> dict[str, Any]:
    """case.json of a mask or a map. Raises: UsageError where it is missing, unreadable or of another program."""
    facts = read_facts(folder / FACTS)
    task, place = _task_of(facts), {"case": name, "file": FACTS}
    if not (folder / FACTS).is_file():
        raise UsageError("has no case.json", fix="run `medseg-diff segment` or `anomaly` on the case", case=name)
    if task not in TASKS or not isinstance(schema := facts.get("schema", 1), int) or schema > SCHEMA:
        found = f"is a result of `{task}` in schema {facts.get('schema')}, unknown to this version"
        raise UsageError(found, fix="use the version of medseg-diff that wrote it", **place)
    return facts


def read_result(folder: Path, name: str) -> CaseResult:
    """Read case.json and the mask or map of one case; further maps and members are read when asked for.

    Raises: as `facts_of_result`; ImageError for the mask or map.
    """
    facts = facts_of_result(folder, name)
    task, place = _task_of(facts), {"case": name, "file": FACTS}
    if task == "anomaly":
        labels = facts.get("diseased")
        regions = {"anomaly": None if labels is None else tuple(labels)}
        return CaseResult(
            name, folder, facts, task, regions, _read_map(folder / "anomaly.nii.gz", name, _again(task)), {}
        )
    try:
        stated = {str(region): tuple(int(label) for label in labels) for region, labels in facts["regions"].items()}
        masks = [(int(each["label"]), set(each["regions"])) for each in facts["mask_labels"]]
        in_mask = {region: tuple(label for label, inside in masks if region in inside) for region in stated}
    except (ValueError, TypeError, KeyError, AttributeError):
        stated, in_mask = {}, {}
    if not stated:
        raise UsageError("does not name its regions and the labels of its mask", fix=_again(task), **place)
    mask = read_labels(folder / "mask.nii.gz", case=name, channel="mask")
    return CaseResult(name, folder, facts, task, stated, mask, in_mask)


def checks_by_run(facts: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The quality checks of an anomaly map by the runs that made it: of a study by their names, of one run under ``."""
    checks = facts.get("quality_checks") or {}
    return checks if facts.get("models") else {"": checks}


def task_of_results(predictions: Path) -> str | None:
    """The verb that wrote a folder of results, by the first case.json in it; None where there is none."""
    return next((_task_of(read_facts(path)) for path in sorted(predictions.glob(f"*/{FACTS}"))), None)


def holds_result(folder: Path, task: str) -> bool:
    """Whether a case's folder is a result of that verb: its mask or map, or a scan, and every file that case.json lists are
    still there."""
    facts = read_facts(folder / FACTS)
    listed = facts.get("outputs", {})
    return (
        (folder / FACTS).is_file()
        and _task_of(facts) == task
        and (task in DRAWN or (task in TASKS and (folder / TASKS[task]).is_file()))
        and all((folder / name).is_file() for name in (listed if isinstance(listed, dict) else ()))
    )


def _task_of(facts: Mapping[str, Any]) -> str:
    return str(facts.get("task", "segment"))  # before schema 2 `segment` did not say so


def _again(task: str) -> str:
    return f"run `medseg-diff {task}` on the case again with --overwrite"


def _read_map(path: Path, case: str, fix: str) -> Volume:
    """Unlike an image of a patient, a map may be constant: nothing found, with certainty."""
    try:
        return read_map(path)
    except ImageError as error:
        raise ImageError(error.found, fix=fix, case=case, file=path.name) from None
