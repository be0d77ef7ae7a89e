"""Masks that any program wrote: a folder with one label map a case, read as results of regions that somebody names."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from medseg_diff.data.formats.stored import values_in
from medseg_diff.data.reading import read_labels
from medseg_diff.data.results import FACTS, TASKS, CaseResult, OwnResults, read_result, task_of_results
from medseg_diff.data.tables.case import Case
from medseg_diff.data.tables.channel_names import DATASET, dataset_near
from medseg_diff.data.tables.inputs import case_name, stem_of
from medseg_diff.data.tables.sources.collect import in_short, is_inside
from medseg_diff.data.tables.sources.dataset_json import regions_named
from medseg_diff.errors import ImageError, UsageError, raise_all

MASK = "mask"
ENDINGS = ("seg", "pred", "mask", "prediction", "segmentation", "trans")  # behind the case's name, as MONAI's `trans`
MOST_REGIONS = 30  # as of a recipe
# Words for the regions of BraTS, without blanks and strokes and in American spelling.
SYNONYMS = {"wholetumor": ("wt",), "tumorcore": ("tc",), "enhancing": ("et", "enhancingtumor", "enhancement")}

Labels = Mapping[str, tuple[int, ...]]


class Named(NamedTuple):
    """Regions with their labels, and who says so."""

    regions: Labels
    source: str


class Regions(NamedTuple):
    """What is measured: the labels of each region in the references and in the masks, and where both are from."""

    reference: Labels
    mask: Labels
    said: str

    @property
    def sentence(self) -> str:
        """`regions of dataset.json: edema (label 2), core (labels 1, 3; in the references 1, 4)`."""
        return f"{self.said}: {', '.join(f'{region} ({self._labels(region)})' for region in self.reference)}"

    def _labels(self, region: str) -> str:
        mask, reference = self.mask[region], self.reference[region]
        words = f"label{'s' if len(mask) > 1 else ''} {_listed(mask)}"
        return words if set(mask) == set(reference) else f"{words}; in the references {_listed(reference)}"


@dataclass(frozen=True)
class LabelMaps:
    """The label maps of a folder by the names of their cases, `regions` once it is known which are measured."""

    folder: Path
    files: Mapping[str, tuple[Path, ...]]
    regions: Regions = field(default=Regions({}, {}, ""))
    task: str = "segment"

    def begun(self, name: str) -> bool:
        """Whether anything is there of a case."""
        return name in self.files

    def holds(self, name: str) -> bool:
        """Whether a case has its mask."""
        return name in self.files

    def unmatched(self, names: Iterable[str]) -> str:
        """Label maps of no case of a table, in short; empty where there is none."""
        return in_short(sorted(set(self.files) - set(names)))

    def read(self, name: str) -> CaseResult:
        """The result of a case. Raises: ImageError where its mask is damaged."""
        mask = read_labels(self.files[name][0], case=name, channel=MASK)
        in_mask = self.regions.mask
        return CaseResult(name, self.folder / name, {}, self.task, self.regions.reference, mask, in_mask)

    def measured_by(self, cases: Sequence[Case], wanted: Named | None) -> "LabelMaps":
        """The same with the regions that are measured: those `wanted`, else those of its dataset.json, else each label that
        the references of `cases` hold.

        Where regions are wanted and dataset.json names all of them, the masks' labels are those that it names: a program may
        number labels in another way than the references do. Raises: UsageError where that is not clear; ImageError, or
        Problems of all cases, where the mask of one is not one file inside the folder.
        """
        raise_all([problem for case in cases for problem in self.problems_of(case.name)])
        dataset = dataset_near(self.folder / MASK)
        named = Named(regions_named(dataset), f"{DATASET} of {dataset.parent.name}") if dataset else None
        if wanted:
            regions = _wanted(wanted, named if named and named.regions else None)
        elif named and named.regions:
            regions = Regions(named.regions, named.regions, f"regions of {named.source}")
        else:
            own = {f"label_{label}": (label,) for label in _labels_of(cases)}
            regions = Regions(own, own, "each label of the references separately")
        if not 1 <= len(regions.reference) <= MOST_REGIONS:
            found = f"there are {len(regions.reference)} regions to measure; 1 to {MOST_REGIONS} are supported"
            raise UsageError(found, fix="group labels into regions in a recipe, and pass it with --config")
        return replace(self, regions=regions)

    def problems_of(self, name: str) -> Iterator[ImageError]:
        """Why a case has no mask, as far as that shows without reading it. Only remedies name files."""
        if not self.holds(name):
            fix = f"add {name}.nii.gz to {self.folder.absolute().name}, or leave the case out"
            yield ImageError("has no mask among those given", fix=fix, case=name)
            return
        first, *others = self.files[name]
        if others:
            fix = f"keep one of {first.name} and {others[0].name}, or call it {MASK}.nii.gz"
            yield ImageError("two files could be its mask", fix=fix, case=name)
        elif not is_inside(first, self.folder):
            yield ImageError(
                "points outside its folder", fix="replace the link with the file itself", case=name, file=first.name
            )


AnyResults = OwnResults | LabelMaps


def results_in(folder: Path) -> AnyResults:
    """A folder of results: those of a verb of ours where any case has its case.json, else whatever label maps there are.

    Raises: UsageError where a verb made them whose results are no masks or maps.
    """
    task = task_of_results(folder)
    if task is not None and task not in TASKS:
        found = f"holds results of `{task}`, which have no masks or maps to measure"
        raise UsageError(found, fix=f"name a folder of {' or '.join(f'`{name}`' for name in TASKS)}", file=folder.name)
    return label_maps_in(folder) if task is None else OwnResults(folder, task)


def label_maps_in(folder: Path) -> LabelMaps:
    """The label maps of a folder: `CASE.nii.gz`, `CASE_seg.nii.gz`, `CASE/mask.nii.gz` or whatever image is alone in `CASE`.

    A name is taken as a table has it: what may not stand in a case's name is `_`.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir() and (inside := _masks_in(path)):
            files.setdefault(case_name(path.name), []).extend(inside)
        elif path.is_file() and (stem := stem_of(path)):
            files.setdefault(case_name(_without_ending(stem)), []).append(path)
    return LabelMaps(folder, {name: tuple(paths) for name, paths in files.items()})


