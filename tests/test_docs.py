"""What the documents say can be done: their Python runs, their commands exist, their links lead somewhere."""

import importlib.util
import pydoc
import re
import shlex
import urllib.parse
from pathlib import Path

import pytest
import typer

from docs.build_site import link_of
from medseg_diff import cli
from tests.command_lines import checked, lines_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docker" / "README.md"]
PAGES.append(ROOT / "medseg_diff" / "starter" / "MODEL_CARD.md")
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?medseg-diff (.+)$|`medseg-diff ([^`]+)`", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
LINKED = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "data_manifests/README.md")),
]
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


def calls_of(page):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        call for kind, block in blocks if kind in {"", "bash", "sh", "sbatch", "console"} for call in lines_of(block)
    ]


CALLS = [(page.name, verb, line) for page in [*PAGES, ROOT / "CONTRIBUTING.md"] for verb, line in calls_of(page)]


@pytest.mark.parametrize(("page", "verb", "line"), CALLS, ids=[f"{page}: {line}" for page, _, line in CALLS])
def test_a_command_in_a_block_is_one_that_its_verb_takes(page, verb, line):
    checked(verb, line)


def test_calls_are_found_where_they_stand():
    block = (
        "$ medseg-diff demo  # all\nsrun .venv/bin/medseg-diff segment -i A \\\n  -o B && ls\n"
        "A=1 torchrun -m medseg_diff train-seg --data a.csv\nmedseg-diff runs list | head\npip install 'medseg-diff[ray]'"
    )
    assert list(lines_of(block)) == [
        ("demo", "medseg-diff demo"),
        ("segment", "medseg-diff segment -i A -o B"),
        ("train-seg", "medseg-diff train-seg --data a.csv"),
        ("runs list", "medseg-diff runs list"),
    ]
    with pytest.raises(Exception, match="nonsense"):
        checked("train-seg", "medseg-diff train-seg --data a.csv --config nonsense")
    with pytest.raises(Exception, match="stepps"):
        checked("train-seg", "medseg-diff train-seg --data a.csv training.stepps=3")


def anchors_of(text):
    """The names that GitHub and the site give to headings: lower case, words and hyphens only, a second one numbered."""
    seen = {}
    for heading in HEADING.findall(BLOCK.sub("", text)):
        words = re.sub(r"\]\([^)]*\)", "", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        seen[anchor] = seen.get(anchor, -1) + 1
        yield anchor + (f"-{seen[anchor]}" if seen[anchor] else "")


def faults_of_links(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))):
        if re.match(r"\w+:", link):
            parts = urllib.parse.urlsplit(link)
            if parts.scheme not in {"https", "mailto"} or " " in link or "." not in (parts.netloc or parts.path):
                yield link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        anchors = (
            set(anchors_of(target.read_text(encoding="utf-8"))) if target.suffix == ".md" and target.exists() else {}
        )
        if not target.exists() or (anchor and anchor not in anchors):
            yield link


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_its_links_lead_to_a_file_and_a_heading(page):
    assert list(faults_of_links(page)) == []


def test_dead_links_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    dead = ["nowhere.md", "#nothing", "http://example.org", "https://nowhere", "page.md#nothing-1"]
    page.write_text("# A `b`: c\n\n[x](#a-b-c) `[y](none.md)`\n" + " ".join(f"[z]({link})" for link in dead))
    assert [link for link in faults_of_links(page) if link != "#a-b-c"] == dead
    assert list(anchors_of("# A `--b`: c, d\n## Two\n## Two\n```\n# not\n```\n")) == ["a---b-c-d", "two", "two-1"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_the_site_leads_to_it(page):
    assert f"- {page.relative_to(ROOT / 'docs').as_posix()}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_links_of_the_site_are_those_of_the_repository():
    assert link_of("docs/results.md", "index.md", "https://r") == "results.md"
    assert link_of("../docker/README.md", "cluster.md", "https://r/") == "docker.md"
    assert link_of("../../data_manifests/README.md", "howto/brats.md", "https://r") == "../splits.md"
    assert link_of("../CITATION.cff", "faq.md", "https://r") == "https://r/blob/main/CITATION.cff"


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
