"""`train-seg --folds K`: the recipe trained K times, each time without another part of the patients, who are then predicted.

What a run says of patients that it never saw is what thresholds and temperatures of the study are chosen on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg_diff.console import log
from medseg_diff.data.results import holds_result
from medseg_diff.data.tables.manifest import Manifest, folds_by_patient, write_manifest
from medseg_diff.device import processes
from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.run import Run, new_name
from medseg_diff.settings import write_yaml
from medseg_diff.studies import FoldStudy, unfinished_study
from medseg_diff.tasks.apply.segment import segment
from medseg_diff.tasks.options import TrainingRun
from medseg_diff.tasks.train.out_of_fold import calibrate_study
from medseg_diff.tasks.train.train import Material, TrainVerb


def train_folds(
    verb: TrainVerb[SegmentationRecipe],
    data: Path,
    options: TrainingRun,
    folds: int,
    shard: tuple[int, int],
    *,
    device: str,
    data_root: Path | None,
) -> FoldStudy:
    """Train this call's share of the folds into the study `options.out`, predict those whom each has not seen and, once all
    folds are done, by whomever, calibrate the study.

    Raises: what a training raises; ManifestError for fewer patients than folds; CheckpointError where the study was begun
    with another recipe, table or number of folds.
    """
    if processes() > 1:
        raise UsageError("folds are trained one by one, each by one process", fix="share them with --shard K/N")
    given = _that_choose_nothing(verb.material(data, options, data_root=data_root))
    if given.start:
        said = "what the study says of patients that its folds leave out holds only if none of them taught %s"
        log.warning(said, given.start.run.name)
    chosen = _share(folds, shard)
    parts = folds_by_patient(given.manifest, folds)
    study = _begun(given, options, folds)
    for fold in chosen:
        held = len({case.patient for case in parts[fold - 1].of("val")})
        log.info("fold %d of %d: %d patients left out", fold, folds, held)
        words = [*given.command, "--folds", str(folds)]
        words += [] if shard == (1, 1) else ["--shard", "{}/{}".format(*shard)]
        run = verb.train(
            replace(given, manifest=parts[fold - 1], command=words),
            replace(options, out=study.run(fold).folder, parent=options.parent or study.name),
            device=device,
            study=study.folder,
        )
        grid_of = given.recipe.preparation.resample_to
        _predict(study, run, parts[fold - 1], device=device, runs=options.runs, resample_to=grid_of)
    if left := study.unfinished:
        log.info("fold %s of %d: still to be trained", ", ".join(map(str, left)), folds)
        return study
    predicted = {case.name for part in parts for case in part.of("val")}
    if missing := [name for name in predicted if not holds_result(study.out_of_fold / name, "segment")]:
        log.info(
            "%d patients' scans are still being predicted by another process, which finishes the study", len(missing)
        )
        return study
    calibrate_study(study, given.recipe, given.manifest)
    study.finish()
    log.info(
        "every patient as a model that never saw it says: medseg-diff evaluate --predictions %s --data %s",
        study.out_of_fold,
        data,
    )
    log.info("next: medseg-diff %s --model %s --volume PATIENT_FOLDER --out results", verb.task, study.folder)
    return study


def _share(folds: int, shard: tuple[int, int]) -> Sequence[int]:
    """The numbers of the folds of a shard. Raises: UsageError."""
    number, shards = shard
    if not 1 <= number <= shards <= folds:
        raise UsageError(f"there is no shard {number} of {shards} of {folds} folds", fix="write --shard 1/2, 2/2 …")
    return range(number, folds + 1, shards)


def _that_choose_nothing(given: Material[SegmentationRecipe]) -> Material[SegmentationRecipe]:
    """Weights or thresholds that a fold's own patients had chosen would make what is said of these too good: the last
    weights are kept, and the study is calibrated as a whole."""
    validation = given.recipe.validation.but(weights="last", calibration_slices=0).model_dump(mode="json")
    return replace(given, recipe=given.recipe.but(validation=validation))


def _begun(given: Material[SegmentationRecipe], options: TrainingRun, folds: int) -> FoldStudy:
    """The study in --out, or a new one; with `resume` and no --out the newest of the same that is not finished."""
    digest = hashlib.sha256(write_yaml(given.recipe).encode()).hexdigest()
    facts = {
        "task": given.recipe.task,
        "recipe": given.name,
        "recipe_sha256": digest,
        "data_digest": given.manifest.digest(),
        "folds": folds,
    }
    study = FoldStudy(options.out) if options.out else None
    if study is None and options.resume:
        study = unfinished_study(options.runs, facts)
    study = study or FoldStudy(options.runs / new_name(given.name))
    if options.resume == "must" and not study.there:
        found = "study of these folds to go on with"
        raise CheckpointError(
            f"holds no {found}", fix="name its folder with --out, or use --resume auto", file=study.name
        )
    if not study.there and study.folder.exists() and any(study.folder.iterdir()):
        raise UsageError(f"{study.name} already exists and is no study", fix="choose another --out")
    study.begin(**facts)
    return study


def _predict(
    study: FoldStudy, run: Run, manifest: Manifest, *, device: str, runs: Path, resample_to: str | None
) -> None:
    """Segment those whom the run has not seen, into the study's `out_of_fold`; what is complete stays."""
    table = run.folder / "cases.csv"
    write_manifest(table, manifest.rows())
    segment(
        data=table,
        split="val",
        data_root=manifest.root,
        model=run.folder,
        out=study.out_of_fold,
        device=device,
        runs=runs,
        resample_to=resample_to,
    )
