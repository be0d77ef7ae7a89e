"""`segment`: scans in, masks with probability and uncertainty out, on each scan's own grid."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg_diff.data import geometry
from medseg_diff.data.inputs import find_case
from medseg_diff.data.manifest import Case, read_manifest
from medseg_diff.data.reading import read_case
from medseg_diff.data.transforms import Prepared, prepare_case, restore
from medseg_diff.data.writing import write_volume
from medseg_diff.errors import MedsegError, UsageError
from medseg_diff.files import write_json
from medseg_diff.methods.sampled_segmentation import Ensemble, Plan, sample_masks, uncertainty_maps
from medseg_diff.recipes import SegmentationRecipe, for_masks
from medseg_diff.run import find_run
from medseg_diff.seeds import seed_of
from medseg_diff.tasks.console import bar, log
from medseg_diff.tasks.device import autocast
from medseg_diff.tasks.findings import find_mask, slices_to_review, volume_interval
from medseg_diff.tasks.segmenter import Segmenter, load_segmenter

if TYPE_CHECKING:
    from torch import Tensor


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
    precision: str | None = None,
    resample_to: str | None = None,
    save_members: bool = False,
    overwrite: bool = False,
    keep_going: bool = False,
    device: str = "auto",
    data_root: Path | None = None,
    runs: Path = Path("runs"),
) -> list[Path]:
    """Segment one case (`volumes`, as on the command line) or the cases of a table; returns the folders written.

    Cases that are complete with the same settings are skipped. With `keep_going` a bad case is reported and the others go
    on; the first error is raised at the end.
    Raises: UsageError, ManifestError, ImageError, CheckpointError.
    """
    if bool(volumes) == (data is not None):
        raise UsageError("one of --volume and --data is needed", fix="name a scan, or a table of cases")
    run = find_run(model, task="segment", runs=runs)
    changes = {"members": members, "steps": steps, "network_batch": network_batch, "members_at_once": members_at_once}
    segmenter = load_segmenter(run, seed=seed, device=device, precision=precision, **changes)
    plan = segmenter.plan
    log.info("model %s (%s): %d steps × %d members", run.name, run.facts["recipe"], len(plan.times) - 1, plan.members)
    cases = find_cases(volumes, data, segmenter.recipe.channels, split=split, data_root=data_root)
    number, shards = shard
    if not 1 <= number <= shards:
        raise UsageError(f"there is no shard {number} of {shards}", fix="write --shard 1/2, 2/2 …")
    wanted = [case for case in cases[number - 1 :: shards] if overwrite or not is_complete(out / case.name, segmenter)]
    if len(wanted) < len(cases[number - 1 :: shards]):
        log.info("%d cases are complete already", len(cases[number - 1 :: shards]) - len(wanted))
    failures: list[MedsegError] = []
    with bar("segmenting", len(wanted)) as advance:
        for case in wanted:
            try:
                segment_case(case, segmenter, out, save_members=save_members, resample_to=resample_to)
            except MedsegError as error:
                if not keep_going:
                    raise
                failures.append(error)
                log.warning("error: %s", "; ".join(error.lines))
            advance(note=case.name)
    if failures:
        raise failures[0]
    log.info("results in %s: open mask.nii.gz over the scan in 3D Slicer or ITK-SNAP", out)
    return [out / case.name for case in cases[number - 1 :: shards]]


def find_cases(
    volumes: Sequence[str], data: Path | None, channels: Sequence[str], *, split: str | None, data_root: Path | None
) -> list[Case]:
    """The cases that were asked for. Raises: UsageError where a split holds none."""
    if data is None:
        case, sentence = find_case(volumes, channels)
        log.info("%s", sentence)
        return [case]
    manifest = read_manifest(data, data_root=data_root)
    cases = [case for case in manifest.cases if split is None or case.split == split]
    if not cases:
        raise UsageError(f"no case has split `{split}`", fix="use another --split", file=manifest.file)
    return cases


def is_complete(folder: Path, segmenter: Segmenter) -> bool:
    """Whether the folder holds this case, done with the same model and numbers.

    Raises: UsageError where it was done with others: mixing two settings in one folder helps nobody.
    """
    path = folder / "case.json"
    if not path.is_file():
        return False
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    if not isinstance(known, dict):
        return False
    for key in ("sha256", "recipe_sha256", "seed", "solver", "steps", "members"):
        if known.get(key) != segmenter.facts[key]:
            raise UsageError(
                f"was made with {key} {known.get(key)}, not {segmenter.facts[key]}",
                fix="use --overwrite, or another --out",
                case=folder.name,
                file="case.json",
            )
    return True


def segment_case(
    case: Case, segmenter: Segmenter, out: Path, *, save_members: bool = False, resample_to: str | None = None
) -> None:
    """Read, sample, bring back onto the case's grid, write; case.json last, because it says that the case is complete."""
    started = time.perf_counter()
    recipe, folder = segmenter.recipe, out / case.name
    _forget(folder)
    images = read_case(case, recipe.channels, reference=False, resample_to=resample_to)
    prepared = prepare_case(images, recipe.preparation)
    for warning in prepared.warnings:
        log.warning("[%s] %s", case.name, warning)
    read_seconds = time.perf_counter() - started
    ensemble, slices = _sample(case.name, prepared, segmenter, folder if save_members else None)
    sample_seconds = time.perf_counter() - started - read_seconds
    report = _write(ensemble, prepared, segmenter, folder)
    passes = segmenter.plan.batches(slices) * (len(segmenter.plan.times) - 1) if slices else 0
    seconds = {
        "read": round(read_seconds, 2),
        "sample": round(sample_seconds, 2),
        "all": round(time.perf_counter() - started, 2),
    }
    facts = (
        segmenter.facts | report | {"warnings": list(prepared.warnings), "network_passes": passes, "seconds": seconds}
    )
    write_json(folder / "case.json", {"case": case.name, "channels": list(recipe.channels), **facts})


