"""Which cases a verb works on: one that was named, or the rows of a table, or a share of them."""

from collections.abc import Sequence
from pathlib import Path

from medseg_diff.console import log
from medseg_diff.data.tables.inputs import MissingChannels, find_case
from medseg_diff.data.tables.manifest import Case, read_manifest
from medseg_diff.errors import (
    UsageError,
)
from medseg_diff.tasks.apply.channels import models_that_fit


def find_cases(
    volumes: Sequence[str],
    data: Path | None,
    channels: Sequence[str],
    *,
    split: str | None,
    data_root: Path | None,
    shard: tuple[int, int] = (1, 1),
    fill_missing: bool = False,
    runs: Path = Path("runs"),
) -> list[Case]:
    """The cases that were asked for, of them every N-th where `shard` is (K, N); with `fill_missing` a case may lack
    some channels. `runs` is where models that fit a case are looked for, to name them where it lacks too many.

    Raises: UsageError where a split holds none or there is no such shard.
    """
    number, shards = shard
    if not 1 <= number <= shards:
        raise UsageError(f"there is no shard {number} of {shards}", fix="write --shard 1/2, 2/2 …")
    if data is None:
        try:
            case, sentence = find_case(volumes, channels, fill_missing=fill_missing)
        except MissingChannels as error:
            raise error.with_fix(f"{error.fix}; {models_that_fit(error.present, runs)}") from None
        log.info("%s", sentence)
        return [case][number - 1 :: shards]
    manifest = read_manifest(data, data_root=data_root)
    cases = [case for case in manifest.cases if split is None or case.split == split]
    if not cases:
        raise UsageError(f"no case has split `{split}`", fix="use another --split", file=manifest.file)
    return cases[number - 1 :: shards]
