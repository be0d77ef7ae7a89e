"""Settings one can trust: strict, frozen, read from YAML with `key=value` on top, written back resolved."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg_diff.errors import CheckpointError, ConfigError, MedsegError, Problems, raise_all
from medseg_diff.files import read_json

LARGEST_YAML = 2**20  # bytes
DEEPEST, MOST_EVENTS = 32, 20_000
LARGEST_NUMBER = 2**63
AMBIGUOUS = re.compile(r"[-+]?(0\d+|0o?[0-7_]*_[0-7_]*|\d[\d_]*_[\d_]*|\d+(:\d+)+(\.\d*)?|0b[01_]+|0x[\da-fA-F_]+)")
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


ChannelName = Annotated[str, Field(pattern=r"^\w[\w.-]{0,40}$")]  # it becomes a part of files' names
Axis = Annotated[int, Field(ge=0, le=2)]  # of a view, in space
Label = Annotated[int, Field(ge=0, le=2**15 - 1)]  # of a voxel: masks are int16


class Settings(BaseModel):
    """Base of everything that stands in a recipe: unknown keys and wrong types are refused, values never change.

    `renamed` says what keys of older recipes are called now, both under dotted names: {"image_scale": "space.scale"}.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())
    renamed: ClassVar[Mapping[str, str]] = {}

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


@contextmanager
def of_a_run() -> Iterator[None]:
    """Inside, faults of settings are those of the run folder they lie in. Raises: CheckpointError, or Problems of them."""
    try:
        yield
    except MedsegError as error:
        faults = error.problems if isinstance(error, Problems) else [error]
        raise_all([CheckpointError(fault.found, fix=fault.fix, file=fault.file) for fault in faults])


def read_measured(path: Path, kind: type[Kind]) -> Kind | None:
    """What a run measured and wrote into a JSON file of its folder; None where it is not there.

    Raises: CheckpointError, or Problems of them, where the file is not what was written.
    """
    if not path.is_file():
        return None
    file = f"{path.parent.name}/{path.name}"
    try:
        data = read_json(path)
    except ValueError:
        raise CheckpointError("is not JSON", fix="train again", file=file) from None
    if not isinstance(data, dict):
        raise CheckpointError("holds no settings", fix="train again", file=file)
    with of_a_run():
        return parse_settings(kind, data, source=file)


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML map as plain data. OmegaConf, because it reads 1e-4 as a number and refuses a key given twice."""
    from omegaconf import OmegaConf

    try:
        if path.stat().st_size > LARGEST_YAML or not path.is_file():
            raise ConfigError("is not a settings file", fix="give a recipe of up to 1 MB", file=path.name)
        text = path.read_text(encoding="utf-8-sig")
        _check_yaml(text)
        data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        _check_values(data)
    except FileNotFoundError:
        raise ConfigError("no such file", fix="check the path", file=path.name) from None
    except OSError as error:
        reason = error.strerror or "input/output error"
        raise ConfigError(f"cannot be read ({reason})", fix="check its permissions", file=path.name) from None
    except ConfigError as error:
        raise ConfigError(error.found, fix=error.fix, file=path.name) from None
    except Exception as error:  # YAML has many ways to be wrong, and each library its own exception
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"not a readable YAML file: {reason}", fix="correct the YAML", file=path.name) from None
    if not isinstance(data, dict):
        raise _no_map(path.name)
    return {str(key): value for key, value in data.items()}


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Lay `training.steps=500` style words over plain data; an unknown key is left for validation to name.

    A map written out (`regions={core: [1]}`) replaces the old one, and so does another `kind` of part.
    """
    from omegaconf import OmegaConf

    try:
        merged = OmegaConf.create(data)
        for word in overrides:
            key, separator, text = word.partition("=")
            if not separator or not OVERRIDE.fullmatch(key):
                raise ConfigError(f"`{word}` is not a setting", fix="write key=value, e.g. training.steps=500")
            _check_values(word)
            value = OmegaConf.select(OmegaConf.from_dotlist([word]), key)
            *above, name = key.rsplit(".", 1)
            if name == "kind" and above and OmegaConf.select(merged, key) not in (None, value):
                # Another kind has settings of its own: those of the old one go.
                OmegaConf.update(merged, above[0], {"kind": value}, merge=False, force_add=True)
            else:  # a map written out stands in the old one's place
                OmegaConf.update(merged, key, value, merge=not text.startswith("{"), force_add=True)
        container = OmegaConf.to_container(merged, resolve=False)
        _check_values(container)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot apply {' '.join(overrides)}: {reason}", fix="write key=value") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _check_yaml(text: str) -> None:
    """Refuse what YAML can do beyond settings, before it does it. Raises: ConfigError; the library's own errors."""
    import yaml

    depth, begun = 0, False
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if not begun and isinstance(event, yaml.NodeEvent):
            begun = True
            if not isinstance(event, yaml.MappingStartEvent):
                raise _no_map()
        mark = event.start_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{place}: an anchor or alias", fix="write the value out where it is needed")
        if tag := getattr(event, "tag", None):
            raise ConfigError(f"{place}: the tag {tag}", fix="write plain values")
        if depth > DEEPEST or count > MOST_EVENTS:
            raise ConfigError(f"{place}: too deeply nested or too long for a recipe", fix="check the file")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and AMBIGUOUS.fullmatch(event.value):
            raise ConfigError(
                f"{place}: {event.value} would be read as another number", fix="write it in decimal, or in quotes"
            )
    if not begun:
        raise _no_map()


