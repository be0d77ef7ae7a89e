"""`medseg_diff.segment`: scans by path or from memory → arrays with their uncertainty, and files where asked for."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

from medseg_diff.api.call import OptionalFolder, called
from medseg_diff.api.models import ModelOption, model_for
from medseg_diff.api.results import SegmentationResult
from medseg_diff.api.volumes import Volume
from medseg_diff.tasks.apply.segment import Segmenting, check, say, segment_cases
from medseg_diff.tasks.apply.segmentation_system import SegmentationModel, system_of
from medseg_diff.tasks.apply.sharing import Shared
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, EnsembleOptions, Source


@with_plain_keywords
def segment(
    volume: Annotated[
        Volume | Sequence[Volume] | None,
        "A path, an image of nibabel, a dict of channel → either, or a list of these: several cases.",
    ] = None,
    *,
    source: Source,
    results: OptionalFolder,
    model: ModelOption,
    ensemble: EnsembleOptions,
    compute: Compute,
) -> SegmentationResult | list[SegmentationResult]:
    """Segment scans: mask, probability and uncertainty on each scan's own grid.

    Returns the result of the one case that `volume` (or `volumes`, in the words of the command line) names, or a list of
    them, in order, of a list or a table. Nothing is written unless `out` names a folder; then cases that are complete there
    are only read. Options that are None are the recipe's.

    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    with called(volume, source, results, compute) as call:
        check(call.results, ensemble)
        opened = model_for("segment", model, compute)
        assert isinstance(opened, SegmentationModel)
        system = system_of(opened, ensemble, network_batch=compute.network_batch)
        say(system)
        recipe = system.recipe
        fill = recipe.bears_missing_channels
        runs, into = model.runs, call.results
        given = call.given(recipe.channels, task="segment", runs=runs, fill_missing=fill)
        none = replace(given, cases=[])
        job = partial(Segmenting.opened, opened.found, compute, none, into, ensemble, runs=runs)
        folders = segment_cases(given, system, into, ensemble, runs=runs, shared=Shared(compute.sharing, job))
        return call.answer(folders, SegmentationResult)
