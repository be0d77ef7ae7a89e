"""Command lines as the program would take them: for the examples of `--help`, the README and the pages."""

import re
import shlex

import typer

from medseg_diff import cli
from medseg_diff.data.tables.sources import SOURCES
from medseg_diff.recipes.lookup import find_recipe, load_recipe

PROGRAM = typer.main.get_command(cli.app)
BY_NAME = PROGRAM.commands | {f"runs {name}": each for name, each in PROGRAM.commands["runs"].commands.items()}
VERBS = {name: command for name, command in BY_NAME.items() if not hasattr(command, "commands")}
TASKS = {"train-seg": "segment", "train-anomaly": "anomaly", "train-synth": "synthesise", "evaluate": "segment"}
CALL = re.compile(r"(?:^|\s)(?:\S*/)?medseg[-_]diff\s+(?=[a-z])(.*)")


def parsed(name, line):
    """The words of `medseg-diff NAME …` as the command NAME takes them. Raises: what typer says of a wrong one."""
    words = shlex.split(line.split(" > ")[0])
    assert words[0] == "medseg-diff" and words[1 : 1 + len(name.split())] == name.split(), line
    return VERBS[name].make_context(name, words[1 + len(name.split()) :]).params


def checked(name, line):
    """The words as `parsed`, with sources, recipes and settings that there are."""
    given = parsed(name, line)
    if (source := given.get("source")) is not None:
        assert source in SOURCES
    config, overrides = given.get("config"), tuple(given.get("overrides") or ())
    for word in overrides:
        assert "=" in word
    if name in TASKS and not str(config).endswith(".yaml"):  # a file of the reader's own
        if config is not None:
            assert find_recipe(config, task=TASKS[name]).is_file()
        default = {"segment": "mask_logits", "anomaly": "inpainting", "synthesise": "brain_ldm_3d"}[TASKS[name]]
        load_recipe(config or default, task=TASKS[name], overrides=overrides)
    return given


def lines_of(block):
    """(verb, line) of each call in a block of shell: from the program's name to the comment or the next command; the shell's
    variables are 1."""
    for line in re.sub(r"\$\w+", "1", block.replace("\\\n", " ")).splitlines():
        call = CALL.search(re.split(r"\s#\s", f" {line}")[0])
        if call is None or "…" in call[1]:
            continue
        words = re.split(r"\s(?:&&|\||;|&)(?=\s|$)", call[1])[0].split()
        verb = " ".join(words[:2]) if words[0] == "runs" else words[0]
        yield verb, " ".join(("medseg-diff", *words))
