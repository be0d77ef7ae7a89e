"""`medseg_diff.anomaly`: scans by path or from memory → anomaly maps as arrays, and files where asked for."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

from medseg_diff.api.call import OptionalFolder, called
from medseg_diff.api.models import ModelOption, model_for
from medseg_diff.api.results import AnomalyResult
from medseg_diff.api.volumes import Volume
from medseg_diff.files import check_writable
from medseg_diff.tasks.apply.anomaly import AnomalyMapping, map_cases, say
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyModel, ensemble_of
from medseg_diff.tasks.apply.channels import warn_of_other_grid
from medseg_diff.tasks.apply.sharing import Shared
from medseg_diff.tasks.keywords import with_plain_keywords
from medseg_diff.tasks.options import Compute, MapOptions, Source


@with_plain_keywords
def anomaly(
    volume: Annotated[
        Volume | Sequence[Volume] | None,
        "A path, an image of nibabel, a dict of channel → either, or a list of these: several cases.",
    ] = None,
    *,
    source: Source,
    results: OptionalFolder,
    model: ModelOption,
    maps: MapOptions,
    compute: Compute,
) -> AnomalyResult | list[AnomalyResult]:
    """Map anomalies: score, mask, lesions and the pseudo-healthy brain on each scan's own grid.

    Returns the result of the one case that `volume` (or `volumes`, in the words of the command line) names, or a list of
    them, in order, of a list or a table. Nothing is written unless `out` names a folder; then cases that are complete there
    are only read.

    Raises: UsageError, ConfigError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    with called(volume, source, results, compute) as call:
        check_writable(call.results.out)
        opened = model_for("anomaly", model, compute)
        assert isinstance(opened, AnomalyModel)
        ensemble = ensemble_of(opened, maps.overrides, seed=maps.seed, network_batch=compute.network_batch)
        say(ensemble)
        runs, into = model.runs, call.results
        given = call.given(ensemble.recipe.channels, task="anomaly", runs=runs)
        warn_of_other_grid(ensemble.recipe, source.resample_to)
        job = partial(AnomalyMapping.opened, opened.found, compute, replace(given, cases=[]), into, maps, runs=runs)
        folders = map_cases(given, ensemble, into, maps, runs=runs, shared=Shared(compute.sharing, job))
        return call.answer(folders, AnomalyResult)
