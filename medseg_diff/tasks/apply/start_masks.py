"""The masks of another program that `segment` starts from: which file is a case's, and which labels in it are a region.

Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022, arXiv 2108.01073.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from medseg_diff.data.datasets.slices import region_masks
from medseg_diff.data.digests import digest_of_image
from medseg_diff.data.formats.stored import values_in
from medseg_diff.data.label_maps import LabelMaps, Named, label_maps_in
from medseg_diff.data.reading import CaseImages, with_labels
from medseg_diff.data.tables.case import Case
from medseg_diff.data.transforms import Prepared
from medseg_diff.errors import ImageError, MedsegError, UsageError, raise_all
from medseg_diff.recipes.segmentation import SegmentationRecipe

CHANNEL = "start"  # what such a mask is called in errors and warnings


@dataclass(frozen=True)
class StartMasks:
    """Label maps of a folder, read as the regions of a recipe; `other_labels` may lie in them and belong to no region."""

    maps: LabelMaps
    other_labels: tuple[int, ...]

    @classmethod
    def of(cls, folder: Path, recipe: SegmentationRecipe, *, name: str) -> "StartMasks":
        """Those of a folder, for the recipe called `name`. Labels are those that a dataset.json near them gives the recipe's
        regions, else the recipe's own.

        Raises: UsageError where there are none, or it is not clear which labels belong to a region.
        """
        found = label_maps_in(folder)
        if not found.files:
            fix = "name a folder with a mask for each case, CASE.nii.gz or CASE/mask.nii.gz"
            raise UsageError(f"--start-from {folder.absolute().name} is not a folder of masks", fix=fix)
        maps = found.measured_by([], Named(recipe.regions, f"recipe {name}"))
        same = maps.regions.mask == maps.regions.reference
        return cls(maps, recipe.other_labels if same else ())

    @property
    def folder(self) -> str:
        """The name of the folder, without where it lies."""
        return self.maps.folder.absolute().name

    @property
    def in_words(self) -> str:
        """`masks of nnunet, regions of recipe quick-phantom: whole_tumour (labels 1, 2, 4)`."""
        return f"masks of {self.folder}, {self.maps.regions.sentence}"

    def refuse(self, cases: Sequence[Case]) -> None:
        """Raises: ImageError, or Problems of all cases, where one has no mask, or not one file inside the folder."""
        raise_all([problem for case in cases for problem in self.maps.problems_of(case.name)])

    def facts_of(self, case: Case) -> dict[str, Any]:
        """What case.json says of the mask of a case: the digest of its file, None where that cannot be read, and its labels
        of each region."""
        digest = None
        with suppress(MedsegError, OSError, LookupError):
            digest = digest_of_image(self.maps.files[case.name][0])
        labels = {region: list(labels) for region, labels in self.maps.regions.mask.items()}
        return {"start_sha256": digest, "start_labels": labels}

    def beside(self, images: CaseImages, *, resample: bool) -> CaseImages:
        """The case with its mask as the reference, on its grid. Raises: ImageError where it lies on another one, or holds
        labels that belong to no region: they would be background unsaid."""
        images = with_labels(images, self.maps.files[images.name][0], channel=CHANNEL, resample=resample)
        known = {0, *self.other_labels, *(label for labels in self.maps.regions.mask.values() for label in labels)}
        assert images.reference is not None
        if unknown := sorted({int(label) for label in values_in(images.reference)} - known):
            raise ImageError(
                f"holds the label {', '.join(map(str, unknown[:8]))}, which is in no region: {self.maps.regions.sentence}",
                fix="name its regions in a dataset.json beside the masks, or remove the label",
                case=images.name,
                channel=CHANNEL,
            )
        return images

    def regions_in(self, prepared: Prepared) -> Tensor:
        """The regions of the mask of a case that was prepared with it, [R, X, Y, Z] booleans."""
        assert prepared.reference is not None, "`beside` puts it there"
        return region_masks(prepared.reference, self.maps.regions.mask)
