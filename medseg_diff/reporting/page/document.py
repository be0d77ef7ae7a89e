"""A page as one HTML file: no network, no other file, no script but its own.

Its content-security policy names the checksum of each of its scripts and of its style, so that nothing that a name or a
warning smuggles in can run.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from medseg_diff import __version__
from medseg_diff.files import write_text

STYLE, VIEWER, TABLE = "page.css", "viewer.js", "table.js"
NIIVUE, NIIVUE_LICENCE = "niivue.umd.js", "niivue.LICENSE.txt"


def write_page(path: Path, template: str, *, scripts: Sequence[str] = (), **facts: Any) -> None:
    """Write a page whole or not at all; `scripts` are files of ours or vendored, in their order. The same facts give the
    same bytes. Raises: EnvironmentFault where it cannot be written."""
    texts, style = [_source(name) for name in scripts], _source(STYLE)
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(_checksum(text) for text in texts),
            f"style-src {_checksum(style)}",
            "img-src data: blob:",
            "connect-src data: blob:",  # the viewer's own letters, which it holds as data
            "font-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = (
        _environment()
        .get_template(template)
        .render(policy=policy, style=style, scripts=texts, version=__version__, licence=_licence(scripts), **facts)
    )
    write_text(path, page)


def picture(png: bytes) -> str:
    """A PNG as the source of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medseg_diff.reporting.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["wordy"] = lambda cell: re.search(r"[^\W\d]{3}", str(cell)) is not None  # read from the left
    return environment


@cache
def _source(name: str) -> str:
    text = _file(name).read_text(encoding="utf-8")
    assert ("</style" if name == STYLE else "</script") not in text.lower(), name  # where the element would end
    return text


def _file(name: str) -> Traversable:
    room = files("medseg_diff.reporting.page")
    return room / ("vendored" if name in (NIIVUE, NIIVUE_LICENCE) else "templates") / name


def _licence(scripts: Sequence[str]) -> str:
    """The licence of what is not ours in the page."""
    return _file(NIIVUE_LICENCE).read_text(encoding="utf-8") if NIIVUE in scripts else ""


def _checksum(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
