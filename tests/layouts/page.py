"""docs/layouts.md: what comes of each layout, made by trying it."""

import tempfile
from pathlib import Path

from tests.layouts import folders, tables, volumes
from tests.layouts.doors import Layout, row_of

PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
HEAD = """# What comes of what you have

Layouts of input as people have them, right and wrong, and what the program says of each. *Taken*: it goes on, and says
what it took. *Warned*: it goes on, with a word on what is doubtful. *Refused*: it stops with this exit code (2: the words
or the table, 3: the images), and nothing is written. What is checked and why stands in [inputs.md](inputs.md).

Every row was tried on small phantoms; a test holds the page to what the program does (`python -m tests.layouts` writes it
anew).
"""
PARTS = {
    "One case: `segment --volume`": (
        "For a model of `t1`, `t1ce`, `t2` and `flair` where nothing else is said. The folder is `P7`.",
        volumes.LAYOUTS,
    ),
    "A table: `validate --data cases.csv`": ("Two patients, four channels and a reference each.", tables.LAYOUTS),
    "A dataset: `prepare FOLDER --source …`, then `validate`": ("", folders.LAYOUTS),
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, (words, layouts) in PARTS.items():
        rows = [tried(layout) for layout in layouts]
        said = f"\n{words}\n" if words else ""
        parts.append(f"## {title}\n{said}\n| you have | it is | and says |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def tried(layout: Layout) -> str:
    """The row of a layout, built in a folder of its own, which no line may name."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "study"
        folder.mkdir()
        row = row_of(layout, layout.build(folder))
        assert Path(place).name not in row, row
    return row
