"""Datasets as manifests: name → the module that makes rows of the dataset's folder, and what can be asked of it."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads the names below; nothing else is imported for that
    from medseg_diff.data.tables.sources.collect import Row, Wanted

CHANNELS = ("channels", "skip_incomplete")


@dataclass(frozen=True)
class Source:
    """How one kind of dataset is read: `module.rows(folder, wanted)`, imported on use; which fields of Wanted it `takes`;
    whether it `unpacks` images into a folder of its own."""

    module: str
    takes: tuple[str, ...] = CHANNELS
    unpacks: bool = False

    def rows(self, folder: Path, wanted: "Wanted") -> "list[Row]":
        """One row a case. Raises: what the module does."""
        rows: list[Row] = import_module(f"{__name__}.{self.module}").rows(folder, wanted)
        return rows


SOURCES = {
    "brats": Source("brats", takes=(*CHANNELS, "prefer")),
    "nnunet": Source("nnunet"),
    "msd": Source("msd"),
    "bids": Source("bids", takes=(*CHANNELS, "prefer", "seg")),
    "ukb": Source("ukb", takes=(*CHANNELS, "prefer", "seg", "covariates"), unpacks=True),
    "dicom": Source("dicom", takes=(*CHANNELS, "prefer"), unpacks=True),
    "folders": Source("folders", takes=(*CHANNELS, "prefer", "seg")),
    "phantom": Source("phantom", takes=()),
}
