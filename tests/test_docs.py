"""What the documents say can be done: their Python runs, their commands exist, their links lead somewhere."""

import importlib.util
import pydoc
import re
import shlex
from pathlib import Path

import pytest
import typer

from medseg_diff import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docker" / "README.md"]
PAGES.append(ROOT / "medseg_diff" / "starter" / "MODEL_CARD.md")
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?medseg-diff (.+)$|`medseg-diff ([^`]+)`", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FOLDERS = (
    "medseg_diff|tests|configs|benchmarks|pipelines|docker|cli|tasks|recipes|evaluation|methods|networks|diffusion|data"
)
FILE = re.compile(rf"`((?:{FOLDERS})/[a-z0-9_/.]*)(?=[`:])")
DOTTED = re.compile(r"`(medseg_diff(?:\.\w+)+)")
SCRIPT = re.compile(r"python -m ([\w.]+)")


def commands_of(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for match in COMMAND.finditer(text):
        words = shlex.split((match[1] or match[2]).split("   #")[0].split("  # ")[0], comments=False)
        if "…" not in " ".join(words) and words and not words[0].isupper() and "|" not in words[0]:
            yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_python_runs(page):
    blocks = CODE.findall(page.read_text(encoding="utf-8"))
    exec(compile("\n".join(blocks), page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_commands_have_the_options_that_it_gives_them(page):
    program = typer.main.get_command(cli.app)
    for words in commands_of(page):
        command, rest = program, list(words)
        while rest and hasattr(command, "commands"):
            word = rest.pop(0)
            if word.startswith("-"):
                continue
            assert word in command.commands, f"{page.name}: medseg-diff {' '.join(words)}"
            command = command.commands[word]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help", "-h", "-q", "-v", "--debug", "--no-progress", "--version"}
        unknown = [word for word in rest if word.startswith("-") and word.split("=")[0] not in known]
        assert not unknown, f"{page.name}: medseg-diff {' '.join(words)}: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_the_files_and_names_that_it_gives_are_there(page):
    text = page.read_text(encoding="utf-8")
    files = [name for name in FILE.findall(text) if "/a/" not in name]  # `medseg_diff/a/b.py` stands for any
    assert [name for name in files if not ((ROOT / name).exists() or (ROOT / "medseg_diff" / name).exists())] == []
    assert [name for name in DOTTED.findall(text) if pydoc.locate(name) is None] == []
    assert [name for name in SCRIPT.findall(text) if importlib.util.find_spec(name) is None] == []


def test_there_are_commands_code_and_names_to_check():
    assert sum(len(FILE.findall(page.read_text(encoding="utf-8"))) for page in PAGES) > 40
    assert sum(len(SCRIPT.findall(page.read_text(encoding="utf-8"))) for page in PAGES) >= 5
    assert sum(len(list(commands_of(page))) for page in PAGES) > 20
    assert sum(len(CODE.findall(page.read_text(encoding="utf-8"))) for page in PAGES) >= 3