def _forget(folder: Path) -> None:
    """Remove what says that the case is complete, and the members of an earlier, perhaps larger, ensemble."""
    (folder / "case.json").unlink(missing_ok=True)
    for path in (folder / "members").glob("[0-9]*.nii.gz"):
        path.unlink()


def _sample(case: str, prepared: Prepared, segmenter: Segmenter, folder: Path | None) -> tuple[Ensemble, list[int]]:
    """The ensemble over the slices that hold brain; members go to disk as they are finished, where a folder is given."""
    recipe, plan, view = segmenter.recipe, segmenter.plan, segmenter.recipe.view
    images = view.cut(prepared.image).to(segmenter.device).contiguous()
    slices = view.for_sampling(prepared.brain)
    regions = len(recipe.regions)
    if folder is not None:
        # One member after the other: then only one has to be held.
        plan = Plan(plan.times, plan.solver, plan.members, plan.network_batch, members_at_once=1)
    ensemble = Ensemble(len(images), regions, images.shape[2:], plan.members, segmenter.device)
    keeper = _MemberWriter(prepared, recipe, folder, len(images)) if folder is not None else None

    def own_seed(z: int, member: int) -> int:
        return seed_of(segmenter.seed, case, z, member)

    total = len(slices) * plan.members
    with autocast(segmenter.device, segmenter.precision), bar(f"  {case}", total) as advance:
        denoiser = for_masks(segmenter.denoiser)
        for place, probability in sample_masks(
            denoiser, images, slices, plan, regions=regions, seed_of=own_seed, advance=advance
        ):
            ensemble.add(place, probability)
            if keeper:
                keeper.add(place.slice, place.member, probability)
    if keeper:
        keeper.close()
    return ensemble, slices


class _MemberWriter:
    """Collects the slices of one member and writes it when the next begins."""

    def __init__(self, prepared: Prepared, recipe: SegmentationRecipe, folder: Path, slices: int) -> None:
        self.prepared, self.recipe, self.folder = prepared, recipe, folder
        self.shape = (slices, len(recipe.regions), *prepared.image.shape[1:3])
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
        maps = restore(self.prepared, self.recipe.view.join(self.slices))
        for region, values in zip(self.recipe.regions, maps, strict=True):
            name = f"{self.member:02d}{_suffix(self.recipe, region)}.nii.gz"
            write_volume(self.folder / "members" / name, np.clip(values, 0, 1), self.prepared.native_affine)


def _write(ensemble: Ensemble, prepared: Prepared, segmenter: Segmenter, folder: Path) -> dict[str, Any]:
    """The maps on the case's own grid, and what case.json says of them.

    Mean and second moment are brought back and the other maps follow from them there, so that spread + ambiguity =
    uncertainty = m (1 - m) holds on the grid that is written.
    """
    import torch

    recipe, affine = segmenter.recipe, prepared.native_affine
    regions, voxel_ml = list(recipe.regions), geometry.voxel_ml(prepared.native_affine)
    moments = torch.cat([ensemble.mean, ensemble.second_moment], dim=1).cpu()
    back = np.clip(restore(prepared, recipe.view.join(moments)), 0, 1)
    labels = np.zeros(prepared.native_shape, dtype=np.uint8)
    outer: npt.NDArray[np.bool_] | None = None
    report: dict[str, Any] = {"volume_ml": {}, "agreement": {}, "removed": {}, "slices_to_review": {}}
    for number, (region, agreement) in enumerate(zip(regions, ensemble.agreement(), strict=True)):
        mean = back[number]
        maps = uncertainty_maps(torch.from_numpy(mean), torch.from_numpy(back[len(regions) + number]))
        mask, removed = find_mask(mean, recipe.findings, voxel_ml)
        mask = mask if outer is None else mask & outer
        outer = mask
        labels += mask
        for kind, values in {"probability": mean, **{kind: value.numpy() for kind, value in maps.items()}}.items():
            write_volume(folder / f"{kind}{_suffix(recipe, region)}.nii.gz", values, affine)
        counts = ensemble.voxels[:, number].tolist()
        report["volume_ml"][region] = volume_interval(counts, prepared.voxel_ml) | {
            "mask": round(float(mask.sum()) * voxel_ml, 3)
        }
        report["agreement"][region] = round(agreement, 4)
        report["removed"][region] = {"components": removed.components, "volume_ml": round(removed.volume_ml, 3)}
        report["slices_to_review"][region] = slices_to_review(maps["uncertainty"].numpy(), affine, voxel_ml)
    write_volume(folder / "mask.nii.gz", labels, affine)
    return report


def _suffix(recipe: SegmentationRecipe, region: str) -> str:
    return "" if len(recipe.regions) == 1 else f"_{region}"
