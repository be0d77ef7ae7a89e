"""What a shell offers as the value of an option: words that there are, recipes, runs. Light, for it answers at each Tab."""

from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from medseg_diff.errors import VERBS
from medseg_diff.files import configs_folder

Completion = Callable[[typer.Context, str], list[str]]

TASK_OF = {verbs.train: task for task, verbs in VERBS.items()}
DEEPEST = 3  # folders below runs/, as runs of studies lie in folders of theirs


def completion_of(what: str | Sequence[str]) -> Completion | None:
    """`recipes`, `runs`, or the words themselves; None for nothing."""
    if not what:
        return None
    if isinstance(what, str):
        return {"recipes": _recipes, "runs": _runs}[what]
    words = [word for word in what if word.islower()]  # cuda:N is no word

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return words

    return complete


def _recipes(context: typer.Context, incomplete: str) -> list[str]:
    """Of the verb's task; of a verb of several tasks with the task before them, as `info` prints them."""
    folder = configs_folder() / TASK_OF.get(context.info_name or "", "")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    """Runs and studies below --runs, and the starter model."""
    below = Path(context.params.get("runs") or "runs")
    marks = [f"{'*/' * depth}{mark}" for depth in range(1, DEEPEST + 1) for mark in ("run.json", "study.json")]
    found = {path.parent for mark in marks for path in below.glob(mark)}
    return [*sorted(path.relative_to(below).as_posix() for path in found), "starter"]
