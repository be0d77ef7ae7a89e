"""A recipe by its name or path: where they lie, which there are, read with `key=value` laid over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from medseg_diff.errors import ConfigError, verbs_of
from medseg_diff.files import configs_folder
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.enhancement import EnhancementRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.settings import apply_overrides, parse_settings, read_yaml

Task = Literal["segment", "anomaly", "synthesise", "enhance"]
AnyRecipe = SegmentationRecipe | AnomalyRecipe | SynthesisRecipe | EnhancementRecipe


RECIPES: dict[str, type[AnyRecipe]] = {
    "segment": SegmentationRecipe,
    "anomaly": AnomalyRecipe,
    "synthesise": SynthesisRecipe,
    "enhance": EnhancementRecipe,
}


@overload
def load_recipe(name: str, *, task: Literal["segment"], overrides: Sequence[str] = ()) -> SegmentationRecipe: ...


@overload
def load_recipe(name: str, *, task: Literal["anomaly"], overrides: Sequence[str] = ()) -> AnomalyRecipe: ...


@overload
def load_recipe(name: str, *, task: Literal["synthesise"], overrides: Sequence[str] = ()) -> SynthesisRecipe: ...


@overload
def load_recipe(name: str, *, task: Literal["enhance"], overrides: Sequence[str] = ()) -> EnhancementRecipe: ...


@overload
def load_recipe(name: str, *, task: Task, overrides: Sequence[str] = ()) -> AnyRecipe: ...


def load_recipe(name: str, *, task: Task, overrides: Sequence[str] = ()) -> AnyRecipe:
    """A recipe by name (`quick/mask_logits`, of the task's folder) or path, with `key=value` laid over it.

    Raises: ConfigError, or Problems of them, naming the setting and what would be right.
    """
    path = find_recipe(name, task=task)
    return parse_settings(RECIPES[task], apply_overrides(read_yaml(path), overrides), source=path.name)


def find_recipe(name: str, *, task: Task) -> Path:
    """The file of a recipe, by its name with or without the task before it (`segment/quick/phantom`, as `info` prints it).

    Raises: ConfigError with the names that there are.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError("no such recipe file", fix="check the path of --config", file=path.name)
        return path
    known, (first, _, rest) = recipe_names(task), name.partition("/")
    name = rest if first == task else name
    if name in known:
        return configs_folder() / task / f"{name}.yaml"
    if first in RECIPES and rest in recipe_names(first):
        raise ConfigError(f"`{name}` is a recipe of {verbs_of(first).train}", fix=f"use it there, or one for {task}")
    raise ConfigError(f"no recipe `{name}` for {task}", fix=f"use one of {', '.join(known)}, or a path to a .yaml")


def recipe_names(task: str) -> list[str]:
    """Names that `--config` knows for a task."""
    folder = configs_folder() / task
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
