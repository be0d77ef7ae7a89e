"""`segment`: scans in, masks with probability and uncertainty out, on each scan's own grid."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medseg_diff.console import bar, log
from medseg_diff.data.formats.writing import write_volume
from medseg_diff.data.missing import filled, missing_channels, present_channels
from medseg_diff.data.reading import read_case
from medseg_diff.data.tables.manifest import Case
from medseg_diff.data.transforms import Prepared, prepare_case
from medseg_diff.data.views import Patches
from medseg_diff.device import autocast, halved_to_fit, less_at_once
from medseg_diff.errors import UsageError
from medseg_diff.files import check_writable, write_json
from medseg_diff.methods.sampled_segmentation import Ensemble, Plan, sample_masks
from medseg_diff.methods.tiled import Tiled
from medseg_diff.recipes.segmentation import SegmentationRecipe, for_masks, in_tiles
from medseg_diff.recipes.trained import find_model
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.apply.cases import find_cases
from medseg_diff.tasks.apply.channels import refuse_missing
from medseg_diff.tasks.apply.folder import Identity, Results
from medseg_diff.tasks.apply.pseudonyms import names_of, without_names
from medseg_diff.tasks.apply.segmentation_maps import brought_back, suffix_of, write_maps
from medseg_diff.tasks.apply.segmenter import Segmenter, load_segmenter

if TYPE_CHECKING:
    from torch import Tensor

    from medseg_diff.diffusion.denoiser import AnyDenoiser

# In every case of one folder.
SAME = (
    "sha256",
    "recipe_sha256",
    "seed",
    "solver",
    "steps",
    "members",
    "noise",
    "fusion",
    "thresholds",
    "temperatures",
)


def segment(
    volumes: Sequence[str] = (),
    *,
    data: Path | None = None,
    out: Path,
    model: Path | None = None,
    split: str | None = None,
    shard: tuple[int, int] = (1, 1),
    members: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    network_batch: int | None = None,
    members_at_once: int | None = None,
    noise: str | None = None,
    fusion: str | None = None,
    calibrated: bool = False,
    precision: str | None = None,
    resample_to: str | None = None,
    save_members: bool = False,
    overwrite: bool = False,
    keep_going: bool = False,
    pseudonymise: bool = False,
    pseudonym_key: Path | None = None,
    device: str = "auto",
    data_root: Path | None = None,
    runs: Path = Path("runs"),
) -> list[Path]:
    """Segment one case (`volumes`, as on the command line) or the cases of a table; returns the folders written.

    Cases that are complete with the same settings are skipped, and so are those that another process is working on. With
    `keep_going` a bad case is listed in failures.csv and the others go on; its error is raised at the end. With
    `pseudonymise` results carry names made with the secret in `pseudonym_key` (see `tasks.pseudonyms`). `fusion` (mean,
    vote, staple) makes the mask; with `calibrated` the mean at the run's temperature is written too; `noise` is each
    slice's own (independent) or a member's in all slices (shared). All default to the recipe's.
    Raises: UsageError, ManifestError, ImageError, CheckpointError, EnvironmentFault.
    """
    if bool(volumes) == (data is not None):
        raise UsageError("one of --volume and --data is needed", fix="name a scan, or a table of cases")
    check_writable(out)
    run = find_model(model, task="segment", runs=runs)
    findings = {"fusion": fusion, "calibrated": calibrated or None}
    changes: dict[str, int | str | None] = {
        "members": members,
        "steps": steps,
        "network_batch": network_batch,
        "members_at_once": members_at_once,
        "noise": noise,
    }
    segmenter = load_segmenter(run, seed=seed, device=device, precision=precision, findings=findings, **changes)
    plan = segmenter.plan
    log.info("model %s (%s): %d steps × %d members", run.name, run.facts["recipe"], len(plan.times) - 1, plan.members)
    recipe, fill = segmenter.recipe, segmenter.recipe.bears_missing_channels
    cases = find_cases(
        volumes, data, recipe.channels, split=split, data_root=data_root, shard=shard, fill_missing=fill, runs=runs
    )
    if not keep_going:
        refuse_missing(cases, recipe.channels, fill_missing=fill, runs=runs)
    identity = Identity({key: segmenter.facts[key] for key in SAME})
    called = names_of(pseudonymise, pseudonym_key, out=out, runs=runs)
    results = Results(out, identity, overwrite=overwrite, keep_going=keep_going, called=called)
    results.check_room(cases, maps=_maps_of_a_region(segmenter, save_members) * len(recipe.regions))
    results.work_through(
        "segmenting",
        cases,
        lambda case, folder: segment_case(
            case, segmenter, folder, save_members=save_members, resample_to=resample_to, runs=runs
        ),
    )
    log.info("results in %s: open mask.nii.gz over the scan in 3D Slicer or ITK-SNAP", out)
    return [results.folder(case) for case in cases]


def segment_case(
    case: Case,
    segmenter: Segmenter,
    folder: Path,
    *,
    save_members: bool = False,
    resample_to: str | None = None,
    runs: Path = Path("runs"),
) -> None:
    """Read, sample, bring back onto the case's grid, write; case.json last, because it says that the case is complete.

    In the results the case is called as `folder` is. Where memory runs out the network is given less at once.
    """
    started = time.perf_counter()
    recipe = segmenter.recipe
    _forget(folder)
    refuse_missing([case], recipe.channels, fill_missing=recipe.bears_missing_channels, runs=runs)
    missing = missing_channels(case, recipe.channels)
    images = read_case(case, present_channels(case, recipe.channels), reference=False, resample_to=resample_to)
    prepared = filled(prepare_case(images, recipe.preparation), recipe.channels)
    warnings = list(prepared.warnings)
    if missing:
        warnings.append(f"lacks {', '.join(missing)}: the background stands for it, as in training by channel dropout")
    for warning in warnings:
        log.warning("[%s] %s", case.name, warning)
    read_seconds = time.perf_counter() - started
    (ensemble, passes), batch = halved_to_fit(
        lambda batch: _sample(case.name, prepared, segmenter.at_once(batch), folder if save_members else None),
        segmenter.plan.network_batch,
    )
    if batch < segmenter.plan.network_batch:
        warnings.append(less_at_once(batch, segmenter.plan.network_batch))
        log.warning("[%s] %s", case.name, warnings[-1])
    sample_seconds = time.perf_counter() - started - read_seconds
    report = write_maps(ensemble, prepared, segmenter, folder)
    seconds = {
        "read": round(read_seconds, 2),
        "sample": round(sample_seconds, 2),
        "all": round(time.perf_counter() - started, 2),
    }
    warnings = [without_names(warning, case, folder.name) for warning in warnings]
    facts = segmenter.facts | report | {"warnings": warnings, "network_batch": batch}
    facts |= {"network_passes": passes, "seconds": seconds}
    seen = {"case": folder.name, "channels": list(recipe.channels), "missing_channels": list(missing)}
    write_json(folder / "case.json", seen | facts)


def _maps_of_a_region(segmenter: Segmenter, save_members: bool) -> int:
    """Float maps that a case takes on the disk for each region; masks take next to nothing."""
    return 4 + segmenter.findings.calibrated + (segmenter.plan.members if save_members else 0)


def _forget(folder: Path) -> None:
    """Remove what says that the case is complete, and what this time may not write: masks, calibrated maps, members."""
    (folder / "case.json").unlink(missing_ok=True)
    for pattern in ("mask*.nii.gz", "calibrated*.nii.gz", "members/[0-9]*.nii.gz"):
        for path in folder.glob(pattern):
            path.unlink()


class _Work(NamedTuple):
    """How the samples of a case are drawn and what that takes: network passes, and the steps of a progress bar, which
    counts slices or, where volumes are drawn, tiles at every step."""

    denoiser: "AnyDenoiser"
    plan: Plan
    passes: int
    total: int


def _work(segmenter: Segmenter, plan: Plan, slices: Sequence[int], size: Sequence[int]) -> _Work:
    """Slices are batches of the network by themselves; volumes are cut into tiles, which are."""
    steps, view = len(plan.times) - 1, segmenter.recipe.view
    if not isinstance(view, Patches):
        return _Work(for_masks(segmenter.denoiser), plan, plan.batches(slices) * steps, len(slices) * plan.members)
    tiled = in_tiles(segmenter.denoiser, view, batch=plan.network_batch)
    plan = replace(plan, network_batch=max(1, plan.network_batch // tiled.tiles(size)))  # volumes in one walk
    walked = plan.batches(slices) * steps
    passes, tiles = tiled.passes(plan.network_batch, size), plan.network_batch * tiled.tiles(size)
    return _Work(tiled, plan, walked * passes, walked * tiles)


def _sample(case: str, prepared: Prepared, segmenter: Segmenter, folder: Path | None) -> tuple[Ensemble, int]:
    """The ensemble over what holds brain, and the network passes it took; members go to disk as they are finished, where
    a folder is given."""
    recipe, plan, view = segmenter.recipe, segmenter.plan, segmenter.recipe.view
    images = view.conditions(prepared.image, background=recipe.preparation.background)
    images = images.to(segmenter.device).contiguous()
    slices, regions, size = view.for_sampling(prepared.brain), len(recipe.regions), images.shape[2:]
    if folder is not None:
        # One member after the other: then only one has to be held.
        plan = replace(plan, members_at_once=1)
    keep_masks = segmenter.findings.fusion == "staple"
    ensemble = Ensemble(len(images), regions, size, plan.members, segmenter.device, keep_masks=keep_masks)
    keeper = _MemberWriter(prepared, recipe, folder, (len(images), regions, *size)) if folder is not None else None

    def own_seed(z: int, member: int) -> int:
        return seed_of(segmenter.seed, case, *(() if plan.shared_noise else view.owner(z)), member)

    work = _work(segmenter, plan, slices, size)
    with autocast(segmenter.device, segmenter.precision), bar(f"  {case}", work.total) as advance:
        if isinstance(work.denoiser, Tiled):
            work.denoiser.advance = advance
        finished = (lambda samples: None) if isinstance(work.denoiser, Tiled) else advance
        for place, probability in sample_masks(
            work.denoiser, images, slices, work.plan, regions=regions, seed_of=own_seed, advance=finished
        ):
            ensemble.add(place, probability)
            if keeper:
                keeper.add(place.slice, place.member, probability)
    if keeper:
        keeper.close()
    return ensemble, work.passes


class _MemberWriter:
    """Collects the slices of one member, `shape` [N, R, *S] in all, and writes it when the next begins."""

    def __init__(self, prepared: Prepared, recipe: SegmentationRecipe, folder: Path, shape: Sequence[int]) -> None:
        self.prepared, self.recipe, self.folder, self.shape = prepared, recipe, folder, shape
        self.member: int | None = None

    def add(self, z: int, member: int, probability: "Tensor") -> None:
        import torch

        if member != self.member:
            self.close()
            self.member, self.slices = member, torch.zeros(self.shape)
        self.slices[z] = probability.cpu()

    def close(self) -> None:
        if self.member is None:
            return
        maps = brought_back(self.prepared, self.recipe, self.slices)
        for region, values in zip(self.recipe.regions, maps, strict=True):
            name = f"{self.member:02d}{suffix_of(self.recipe, region)}.nii.gz"
            write_volume(self.folder / "members" / name, values, self.prepared.native_affine)
