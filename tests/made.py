"""A made-up study, balls in brains that are balls, whose numbers are known by construction."""

import csv
import json
from pathlib import Path

import numpy as np

from medseg_diff.data.formats.writing import write_volume
from medseg_diff.methods.labels import labels_of_masks
from medseg_diff.tasks.evaluate import evaluate

LPS = np.diag([-2.0, -2.0, 3.0, 1.0])
SHAPE = (24, 22, 16)


def ball(centre, radius):
    x, y, z = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2


BRAIN, TUMOUR = ball((12, 11, 8), 7.5), ball((12, 11, 8), 3)
NOTHING = np.zeros(SHAPE, bool)


def facts_of(regions):
    """What case.json says of a mask of these regions."""
    labels = [label._asdict() for label in labels_of_masks(regions, {}, {})]
    return {"task": "segment", "schema": 3, "regions": regions, "mask_labels": labels}


class Study:
    """A folder of images with their table, and a folder of predictions."""

    def __init__(self, folder: Path):
        self.folder, self.predictions, self.table, self.rows = folder, folder / "out", folder / "brains.csv", []

    def add(self, name, *, seg=TUMOUR, raters=(), labels=1, affine=LPS, twin=None, **columns):
        image = np.where(BRAIN, 100 + np.arange(BRAIN.size).reshape(SHAPE) % 7, -3).astype(np.float32)
        volumes = {"flair": image}
        if seg is not None:
            volumes["seg"] = (seg * np.asarray(labels)).astype(np.uint8)
        volumes |= {f"seg_{number}": rater.astype(np.uint8) for number, rater in enumerate(raters, start=1)}
        volumes |= {"healthy_flair": (image + twin).astype(np.float32)} if twin is not None else {}
        for column, voxels in volumes.items():
            write_volume(self.folder / name / f"{column}.nii.gz", voxels, LPS if "flair" in column else affine)
        self.rows.append({"case": name, **columns, **{column: f"{name}/{column}.nii.gz" for column in volumes}})
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        with self.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        return self

    def predict(self, name, mask=TUMOUR, *, probability=None, members=(), regions=None, affine=LPS):
        folder = self.predictions / name
        write_volume(folder / "mask.nii.gz", mask.astype(np.uint8), affine)
        if probability is not None:
            probability = probability.astype(np.float32)
            write_volume(folder / "probability.nii.gz", probability, affine)
            write_volume(folder / "uncertainty.nii.gz", probability * (1 - probability), affine)
        for number, member in enumerate(members):
            write_volume(folder / "members" / f"{number:02d}.nii.gz", member.astype(np.float32), affine)
        (folder / "case.json").write_text(json.dumps(facts_of(regions or {"whole_tumour": [1, 2, 3, 4]})))
        return self

    def score(self, name, score, *, threshold=0.5, diseased=None, baselines=None, **facts):
        """An anomaly map with its mask, and baselines with the threshold that was stored for each."""
        folder, baselines = self.predictions / name, baselines or {}
        write_volume(folder / "anomaly.nii.gz", score.astype(np.float32), LPS)
        write_volume(folder / "anomaly_mask.nii.gz", (score > threshold).astype(np.uint8), LPS)
        for baseline, (values, _) in baselines.items():
            write_volume(folder / "baselines" / f"{baseline}.nii.gz", values.astype(np.float32), LPS)
        known = {"task": "anomaly", "schema": 3, "channels": ["flair"], "resample_to": None, "diseased": diseased}
        known |= {"findings": {"smallest_ml": 0.05}, "threshold": {"value": threshold}, "score": float(score.max())}
        known["baseline_thresholds"] = {baseline: cut for baseline, (_, cut) in baselines.items()}
        (folder / "case.json").write_text(json.dumps(known | facts))
        return self

    def evaluate(self, **options):
        return evaluate(self.predictions, self.table, **{"figure": False, **options})
