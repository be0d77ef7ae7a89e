"""What `anomaly` wrote for one case, read back: its map, mask and rivals' maps, all checked to lie on one grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data.geometry import Volume, same_grid
from medseg_diff.data.reading import read_labels, read_map
from medseg_diff.errors import ImageError, UsageError
from medseg_diff.files import read_json

AGAIN = "run `medseg-diff anomaly` on the case again with --overwrite"


@dataclass(frozen=True)
class AnomalyCase:
    """The folder of one case: `facts` is its case.json, `score` the map [X, Y, Z] with its affine."""

    name: str
    folder: Path
    facts: dict[str, Any]
    score: Volume

    def mask(self) -> npt.NDArray[np.bool_]:
        """The final mask [X, Y, Z]. Raises: ImageError where the file is damaged or lies elsewhere."""
        mask = read_labels(self.folder / "anomaly_mask.nii.gz", case=self.name, channel="anomaly_mask")
        self._check_grid(mask, "anomaly_mask.nii.gz")
        return np.asarray(mask.voxels > 0)

    @property
    def rivals(self) -> list[str]:
        """The names of the baselines' maps, sorted."""
        return sorted(path.name.removesuffix(".nii.gz") for path in self.folder.glob("baselines/*.nii.gz"))

    def rival(self, name: str) -> npt.NDArray[np.float32]:
        """A baseline's map [X, Y, Z]. Raises: ImageError."""
        found = _read_map(self.folder / "baselines" / f"{name}.nii.gz", self.name)
        self._check_grid(found, f"{name}.nii.gz")
        return found.voxels

    def healed(self, channel: str) -> npt.NDArray[np.float32]:
        """A channel of the healed brain [X, Y, Z]. Raises: ImageError."""
        found = _read_map(self.folder / f"healed_{channel}.nii.gz", self.name)
        self._check_grid(found, f"healed_{channel}.nii.gz")
        return found.voxels

    def _check_grid(self, volume: Volume, file: str) -> None:
        if not same_grid(volume, self.score):
            raise ImageError("not on the grid of anomaly.nii.gz", fix=AGAIN, case=self.name, file=file)


def read_anomaly_case(folder: Path, name: str) -> AnomalyCase:
    """Read case.json and the map of one case; masks and further maps are read when asked for.

    Raises: UsageError where case.json is missing or not of this verb, ImageError for the map.
    """
    facts = anomaly_facts(folder)
    if facts is None:
        raise UsageError("has no case.json of `anomaly`", fix=AGAIN, case=name)
    return AnomalyCase(name, folder, facts, _read_map(folder / "anomaly.nii.gz", name))


def anomaly_facts(folder: Path) -> dict[str, Any] | None:
    """The case.json of a folder that `anomaly` wrote, or None."""
    try:
        facts = read_json(folder / "case.json")
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("task") == "anomaly" else None


def _read_map(path: Path, case: str) -> Volume:
    """Unlike an image of a patient, a map may be constant."""
    try:
        return read_map(path)
    except ImageError as error:
        raise ImageError(error.found, fix=AGAIN, case=case, file=path.name) from None


def holds_anomalies(predictions: Path) -> bool:
    """Whether a folder of predictions was written by `anomaly`."""
    return any(anomaly_facts(path.parent) is not None for path in sorted(predictions.glob("*/case.json"))[:1])
