"""Settings one can trust: strict, frozen, read from YAML with `key=value` on top, written back resolved."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from medseg_diff.errors import ConfigError, MedsegError, raise_all


class Settings(BaseModel):
    """Base of everything that stands in a recipe: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())

    def but(self, **changes: Any) -> Self:
        """The same settings with some values changed (and validated again)."""
        return type(self).model_validate_json(json.dumps(self.model_dump(mode="json") | changes))


Kind = TypeVar("Kind", bound=BaseModel)


def parse_settings(kind: type[Kind], data: dict[str, Any], *, source: str) -> Kind:
    """Validate plain data as `kind`.

    Raises: ConfigError, or Problems of them: one line for each fault, with its dotted path and the nearest known name.
    """
    try:
        # JSON, not Python objects: a list is then a tuple's natural spelling and strictness still holds.
        return kind.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        raise_all([_config_error(kind, data, dict(fault), source) for fault in error.errors(include_url=False)])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a value is not plain data: {error}", fix="use numbers, text, lists and maps", file=source
        ) from None
    raise AssertionError("unreachable: raise_all raises when there is a fault")


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML map as plain data. OmegaConf, because it reads 1e-4 as a number and refuses a key given twice."""
    from omegaconf import OmegaConf

    try:
        data = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=True)
    except FileNotFoundError:
        raise ConfigError("no such file", fix="check the path", file=path.name) from None
    except Exception as error:  # YAML has many ways to be wrong, and each library its own exception
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"not a readable YAML file: {reason}", fix="mend the YAML", file=path.name) from None
    if not isinstance(data, dict):
        raise ConfigError("holds no map of settings", fix="start it with `name: value` lines", file=path.name)
    return {str(key): value for key, value in data.items()}


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `training.steps=500` style words over plain data; an unknown key is left for validation to name.

    A map written out (`regions={core: [1]}`) replaces the old one, and so does another `kind` of part.
    """
    from omegaconf import OmegaConf

    for word in overrides:
        key, separator, _ = word.partition("=")
        if not separator or not key.strip("."):
            raise ConfigError(f"`{word}` is not a setting", fix="write key=value, e.g. training.steps=500")
    try:
        merged = OmegaConf.create(data)
        for word in overrides:
            key, _, text = word.partition("=")
            value = OmegaConf.select(OmegaConf.from_dotlist([word]), key)
            *above, name = key.rsplit(".", 1)
            if name == "kind" and above and OmegaConf.select(merged, key) not in (None, value):
                # Another kind has settings of its own: those of the old one go.
                OmegaConf.update(merged, above[0], {"kind": value}, merge=False, force_add=True)
            else:  # a map written out stands in the old one's place
                OmegaConf.update(merged, key, value, merge=not text.startswith("{"), force_add=True)
        container = OmegaConf.to_container(merged, resolve=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot apply {' '.join(overrides)}: {reason}", fix="write key=value") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def write_yaml(settings: BaseModel) -> str:
    """The resolved settings as YAML text."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(settings.model_dump(mode="json")))


def _config_error(kind: type[BaseModel], data: dict[str, Any], fault: dict[str, Any], source: str) -> MedsegError:
    """One pydantic fault as one line."""
    path = [part for part in fault["loc"] if not _is_union_tag(part, data, fault["loc"])]
    dotted = ".".join(str(part) for part in path) or "the file"
    if fault["type"] == "extra_forbidden":
        siblings = _known_names(kind, path[:-1])
        near = [name for name in difflib.get_close_matches(str(path[-1]), siblings, n=1) if name != path[-1]]
        fix = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(siblings) or 'nothing'}"
        return ConfigError(f"unknown setting `{dotted}`", fix=fix, file=source)
    if fault["type"] == "missing":
        return ConfigError(f"setting `{dotted}` is missing", fix=f"add `{path[-1] if path else dotted}`", file=source)
    message = fault["msg"].removeprefix("Value error, ")
    value = fault.get("input")
    shown = "" if isinstance(value, dict | list) else f" (found {value!r})"
    return ConfigError(
        f"setting `{dotted}`: {message[:1].lower()}{message[1:]}{shown}", fix=f"correct `{dotted}`", file=source
    )


def _is_union_tag(part: Any, data: Any, location: Sequence[Any]) -> bool:
    """Pydantic puts the chosen member of a union into the path; a person wrote no such key."""
    here = data
    for step in location:
        inside = isinstance(here, dict) and step in here
        inside = inside or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if step == part and not inside and isinstance(here, dict) and part in here.values():
            return True
        here = here[step] if inside else here
    return False


def _known_names(kind: Any, path: Sequence[Any]) -> list[str]:
    """Field names of the settings at `path` below `kind` (of every member, where a union stands there)."""
    kinds = [kind]
    for part in path:
        kinds = [field.annotation for k in kinds for name, field in k.model_fields.items() if name == part]
        kinds = [member for annotation in kinds for member in _models_in(annotation)]
    return sorted({name for k in kinds for name in k.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
