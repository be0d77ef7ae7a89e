"""What the columns of a table may not be meant to say: names that mislead, and what some cases have and others lack."""

from collections.abc import Iterator, Sequence

from medseg_diff.data.tables.channel_names import SYNONYMS, channel_called
from medseg_diff.data.tables.manifest import Case, Manifest
from medseg_diff.data.tables.sources.collect import in_short
from medseg_diff.errors import counted

REFERENCES = ("mask", "segmentation", "lesion", "lesions", "annotation", "groundtruth", "gt", "reference", "roi")


def doubtful_columns(manifest: Manifest) -> list[str]:
    """A sentence for each column that is doubtful."""
    return [f"{manifest.file}: {text}" for text in (*_misleading(manifest.channels), *_uneven(manifest.cases))]


def _misleading(channels: Sequence[str]) -> Iterator[str]:
    """Columns of images that are called as a reference is, or as no recipe calls a channel."""
    for name in channels:
        if name.replace("_", "") in REFERENCES:
            yield f"column `{name}` is read as a channel: if it is the reference, call it `seg`"
        elif (meant := channel_called(name, SYNONYMS)) not in (None, name):
            yield f"column `{name}` is read as a separate channel: recipes call it `{meant}`"


def _uneven(cases: Sequence[Case]) -> Iterator[str]:
    """Channels and references that some cases have and others lack."""
    columns = {case.name: (*case.channels, *(["seg"] if case.seg else [])) for case in cases}
    for column in dict.fromkeys(name for each in columns.values() for name in each):
        if lacking := [case for case, each in columns.items() if column not in each]:
            yield f"no {column} for {len(lacking)} of {counted(len(cases), 'case')}: {in_short(lacking)}"
