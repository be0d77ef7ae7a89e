"""`medseg-diff phantom`: a folder of made-up brains with their table of cases, to try everything else on."""

from pathlib import Path

from medseg_diff.errors import UsageError
from medseg_diff.phantoms.make import PhantomSettings, is_phantom_folder, write_phantoms
from medseg_diff.settings import parse_settings


def phantom(
    out: Path,
    *,
    cases: int,
    shape: tuple[int, int, int] = (64, 64, 48),
    raters: int = 0,
    healthy: float = 0.25,
    held_out: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Make `cases` phantoms of `shape` voxels in OUT and return the path of their cases.csv.

    `raters` further drawings stand beside the reference; `healthy` is the share of cases without a glioma, `held_out` the
    share for testing, with half as many for validation. A folder of phantoms is renewed; anything else in OUT is in the
    way unless `overwrite`, and is never removed.
    Raises: UsageError for an OUT that is in use, ConfigError for values out of range, EnvironmentFault.
    """
    out = Path(out)
    counts = {"cases": cases, "shape": shape, "raters": raters, "seed": seed}
    settings = parse_settings(PhantomSettings, {**counts, "healthy": healthy, "held_out": held_out}, source="phantom")
    if out.exists() and not out.is_dir():
        raise UsageError("is a file, not a folder", fix="name a new folder", file=out.name)
    if out.is_dir() and any(out.iterdir()) and not is_phantom_folder(out) and not overwrite:
        raise UsageError(
            "holds files that are not phantoms", fix="name a new folder, or add --overwrite", file=out.name
        )
    return write_phantoms(settings, out)
