"""`--folds K` of a train verb: the recipe trained K times, each time without another part of the patients.

What a run says of patients that it never saw is what thresholds rest on: those of the whole study, or the run's own.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from medseg_diff.console import log
from medseg_diff.data.tables.manifest import Manifest, folds_by_patient, write_manifest
from medseg_diff.device import processes
from medseg_diff.errors import CheckpointError, UsageError, counted
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.run import Run, new_folder
from medseg_diff.settings import write_yaml
from medseg_diff.studies import FoldStudy, unfinished_study
from medseg_diff.tasks.train.train import Material, TrainVerb
from medseg_diff.tasks.training_options import Folds, TrainingRun
from medseg_diff.tracking.attaching import attach_study
from medseg_diff.training.signals import preemptible

Kind = TypeVar("Kind", SegmentationRecipe, AnomalyRecipe)


class Fold(NamedTuple):
    """A run of a study, and the table in which the patients that it left out are `val`."""

    study: FoldStudy
    run: Run
    manifest: Manifest


@dataclass(frozen=True)
class FoldedVerb(Generic[Kind]):
    """A train verb that may be asked for folds: what each of these learns by (`settled`), what is done with a fold once it
    is trained (`look`), and with all of them, given the table and its path: `conclude` says whether nothing is left to do.
    """

    verb: TrainVerb[Kind]
    settled: Callable[[Material[Kind]], Material[Kind]] = lambda given: given
    look: Callable[[Fold, Material[Kind], TrainingRun, str], None] = lambda fold, given, options, device: None
    conclude: Callable[[FoldStudy, Material[Kind], Path], bool] = lambda study, given, data: True

    @preemptible()
    def run(
        self, data: Path, options: TrainingRun, folds: Folds, *, device: str, data_root: Path | None
    ) -> Run | FoldStudy:
        """Train on the table `data`, once, or once for each fold. Raises: what `TrainVerb.run` and `train_folds` raise."""
        folds.check()
        if folds.folds is None:
            return self.verb.run(data, options, device=device, data_root=data_root)
        given = self.settled(self.verb.material(data, options, data_root=data_root))
        return train_folds(self, given, data, options, folds.folds, folds.shard, device=device)


def train_folds(
    folded: FoldedVerb[Kind],
    given: Material[Kind],
    data: Path,
    options: TrainingRun,
    folds: int,
    shard: tuple[int, int],
    *,
    device: str,
) -> FoldStudy:
    """Train this call's share of the folds into the study `options.out`, look at those whom each has not seen and, once all
    folds are done, by whomever, conclude the study.

    Raises: what a training raises; ManifestError for fewer patients than folds; CheckpointError where the study was begun
    with another recipe, table or number of folds.
    """
    if processes() > 1:
        raise UsageError("folds are trained one by one, each by one process", fix="share them with --shard K/N")
    if given.start:
        said = "the study's results on left-out patients hold only if %s was trained on none of them"
        log.warning(said, given.start.run.name)
    chosen = _share(folds, shard)
    parts = folds_by_patient(given.manifest, folds)
    study = _begun(given, options, folds)
    for number in chosen:
        held = len({case.patient for case in parts[number - 1].of("val")})
        log.info("fold %d of %d: %s left out", number, folds, counted(held, "patient"))
        words = [*given.command, "--folds", str(folds)]
        words += [] if shard == (1, 1) else ["--shard", "{}/{}".format(*shard)]
        run = folded.verb.train(
            replace(given, manifest=parts[number - 1], command=words),
            replace(
                options,
                out=study.run(number).folder,
                parent=options.parent or study.name,
                resume="auto" if options.resume else None,  # the study was found; a fold may not have begun
            ),
            device=device,
            study=study.folder,
        )
        fold = Fold(study, run, parts[number - 1])
        write_manifest(run.folder / "cases.csv", fold.manifest.rows())
        folded.look(fold, given, options, device)
    if left := study.unfinished:
        log.info("fold %s of %d: still to be trained", ", ".join(map(str, left)), folds)
        return study
    if folded.conclude(study, given, data):
        study.finish()
        if options.mlflow:
            attach_study(study, store=options.runs)
        log.info(
            "next: medseg-diff %s --model %s --volume PATIENT_FOLDER --out results", folded.verb.task, study.folder
        )
    return study


def _share(folds: int, shard: tuple[int, int]) -> Sequence[int]:
    """The numbers of the folds of a shard. Raises: UsageError."""
    number, shards = shard
    if not 1 <= number <= shards <= folds:
        raise UsageError(f"shard {number} of {shards} does not exist for {folds} folds", fix="write --shard 1/2, 2/2 …")
    return range(number, folds + 1, shards)


def _begun(given: Material[Kind], options: TrainingRun, folds: int) -> FoldStudy:
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
    if options.resume == "must" and not (study and study.there):
        found = "study of these folds to resume"
        place = study.name if study else options.runs.name
        raise CheckpointError(f"holds no {found}", fix="name its folder with --out, or use --resume auto", file=place)
    study = study or FoldStudy(new_folder(options.runs, given.name))
    # Looked at in this order: another shard may be writing study.json at this moment.
    others = study.folder.is_dir() and any(not path.name.startswith(".") for path in study.folder.iterdir())
    if others and not study.there:
        raise UsageError(f"{study.name} already exists and is not a study", fix="choose another --out")
    study.begin(**facts)
    return study
