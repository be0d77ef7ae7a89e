"""What `--help` says: examples that can be typed, options in sections with one notation of defaults, and completion."""

import re
from types import SimpleNamespace

import pytest
import typer

from medseg_diff import cli
from medseg_diff.cli.completion import completion_of
from medseg_diff.cli.examples import EXAMPLES
from medseg_diff.cli.help import GROUPS, SECTIONS
from medseg_diff.recipes.lookup import RECIPES, find_recipe, recipe_names
from tests.command_lines import PROGRAM, VERBS, checked, parsed

EVERYWHERE = {"-h", "--help"}
LINES = [(name, line) for name, lines in EXAMPLES.items() for line in lines if name in VERBS]


def help_of(words, width=80):
    """The text of `medseg-diff WORDS --help`."""
    context, command = typer.Context(PROGRAM, info_name="medseg-diff", terminal_width=width), PROGRAM
    for word in words.split():
        command = command.commands[word]
        context = typer.Context(command, parent=context, info_name=word, terminal_width=width)
    return command.get_help(context)


def options_of(command):
    return [each for each in command.params if each.param_type_name == "option" and not EVERYWHERE & {*each.opts}]


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_an_example_is_a_command_that_its_verb_takes(name, line):
    checked(name, line)


def test_a_wrong_example_would_be_found():
    for wrong in ("--volume a", "-o b --volme a", "-o b --steps x"):
        with pytest.raises(Exception, match=r"Missing|No such option|Invalid|valid"):
            parsed("segment", f"medseg-diff segment {wrong}")


@pytest.mark.parametrize("name", ["", "runs", *VERBS])
def test_help_ends_with_two_or_three_examples(name):
    text = help_of(name)
    assert 2 <= len(EXAMPLES[name]) <= 3
    assert all(f"\n  {line}\n" in f"{text}\n" for line in EXAMPLES[name])
    assert text.index("Examples:") > text.index("Options:")


def test_every_command_stands_in_a_group_of_the_first_page():
    text = help_of("")
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(PROGRAM.commands)
    assert [line[:-1] for line in text.splitlines() if line.removesuffix(":") in GROUPS] == list(GROUPS)
    assert all(re.search(rf"^  {name} +\S", text, re.MULTILINE) for name in PROGRAM.commands)
    assert "..." not in text.partition("Start here:")[2]  # no sentence is cut


@pytest.mark.parametrize("name", VERBS)
def test_every_option_stands_in_a_section_once(name):
    text, sections = help_of(name), {getattr(each, "rich_help_panel", None) or "Options" for each in VERBS[name].params}
    assert sections <= {*SECTIONS}
    for option in options_of(VERBS[name]):
        longest = max(option.opts, key=len)
        assert len(re.findall(rf"^  (-\w, )?{longest}( |$)", text, re.MULTILINE)) == 1, longest


@pytest.mark.parametrize("name", VERBS)
def test_values_have_names_and_defaults_one_notation(name):
    text = " ".join(help_of(name, width=100).split())
    assert not re.search(r"<\w+|\[x>|TEXT|INTEGER|PATH…", text)
    notes = re.findall(r"\[[^\]]*\]", text.split("Examples:")[0])
    odd = [
        note for note in notes if not re.fullmatch(r"\[(default: .+|required|OPTIONS|KEY=VALUE|NAME=VALUE|RUN)\]", note)
    ]
    assert odd == []
    for option in options_of(VERBS[name]):
        assert option.help and (option.is_flag or option.metavar), option.opts


def test_sections_are_those_of_the_groups_of_options():
    text = help_of("segment")
    assert re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE) == [
        "Source",
        "Model",
        "Sampling",
        "Result",
        "Compute",
        "Options",
        "Examples",
    ]
    assert "  -i, --volume PATH" in text and "  -o, --out FOLDER" in text and "--shard K/N" in text
    assert "[default: as tuned, else the recipe's]" in " ".join(text.split())


def test_names_that_info_prints_are_taken_by_config():
    for task in RECIPES:
        for name in recipe_names(task):
            assert find_recipe(f"{task}/{name}", task=task) == find_recipe(name, task=task)


def test_a_shell_completes_recipes_runs_and_words(tmp_path):
    def offered(what, verb, **given):
        return completion_of(what)(SimpleNamespace(info_name=verb, params=given), "")

    assert offered("recipes", "train-seg") == recipe_names("segment")
    assert "anomaly/quick/wolleb" in offered("recipes", "evaluate")
    (tmp_path / "runs" / "study" / "fold_1").mkdir(parents=True)
    (tmp_path / "runs" / "study" / "study.json").touch()
    (tmp_path / "runs" / "study" / "fold_1" / "run.json").touch()
    assert offered("runs", "segment", runs=tmp_path / "runs") == ["study", "study/fold_1", "starter"]
    assert offered(("auto", "cuda:N"), "segment") == ["auto"] and completion_of(()) is None


def test_completion_answers_at_the_prompt(monkeypatch, capsys):
    """As the line that `--show-completion` prints has it called."""
    monkeypatch.setenv("_MEDSEG_DIFF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "medseg-diff train-seg --config quick/")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setattr("sys.argv", ["medseg-diff"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "quick/mask_logits" in capsys.readouterr().out.splitlines()
