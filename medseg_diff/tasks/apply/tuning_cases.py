"""Which cases a model is tuned on, and what is known of them: whether it has learned from their patients."""

import csv
import hashlib
from dataclasses import dataclass, replace

import numpy as np

from medseg_diff.console import log
from medseg_diff.data.digests import digest_of_image
from medseg_diff.data.reading import read_labels
from medseg_diff.data.tables.manifest import SPLITS, Case, Manifest, split_by_patient
from medseg_diff.errors import ManifestError, UsageError, counted
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.tuned import TunedOn
from medseg_diff.studies import FoundModel, study_of

FEW_PATIENTS = 5


@dataclass(frozen=True)
class Chosen:
    """The cases of a split of a table, all with a reference, and the names of the patients that the model has learned
    from, None where that cannot be told."""

    manifest: Manifest
    split: str
    cases: list[Case]
    learned: set[str] | None

    @property
    def patients(self) -> set[str]:
        return {case.patient for case in self.cases}

    @property
    def in_words(self) -> str:
        cases, patients = counted(len(self.cases), "case"), counted(len(self.patients), "patient")
        return f"{cases} of {patients} (split {self.split} of {self.manifest.file})"

    def digest(self) -> str:
        """Of the rows of the cases and of every file that they name. Raises: ImageError where one cannot be read."""
        rows = replace(self.manifest, cases=tuple(self.cases)).digest()
        files = [digest_of_image(path) for case in self.cases for path in case.paths.values()]
        return hashlib.sha256("".join([rows, *files]).encode()).hexdigest()

    def warn(self, model: str) -> None:
        """Of patients who say too little, or what is too good to be true."""
        met = self.patients & (self.learned or set())
        if self.learned is None:
            log.info("whether %s was trained on some of them is unknown: its table was another", model)
        if met:
            log.warning(
                "%s was trained on %d of %s: it is worse on new ones and may need another setting there, so tune "
                "on patients that it has never seen",
                model,
                len(met),
                counted(len(self.patients), "patient"),
            )
        if len(self.patients) < FEW_PATIENTS:
            said = "only %s: differences as small as those allowed may be chance"
            log.warning(said, counted(len(self.patients), "patient"))

    def facts(self, resample_to: str | None) -> TunedOn:
        """What tuned.json says of them."""
        return TunedOn(
            table=self.manifest.file,
            digest=self.digest(),
            split=self.split,
            resample_to=resample_to,
            cases=len(self.cases),
            patients=len(self.patients),
            trained_on=None if self.learned is None else len(self.patients & self.learned),
        )


def cases_to_tune_on(manifest: Manifest, found: FoundModel, split: str) -> Chosen:
    """Those of the split that have a reference. A table without splits has the training's, where it is its table.

    Raises: UsageError for a split that is none; ManifestError where there are none, or no splits.
    """
    if split not in SPLITS:
        raise UsageError(f"`{split}` is not a split", fix=f"use one of {', '.join(SPLITS)}")
    digests = {_data_digest(found), *(run.facts.get("data_digest") for run in found.runs)}
    if not any(case.split for case in manifest.cases):
        drawn = split_by_patient(manifest) or manifest
        if not digests & {manifest.digest(), drawn.digest()}:
            raise ManifestError(
                f"has no column split, and is not the table that {found.name} was trained on",
                fix=f"add a column split, `{split}` for the cases to tune on",
                file=manifest.file,
            )
        manifest = drawn
    there = [case for case in manifest.cases if case.split == split]
    cases = [case for case in there if case.references]
    if not cases:
        what = f"no case of split {split} has a reference" if there else f"no case has split {split}"
        raise ManifestError(
            what,
            fix="fill the columns split and seg for patients to tune on, or name another --split",
            file=manifest.file,
        )
    if len(cases) < len(there):
        log.info("left out for lack of a reference: %d of %s", len(there) - len(cases), counted(len(there), "case"))
    return Chosen(manifest, split, cases, _learned(found, manifest, digests))


def _data_digest(found: FoundModel) -> str | None:
    """Of the table that a study was trained on; None of a run, which says so itself."""
    study = study_of(found.runs[0]) if len(found.runs) > 1 else None
    return study.facts.get("data_digest") if study else None


def _learned(found: FoundModel, manifest: Manifest, digests: set[str | None]) -> set[str] | None:
    """The patients that some run of the model has learned from: those of a fold stand in its cases.csv, else they are
    the table's, where it is the one of the training."""
    learned = set[str]()
    for run in found.runs:
        table = run.folder / "cases.csv"
        if table.is_file():
            with table.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            learned |= {row.get("patient") or row.get("case") or "" for row in rows if row.get("split") == "train"}
        elif manifest.digest() in digests:
            learned |= {case.patient for case in manifest.of("train") or manifest.cases}
        else:
            return None
    return learned


def refuse_without_lesion(chosen: Chosen, recipe: SegmentationRecipe) -> None:
    """Raises: ManifestError where no reference marks anything, before hours are spent; ImageError."""
    labels = sorted({label for labels in recipe.regions.values() for label in labels})
    for case in chosen.cases:
        for name, path in case.references.items():
            if np.isin(read_labels(path, case=case.name, channel=name).voxels, labels).any():
                return
    found = f"no reference of split {chosen.split} marks any of {', '.join(recipe.regions)}"
    raise ManifestError(found, fix="tune on cases with a lesion", file=chosen.manifest.file)