def _no_map(file: str | None = None) -> ConfigError:
    return ConfigError("is not a mapping of settings", fix="start it with `name: value` lines", file=file)


def _check_values(data: Any) -> None:
    """Refuse references, which could fetch what is not in the file, and numbers no setting can have. Raises: ConfigError."""
    if isinstance(data, dict):
        for key, value in data.items():
            _check_values(key)
            _check_values(value)
    elif isinstance(data, list):
        for value in data:
            _check_values(value)
    elif isinstance(data, str) and "${" in data:
        raise ConfigError(f"`{data[:60]}` refers to something else", fix="write the value out")
    elif isinstance(data, int | float) and not -LARGEST_NUMBER <= data <= LARGEST_NUMBER:
        raise ConfigError(f"the number {data!r:.40} is beyond any setting", fix="write a smaller one")


def write_yaml(settings: BaseModel) -> str:
    """The resolved settings as YAML text."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(settings.model_dump(mode="json")))


def _config_error(kind: type[BaseModel], data: dict[str, Any], fault: dict[str, Any], source: str) -> MedsegError:
    """One pydantic fault as one line."""
    path = [part for part in fault["loc"] if not _is_union_tag(part, data, fault["loc"])]
    dotted = ".".join(str(part) for part in path)
    if fault["type"] == "extra_forbidden":
        if name := _name_now(kind, path):
            return ConfigError(f"setting `{dotted}` is now called `{name}`", fix=f"write `{name}`", file=source)
        siblings = sorted({name for each in _kinds_at(kind, path[:-1]) for name in each.model_fields})
        near = [name for name in difflib.get_close_matches(str(path[-1]), siblings, n=1) if name != path[-1]]
        fix = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(siblings) or 'nothing'}"
        return ConfigError(f"unknown setting `{dotted}`", fix=fix, file=source)
    if fault["type"] == "missing":
        return ConfigError(f"setting `{dotted}` is missing", fix=f"add `{path[-1] if path else dotted}`", file=source)
    if fault["type"] == "union_tag_not_found":
        kinds = ", ".join(str(each.model_fields["kind"].default) for each in _kinds_at(kind, path))
        return ConfigError(f"setting `{dotted}.kind` is missing", fix=f"add `kind`, one of {kinds}", file=source)
    message = fault["msg"].removeprefix("Value error, ")
    if not path:  # about several settings at once, which it names
        return ConfigError(f"these settings do not go together: {message}", fix="change one of them", file=source)
    value = fault.get("input")
    shown = "" if isinstance(value, dict | list) else f" (found {value!r})"
    return ConfigError(
        f"setting `{dotted}`: {message[:1].lower()}{message[1:]}{shown}", fix=f"correct `{dotted}`", file=source
    )


def _is_union_tag(part: Any, data: Any, location: Sequence[Any]) -> bool:
    """Pydantic puts the chosen member of a union into the path; a person wrote no such key."""
    here = data
    for number, step in enumerate(location, start=1):
        inside = isinstance(here, dict) and step in here
        inside = inside or (isinstance(here, list) and isinstance(step, int) and step < len(here))
        if step == part and not inside and isinstance(here, dict):
            implied = "kind" not in here and number < len(location)  # of a union that has a usual member
            if part in here.values() or implied:
                return True
        here = here[step] if inside else here
    return False


def _name_now(kind: type[BaseModel], path: Sequence[Any]) -> str | None:
    """What the setting that stood at `path` is called now, if one of the settings above it knows."""
    for depth in range(len(path)):
        above, name = ".".join(map(str, path[:depth])), ".".join(map(str, path[depth:]))
        for each in _kinds_at(kind, path[:depth]):
            if now := getattr(each, "renamed", {}).get(name):
                return f"{above}.{now}" if above else now
    return None


def _kinds_at(kind: type[BaseModel], path: Sequence[Any]) -> list[type[BaseModel]]:
    """The settings at `path` below `kind`: every member, where a union stands there."""
    kinds = [kind]
    for part in path:
        annotations = [field.annotation for k in kinds for name, field in k.model_fields.items() if name == part]
        kinds = [member for annotation in annotations for member in _models_in(annotation)]
    return kinds


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        out |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out
