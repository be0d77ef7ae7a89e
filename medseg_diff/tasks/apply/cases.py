"""Which cases a verb works on: one that was named, or the rows of a table, or a share of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medseg_diff.console import log
from medseg_diff.data.tables.inputs import MissingChannels, find_case
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import UsageError
from medseg_diff.recipes.lookup import Task
from medseg_diff.tasks.apply.case_folder import source_of
from medseg_diff.tasks.apply.channels import models_that_fit
from medseg_diff.tasks.options import Source


@dataclass(frozen=True)
class Given:
    """The cases to work on. `asked` is what case.json says of how they are to be read; `source_of` says where one lies."""

    cases: list[Case]
    asked: dict[str, Any]
    source_of: Callable[[Case], str | None]


def given_by(source: Source, cases: list[Case]) -> Given:
    """Cases that a person named by their files, or by a table below whose folder they lie."""
    root = source.data_root or (source.data.parent if source.data else None)
    return Given(cases, asked_of(source), partial(source_of, root=root))


def asked_of(source: Source) -> dict[str, Any]:
    """What case.json says of how the images are to be read."""
    return {"named_channels": list(source.channels) or None, "resample_to": source.resample_to}


def find_cases(
    source: Source,
    channels: Sequence[str],
    *,
    task: Task = "segment",
    runs: Path = Path("runs"),
    fill_missing: bool = False,
) -> list[Case]:
    """The cases of `source` for a model of `channels`; with `fill_missing` a case may lack some of them. `runs` is where
    models of the `task` that fit a case are looked for, to name them where it lacks too many.

    Raises: UsageError where a split holds none or there is no such shard; ManifestError, ImageError.
    """
    number, shards = source.shard
    if not 1 <= number <= shards:
        raise UsageError(f"shard {number} of {shards} does not exist", fix="write --shard 1/2, 2/2 …")
    if source.data is None:
        try:
            case, sentence = find_case(source.volumes, channels, order=source.channels, fill_missing=fill_missing)
        except MissingChannels as error:
            raise error.with_fix(f"{error.fix}; {models_that_fit(error.present, runs, task)}") from None
        log.info("%s", sentence)
        return [case][number - 1 :: shards]
    manifest = read_manifest(source.data, data_root=source.data_root)
    cases = [case for case in manifest.cases if source.split is None or case.split == source.split]
    if not cases:
        raise UsageError(f"no case has split `{source.split}`", fix="use another --split", file=manifest.file)
    return cases[number - 1 :: shards]
