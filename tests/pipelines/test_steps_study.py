"""The study of steps and spaces in miniature: every row of its table is filled."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from medseg_diff.diffusion import DDIM, DDPM
from pipelines.steps_study import COLUMNS, Sampler, study
from tests.stories.test_adversarial import TINY_GAN
from tests.stories.test_synthesis import TINY, halves

ROOT = Path(__file__).parents[2]


def test_both_spaces_have_a_row_for_each_sampler_and_every_baseline_has_one(phantoms, tmp_path):
    samplers = (Sampler("DDIM", DDIM(), 2), Sampler("DDPM", DDPM(), 4))
    common = {"quick": True, "overrides": TINY, "baseline": TINY_GAN, "device": "cpu", "mlflow": False}
    table = halves(phantoms)
    found = study(table, tmp_path, number=4, samplers=samplers, **common)
    assert [row[:3] for row in found] == [
        *([space, name, steps] for space in ("latent", "image") for name, steps in (("DDIM", 2), ("DDPM", 4))),
        *(["image", name, 1] for name in ("LSGAN", "VAE-GAN")),
    ]
    written = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert list(written[0]) == list(COLUMNS) and len(written) == 6
    assert all(row[name] != "" for row in written for name in COLUMNS)
    assert all(1 <= float(row["is"]) <= 6 and 0 <= float(row["precision"]) <= 1 for row in written)
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/weights/*")}
    again = study(table, tmp_path, number=4, samplers=(), **common)
    assert [row[:-1] for row in again] == [row[:-1] for row in found[4:]]  # all but the seconds
    assert weights == {path: path.stat().st_mtime_ns for path in weights}  # nothing was trained again


def test_it_runs_as_a_script():
    asked = [sys.executable, "pipelines/steps_study.py", "--help"]
    shown = subprocess.run(asked, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert "--quick" in shown.stdout
