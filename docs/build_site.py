"""What mkdocs needs to make a site of the repository's pages: their links, and the stub that the API is read from.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml). Pages that lie elsewhere in the repository become pages
of the site; links to all other files lead to the repository.
"""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # page of the site → file of the repository
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "docker.md": "docker/README.md",
    "splits.md": "data_manifests/README.md",
    "starter.md": "medseg_diff/starter/MODEL_CARD.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(?=[)#])")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
OVERLOAD = re.compile(r"^@overload\ndef .*: \.\.\.\n|^@overload\n", re.MULTILINE)


def link_of(link: str, page: str, repository: str) -> str:
    """A link of `page` (a path of the site) as its file in the repository has it, as the site needs it."""
    source = ROOT / ELSEWHERE.get(page, f"docs/{page}")
    target = Path(os.path.normpath(source.parent / link)).relative_to(ROOT).as_posix()
    of_site = {file: name for name, file in ELSEWHERE.items()}.get(target)
    if of_site is None and target.startswith("docs/"):
        of_site = target.removeprefix("docs/")
    if of_site is None:
        return f"{repository.rstrip('/')}/blob/main/{target}"
    return os.path.relpath(of_site, Path(page).parent).replace(os.sep, "/")


def on_config(config: Any) -> Any:
    """The verbs are loaded on first use, so their signatures and docstrings stand in `__init__.pyi`: lay it where griffe
    looks, without overloads, of which it would show none."""
    stubs = Path(tempfile.mkdtemp(prefix="medseg_diff_docs_"))
    atexit.register(shutil.rmtree, stubs, ignore_errors=True)
    (stubs / "medseg_diff-stubs").mkdir()
    text = (ROOT / "medseg_diff" / "__init__.pyi").read_text(encoding="utf-8")
    (stubs / "medseg_diff-stubs" / "__init__.pyi").write_text(OVERLOAD.sub("", text), encoding="utf-8")
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(ROOT), str(stubs)]
    return config


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]  # before mkdocstrings looks at its paths


def on_files(files: Any, config: Any) -> Any:
    """The pages that lie elsewhere."""
    from mkdocs.structure.files import File

    for page, file in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links, except in blocks of code."""
    parts = FENCED.split(markdown)
    for place in range(0, len(parts), 2):
        parts[place] = LINK.sub(
            lambda found: link_of(found[1], page.file.src_uri, config.extra["repository"]), parts[place]
        )
    return "".join(parts)
