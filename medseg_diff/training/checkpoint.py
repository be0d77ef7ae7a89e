"""Where a training stands, on disk: tensors, and a small JSON that points at them and is switched in one rename.

A kill at any moment leaves the older checkpoint or the newer one, whole. The one before the newest stays, too.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field, ValidationError
from torch import Tensor

from medseg_diff.errors import CheckpointError
from medseg_diff.files import sha256_of, write_json
from medseg_diff.settings import Settings
from medseg_diff.training.weights import not_finite, read_tensors, save_tensors

FORMAT = 1
POINTER, PREVIOUS = "latest.json", "previous.json"

Found = TypeVar("Found")


class Identity(Settings):
    """What a continuation has to share with the training that it continues, or it would be another one."""

    recipe_sha256: str
    data_digest: str
    examples: int
    world_size: int


class Environment(Settings):
    """What changes the last bits of the numbers, and no more."""

    device: str
    precision: str
    threads: int
    torch: str


class Mark(Settings):
    """How far a training is: `share` of the learning rate is left, metrics.csv has so many bytes, and the best score of a
    validation was `best`."""

    step: int = 0
    best: float | None = None
    share: float = 1.0
    metrics_bytes: int = 0


class Checkpoint(NamedTuple):
    """What `load` returns: the mark, the tensors by name, the environment that they came from, and what is wrong
    with a newer one."""

    mark: Mark
    state: dict[str, Tensor]
    environment: Environment
    damage: str = ""


class _Damaged(CheckpointError):
    """A checkpoint that does not hold what was written, which says nothing of the one before it."""


class _Pointer(Settings):
    """The JSON: everything but the tensors, and which file they are in."""

    format: int
    identity: Identity
    environment: Environment
    mark: Mark
    file: str = Field(pattern=r"^step_\d{8,}\.safetensors$")
    sha256: str


class Checkpoints:
    """The checkpoints of one phase of a run, in a folder of their own: the newest, and the one before in case that rots."""

    def __init__(self, folder: Path, identity: Identity, environment: Environment) -> None:
        self.folder, self.identity, self.environment = folder, identity, environment
        self.last: _Pointer | None = None  # what was loaded or saved here last, so that it was whole

    def save(self, mark: Mark, state: Mapping[str, Tensor], *, final: bool = False) -> None:
        """Write a checkpoint whole or not at all; only then does the oldest go, and where it is `final` every other.

        Raises: EnvironmentFault where it cannot be written, and the older ones stay.
        """
        tensors = self.folder / f"step_{mark.step:08d}.safetensors"
        save_tensors(state, tensors)
        pointer = _Pointer(
            format=FORMAT,
            identity=self.identity,
            environment=self.environment,
            mark=mark,
            file=tensors.name,
            sha256=sha256_of(tensors),
        )
        if self.last:
            self._point(PREVIOUS, self.last)
        self._point(POINTER, pointer)
        if final:
            (self.folder / PREVIOUS).unlink(missing_ok=True)
        self.last = pointer
        self.tidy()

    def tidy(self) -> None:
        """Remove every tensor file that nothing points at."""
        kept = set()
        for name in (POINTER, PREVIOUS):
            with suppress(CheckpointError):
                kept |= {pointer.file for pointer in [self._pointer(name)] if pointer}
        for path in self.folder.glob("*.safetensors"):
            if path.name not in kept:
                with suppress(OSError):  # what cannot be removed is in nobody's way
                    path.unlink()

    def mark(self) -> Mark | None:
        """How far the newest checkpoint is; None where there is none. Raises: CheckpointError as `load`."""
        return self._newest(lambda pointer, _: pointer.mark)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint, or the one before where that is damaged, as `damage` then says; None where there is none.

        Raises: CheckpointError where both are damaged or hold NaN, or where they are of another recipe, other data or
        another number of processes than this training.
        """
        found = self._newest(self._read)
        if found and not found.damage:
            self.tidy()
        return found

    def _newest(self, read: Callable[["_Pointer", str], Found]) -> Found | None:
        """What `read` makes of the newest checkpoint that is whole, and of what is wrong with one that is newer."""
        faults: list[_Damaged] = []
        for name in (POINTER, PREVIOUS):
            try:
                if pointer := self._pointer(name):
                    return read(pointer, f"{faults[0].file}: {faults[0].found}" if faults else "")
            except _Damaged as fault:
                faults.append(fault)
        if faults:
            raise faults[0]
        return None

    def _read(self, pointer: _Pointer, damage: str) -> Checkpoint:
        path = self.folder / pointer.file
        if not path.is_file() or sha256_of(path) != pointer.sha256:
            raise self._fault("differs from its checksum" if path.is_file() else "is missing", pointer.file)
        state = read_tensors(path)
        if broken := not_finite(state):
            raise self._fault(f"holds NaN or infinity in {broken[0]}", pointer.file)
        self.last = pointer
        return Checkpoint(pointer.mark, state, pointer.environment, damage)

    def _point(self, name: str, pointer: _Pointer) -> None:
        said = pointer.model_dump(mode="json")
        write_json(self.folder / name, said | {"digest": _digest(said)})

    def _pointer(self, name: str) -> _Pointer | None:
        try:
            text = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            said = dict(json.loads(text))
            if said.get("format") != FORMAT:
                found = f"was written in format {said.get('format')}, this version reads {FORMAT}"
                raise CheckpointError(found, fix="use the version that wrote it", file=self._name(name))
            if said.pop("digest", None) != _digest(said):
                raise self._fault("differs from its own digest", name)
            pointer = _Pointer.model_validate_json(json.dumps(said))
        except (ValueError, TypeError, RecursionError, ValidationError):
            raise self._fault("has changed since it was written", name) from None
        self._compare(pointer.identity)
        return pointer

    def _compare(self, there: Identity) -> None:
        """Raises: CheckpointError that says what differs."""
        words = {
            "recipe_sha256": "another recipe",
            "data_digest": "another table of cases",
            "examples": f"{there.examples} examples, not {self.identity.examples}",
            "world_size": f"{there.world_size} processes, not {self.identity.world_size}",
        }
        for name, word in words.items():
            if getattr(there, name) != getattr(self.identity, name):
                raise CheckpointError(
                    f"was trained with {word}",
                    fix="continue with what it was started with, or choose another --out",
                    file=self._name(POINTER),
                )

    def _fault(self, found: str, name: str) -> "_Damaged":
        return _Damaged(found, fix="copy the run folder again, or train anew with another --out", file=self._name(name))

    def _name(self, name: str) -> str:
        return "/".join([*self.folder.parts[-3:], name])  # RUN/checkpoints/PHASE/…


def steps_done(folder: Path) -> int:
    """How far the checkpoint in a phase's folder is, for an estimate: nothing is checked, and no checkpoint is 0 steps."""
    try:
        step = json.loads((folder / POINTER).read_bytes())["mark"]["step"]
    except (OSError, ValueError, TypeError, KeyError):
        return 0
    return step if isinstance(step, int) else 0


def _digest(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
