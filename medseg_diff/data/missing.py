"""Channels that a case lacks: which they are, and the background in their place, for models that were trained to bear it."""

from collections.abc import Sequence
from dataclasses import replace

from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared


def present_channels(case: Case, channels: Sequence[str]) -> tuple[str, ...]:
    """Those of `channels` that the case has, in their order."""
    return tuple(channel for channel in channels if channel in case.channels)


def missing_channels(case: Case, channels: Sequence[str]) -> tuple[str, ...]:
    """Those of `channels` that the case lacks."""
    return tuple(channel for channel in channels if channel not in case.channels)


def filled(prepared: Prepared, channels: Sequence[str]) -> Prepared:
    """The case with all of `channels`, the background in each that it lacks, as channel dropout shows it in training."""
    if prepared.channels == tuple(channels):
        return prepared
    image = prepared.image.new_full((len(channels), *prepared.image.shape[1:]), prepared.preparation.background)
    for number, channel in enumerate(channels):
        if channel in prepared.channels:
            image[number] = prepared.image[prepared.channels.index(channel)]
    return replace(prepared, channels=tuple(channels), image=image)
