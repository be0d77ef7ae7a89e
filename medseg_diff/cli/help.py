"""How `--help` is laid out: options in sections, commands in groups, examples at the end, as plain text."""

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from medseg_diff.cli.examples import EXAMPLES

WIDEST = 100  # columns of text, on a wider terminal too
SECTIONS = (  # of options, in this order
    *("Source", "Dataset", "Phantoms", "Model", "Scans", "Training", "Settings tried", "Sampling", "Map"),
    *("Comparison", "Result", "Compute", "Options"),
)
GROUPS = {
    "Start here": ("demo", "info", "selftest"),
    "Data": ("phantom", "prepare", "validate"),
    "Train": ("train-seg", "train-anomaly", "train-synth", "train-enhance", "tune"),
    "Apply": ("segment", "anomaly", "synthesise", "enhance"),
    "Judge": ("evaluate", "audit", "audit-volumes"),
    "Review": ("report", "runs", "ui"),
}
EVERYWHERE = "Everywhere: -q, -v, --log-file FILE, --no-progress, --debug."


class Command(TyperCommand):
    """A verb."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_arguments(self.get_params(ctx), formatter)
        _write_options(self.get_params(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(EXAMPLES.get(_path_of(ctx), ()), formatter)
        formatter.write_paragraph()
        formatter.write_text(EVERYWHERE)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(_usage_of(each) for each in _arguments(self.get_params(ctx)))]


class Group(TyperGroup):
    """The program, or `runs`: a verb of verbs."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self.get_params(ctx), formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        texts = {name: _first_sentence(self.commands[name]) for name in self.list_commands(ctx)}
        groups = (
            {} if ctx.parent else {title: [name for name in names if name in texts] for title, names in GROUPS.items()}
        )
        rest = [name for name in texts if not any(name in names for names in groups.values())]
        widest = max(map(len, texts))
        for title, names in [*groups.items(), ("More" if groups else "Commands", rest)]:
            if names:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(widest), texts[name]) for name in names])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(EXAMPLES.get(_path_of(ctx), ()), formatter)


def _path_of(ctx: Any) -> str:
    """`segment`, `runs list`; the program itself is empty."""
    names = []
    while ctx.parent:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return " ".join(reversed(names))


def _first_sentence(command: Any) -> str:
    text = " ".join((command.help or "").split())
    return text if ". " not in text else text[: text.index(". ") + 1]


def _arguments(parameters: Sequence[Any]) -> Iterator[Any]:
    return (each for each in parameters if each.param_type_name == "argument")


def _usage_of(argument: Any) -> str:
    """FOLDER, [RUN], [KEY=VALUE]…: as many as one likes."""
    name = str(argument.metavar or argument.name).strip("[]…")
    return (name if argument.required else f"[{name}]") + ("…" if argument.nargs == -1 else "")


def _write_arguments(parameters: Sequence[Any], formatter: Any) -> None:
    rows = [(_usage_of(each), each.help or "") for each in _arguments(parameters)]
    if rows:
        with formatter.section("Arguments"):
            formatter.write_dl(rows)


def _write_options(parameters: Sequence[Any], formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for each in parameters:
        if each.param_type_name == "option" and not each.hidden:
            title = getattr(each, "rich_help_panel", None) or "Options"
            sections.setdefault(title, []).append((_names_of(each), each.help or ""))
    for title in sorted(sections, key=lambda title: SECTIONS.index(title) if title in SECTIONS else len(SECTIONS) - 2):
        with formatter.section(title):
            formatter.write_dl(sections[title])


def _names_of(option: Any) -> str:
    """`-o, --out FOLDER`, `--mlflow / --no-mlflow`."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return names if option.is_flag or option.count else f"{names} {option.metavar or ''}".rstrip()


def _write_examples(lines: Sequence[str], formatter: Any) -> None:
    """As they stand, so that they can be copied; each in one line."""
    if lines:
        with formatter.section("Examples"):
            for line in lines:
                formatter.write(f"{' ' * formatter.current_indent}{line}\n")
