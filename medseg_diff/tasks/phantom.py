"""`medseg-diff phantom`: a folder of made-up brains with their table of cases, to try everything else on."""

from pathlib import Path
from typing import Any

from medseg_diff.errors import UsageError
from medseg_diff.phantoms.make import PhantomSettings, is_phantom_folder, write_phantoms
from medseg_diff.settings import parse_settings


def phantom(out: Path, *, overwrite: bool = False, **settings: Any) -> Path:
    """Make phantoms in OUT, by the `settings` of PhantomSettings (`cases=…, shape=…`), and return the path of their table.

    A folder of phantoms is renewed; anything else in OUT is in the way unless `overwrite`, and is never removed.
    Raises: UsageError for an OUT that is in use, ConfigError for values out of range, EnvironmentFault.
    """
    out = Path(out)
    expected = parse_settings(PhantomSettings, settings, source="phantom")
    if out.exists() and not out.is_dir():
        raise UsageError("is a file, not a folder", fix="name a new folder", file=out.name)
    if out.is_dir() and any(out.iterdir()) and not is_phantom_folder(out) and not overwrite:
        raise UsageError(
            "holds files that are not phantoms", fix="name a new folder, or add --overwrite", file=out.name
        )
    return write_phantoms(expected, out)
