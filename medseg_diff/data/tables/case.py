"""One visit of one patient: its name, where its images are, and what is known of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "test"]
Label = Literal["healthy", "diseased"]

CASE_NAME = re.compile(r"[\w.-]{1,64}")
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd")
CHANNEL_COLUMNS = ("t1", "t1ce", "t2", "flair")
TWIN = "healthy_"  # before a channel: the same scan without the lesion, where that is known
SPLITS = ("train", "val", "test")
LABELS = ("healthy", "diseased")


@dataclass(frozen=True)
class Case:
    """One visit of one patient: where its images are and what is known of it.

    `images` maps channel to absolute path in the order of the table; `stack` is one 4D file that holds the channels
    `stack_channels` along its last axis, instead of `images`. `seg` is the reference, `raters` further opinions.
    `twins` maps channels to the lesion-free twin of the scan: the same brain, scanner and noise without the lesion, as
    phantoms and simulated lesions have it.
    """

    name: str
    patient: str
    split: Split | None = None
    images: Mapping[str, Path] = field(default_factory=dict)
    seg: Path | None = None
    raters: tuple[Path, ...] = ()
    label: Label | None = None
    covariates: Mapping[str, float | str] = field(default_factory=dict)
    stack: Path | None = None
    stack_channels: tuple[str, ...] = ()
    twins: Mapping[str, Path] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        return self.stack_channels if self.stack else tuple(self.images)

    def file_of(self, channel: str) -> Path:
        """The file that holds a channel."""
        return self.stack or self.images[channel]

    @property
    def paths(self) -> dict[str, Path]:
        """Every file of the case under the name of its column."""
        twins = {TWIN + channel: path for channel, path in self.twins.items()}
        return ({"stack": self.stack} if self.stack else dict(self.images)) | self.references | twins

    @property
    def references(self) -> dict[str, Path]:
        """The files of `seg`, `seg_1` … as far as there are any."""
        reference = {"seg": self.seg} if self.seg else {}
        return reference | {f"seg_{number}": path for number, path in enumerate(self.raters, start=1)}