def named_regions(folder: Path) -> Named | None:
    """The regions that results say they have: of ours those of the first case.json, else those of a dataset.json."""
    for path in sorted(folder.glob(f"*/{FACTS}")):
        result = read_result(path.parent, path.parent.name)
        own = {region: labels for region, labels in result.regions.items() if labels}
        return Named(own, folder.name) if own else None
    dataset = dataset_near(folder / MASK)
    regions = regions_named(dataset) if dataset else {}
    return Named(regions, f"{DATASET} of {dataset.parent.name}") if dataset and regions else None


def _wanted(wanted: Named, named: Named | None) -> Regions:
    """Regions from elsewhere; their labels in the masks by their names, where a dataset.json has them."""
    called = {_spelled(region): labels for region, labels in named.regions.items()} if named else {}
    there = [region for region in wanted.regions if _spelled(region) in called]
    if named is None or not there:
        return Regions(wanted.regions, wanted.regions, f"regions of {wanted.source}")
    if len(there) < len(wanted.regions):
        absent = [region for region in wanted.regions if region not in there]
        found = f"{named.source} names the labels of {', '.join(there)}, but not of {', '.join(absent)}"
        raise UsageError(found, fix=f"name all regions of {wanted.source} in it, or move it elsewhere")
    mask = {region: called[_spelled(region)] for region in wanted.regions}
    return Regions(wanted.regions, mask, f"regions of {wanted.source}, their labels in the masks by {named.source}")


def _spelled(region: str) -> str:
    """A name of a region without blanks and strokes, in one spelling, and of several words for it the one."""
    bare = re.sub("[ _-]", "", region.lower()).replace("tumour", "tumor").replace("oedema", "edema")
    return next((name for name, words in SYNONYMS.items() if bare in words), bare)


def _masks_in(folder: Path) -> list[Path]:
    """The mask of a case's folder: the file called so, else every image."""
    images = sorted(path for path in folder.iterdir() if path.is_file() and stem_of(path))
    return [path for path in images if stem_of(path) == MASK] or images


def _without_ending(stem: str) -> str:
    case, _, ending = stem.rpartition("_")
    return case if case and ending.lower() in ENDINGS else stem


def _labels_of(cases: Sequence[Case]) -> list[int]:
    """Every label above 0 that a reference of the cases holds. Raises: ImageError."""
    return sorted({label for case in cases for label in _held(case)})


def _held(case: Case) -> Iterator[int]:
    for name, path in case.references.items():
        yield from (int(label) for label in values_in(read_labels(path, case=case.name, channel=name).voxels) if label)


def _listed(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels))
