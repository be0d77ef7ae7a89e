"""Where a training stands, on disk: tensors, and a small JSON that points at them and is switched in one rename.

A kill at any moment leaves the older checkpoint or the newer one, whole.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError
from torch import Tensor

from medseg_diff.errors import CheckpointError
from medseg_diff.files import sha256_of, write_json
from medseg_diff.settings import Settings
from medseg_diff.training.weights import not_finite, read_tensors, save_tensors

FORMAT = 1
POINTER = "latest.json"


class Identity(Settings):
    """What a continuation has to share with the training that it continues, or it would be another one."""

    recipe_sha256: str
    data_digest: str
    examples: int
    world_size: int


class Circumstances(Settings):
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
    """What `load` returns: the mark, the tensors by name, and under what circumstances they came about."""

    mark: Mark
    state: dict[str, Tensor]
    circumstances: Circumstances


class _Pointer(Settings):
    """The JSON: everything but the tensors, and which file they are in."""

    format: int
    identity: Identity
    circumstances: Circumstances
    mark: Mark
    file: str = Field(pattern=r"^step_\d{8,}\.safetensors$")
    sha256: str


class Checkpoints:
    """The checkpoints of one phase of a run, in a folder of their own; the newest is kept."""

    def __init__(self, folder: Path, identity: Identity, circumstances: Circumstances) -> None:
        self.folder, self.identity, self.circumstances = folder, identity, circumstances

    def save(self, mark: Mark, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint whole or not at all; only then does the older one go.

        Raises: EnvironmentFault where it cannot be written, and the older one stays.
        """
        tensors = self.folder / f"step_{mark.step:08d}.safetensors"
        save_tensors(state, tensors)
        pointer = _Pointer(
            format=FORMAT,
            identity=self.identity,
            circumstances=self.circumstances,
            mark=mark,
            file=tensors.name,
            sha256=sha256_of(tensors),
        )
        said = pointer.model_dump(mode="json")
        write_json(self.folder / POINTER, said | {"digest": _digest(said)})
        self.tidy(keep=tensors.name)

    def tidy(self, *, keep: str) -> None:
        """Remove every tensor file but one."""
        for path in self.folder.glob("*.safetensors"):
            if path.name != keep:
                with suppress(OSError):  # what cannot be removed is in nobody's way
                    path.unlink()

    def mark(self) -> Mark | None:
        """How far the newest checkpoint is; None where there is none. Raises: CheckpointError as `load`."""
        pointer = self._pointer()
        return pointer.mark if pointer else None

    def load(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none.

        Raises: CheckpointError where it is damaged, holds NaN, or is of another recipe, other data or another number of
        processes than this training.
        """
        pointer = self._pointer()
        if pointer is None:
            return None
        path = self.folder / pointer.file
        if not path.is_file() or sha256_of(path) != pointer.sha256:
            raise self._fault("differs from its checksum" if path.is_file() else "is missing", pointer.file)
        state = read_tensors(path)
        if broken := not_finite(state):
            raise self._fault(f"holds NaN or infinity in {broken[0]}", pointer.file)
        self.tidy(keep=pointer.file)
        return Checkpoint(pointer.mark, state, pointer.circumstances)

    def _pointer(self) -> _Pointer | None:
        try:
            text = (self.folder / POINTER).read_bytes()
        except FileNotFoundError:
            return None
        try:
            said = dict(json.loads(text))
            if said.get("format") != FORMAT:
                raise self._fault(f"was written in format {said.get('format')}, this is {FORMAT}", POINTER)
            if said.pop("digest", None) != _digest(said):
                raise self._fault("differs from its own digest", POINTER)
            pointer = _Pointer.model_validate_json(json.dumps(said))
        except (ValueError, TypeError, RecursionError, ValidationError):
            raise self._fault("is not what was written", POINTER) from None
        self._compare(pointer.identity)
        return pointer

    def _compare(self, there: Identity) -> None:
        """Raises: CheckpointError that says what differs."""
        words = {
            "recipe_sha256": "another recipe",
            "data_digest": "another table of cases",
            "examples": f"{there.examples} examples, here are {self.identity.examples}",
            "world_size": f"{there.world_size} processes, here are {self.identity.world_size}",
        }
        for name, word in words.items():
            if getattr(there, name) != getattr(self.identity, name):
                raise CheckpointError(
                    f"was trained with {word}",
                    fix="go on with what it was begun with, or choose another --out",
                    file=self._name(POINTER),
                )

    def _fault(self, found: str, name: str) -> CheckpointError:
        return CheckpointError(
            found, fix="copy the run folder again, or train anew with another --out", file=self._name(name)
        )

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
