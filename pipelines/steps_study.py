"""How many steps does synthesis need, and in which space? The table of the field's surveys, filled by one command.

python pipelines/steps_study.py TABLE.csv [--quick] [--number N] [--out DIR] [--baseline key=value] [key=value …]

The same recipe is trained in its latent space and in the image's own, and draws with DDIM in 50 and 200 steps and with DDPM
in all 1000, from one checkpoint each; beside them stand an LSGAN and a VAE-GAN, whose generators take one step. Fréchet
distance (FID, by the latent run's features, beside its floor), the same by place (sFID), the inception-style score,
precision, recall, seconds. The score's classes are decades of age, by the regressor and its own error on real scans; none of
these figures is Inception's. Run again with the same --out, it goes on where it stopped.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medseg_diff import train_synth
from medseg_diff.data.tables.manifest import read_manifest
from medseg_diff.diffusion import DDIM, DDPM, AnySolver
from medseg_diff.evaluation.synthesis import REGRESSOR, Floats, Measured
from medseg_diff.files import write_table
from medseg_diff.metrics.realism import score
from medseg_diff.tasks.apply.audited import Audited, RealScans, check_splits
from medseg_diff.tasks.apply.synthesis_system import SynthesisSystem, open_synthesis
from medseg_diff.tasks.options import Model
from medseg_diff.tasks.synthesis_options import SynthesisOptions

AGE, CLASSES = "age_years", 6
IMAGE = ("space={kind: image}", "network.stem=4")  # voxels are folded as the latent's are
COLUMNS = ("space", "solver", "steps", "fid", "fid_floor", "sfid", "sfid_floor", "is", "precision", "recall", "seconds")


class Sampler(NamedTuple):
    """How the same checkpoint draws."""

    name: str
    solver: AnySolver
    steps: int


BASELINES = {"LSGAN": "lsgan", "VAE-GAN": "vae_gan"}  # and their recipes
SAMPLERS = (Sampler("DDIM", DDIM(), 50), Sampler("DDIM", DDIM(), 200), Sampler("DDPM", DDPM(), 1000))


def study(
    table: Path,
    out: Path,
    *,
    quick: bool = False,
    number: int = 100,
    samplers: Sequence[Sampler] = SAMPLERS,
    overrides: Sequence[str] = (),
    baseline: Sequence[str] = (),
    **compute: Any,
) -> list[list[Any]]:
    """The rows of OUT/steps.csv. `overrides` are laid over the diffusion recipe, `baseline` over those of the baselines.
    Raises: what the verbs raise."""
    kind, runs = "quick/" if quick else "", out / "runs"
    training = {"runs": runs, "device": "auto", "mlflow": True, "resume": "auto"} | compute

    def trained(name: str, config: str, laid_over: Sequence[str]) -> SynthesisSystem:
        run = train_synth(table, config=f"{kind}{config}", out=runs / name, overrides=laid_over, **training)
        return open_synthesis(Model(model=run.folder), SynthesisOptions(), device=training["device"])

    spaces = {"latent": overrides, "image": (*overrides, *IMAGE)}
    systems = {space: trained(space, "brain_ldm_3d", laid_over) for space, laid_over in spaces.items()}
    once = {name: trained(config, config, baseline) for name, config in BASELINES.items()}
    audited = judge(table, systems["latent"], number)
    rows = [row for space, system in systems.items() for row in drawn_by(system, space, audited, samplers)]
    for name, system in once.items():
        rows += drawn_by(system, "image", audited, [Sampler(name, DDIM(), 1)])
    write_table(out / "steps.csv", COLUMNS, rows)
    return rows


def judge(table: Path, system: SynthesisSystem, number: int) -> Audited:
    """Held-out scans and the features of one run, by which all are judged."""
    manifest = read_manifest(table)
    held = manifest.of("test")
    check_splits({"test": held}, manifest.file)
    return Audited(system, RealScans.of(held, system, most=number), number, seed=0)


def drawn_by(system: SynthesisSystem, space: str, audited: Audited, samplers: Sequence[Sampler]) -> Iterator[list[Any]]:
    """A row for each sampler."""
    for sampler in samplers:
        times = system.recipe.schedule.times(sampler.steps)
        way = replace(system, drawing=replace(system.drawing, solver=sampler.solver, times=times))
        started = time.perf_counter()
        images = audited.anybody(way, lambda count: None)
        seconds = (time.perf_counter() - started) / len(images)
        found = audited.like_real(images)
        sure = score(decades(audited, audited.measure(images)))
        distances = [found[f"{which}frechet_{what}"] for which in ("", "spatial_") for what in ("distance", "floor")]
        quality = [*distances, round(sure, 4), found["precision"], found["recall"]]
        yield [space, sampler.name, sampler.steps, *quality, round(seconds, 3)]


def decades(audited: Audited, measured: Measured) -> Floats:
    """p(class of age) [N, 6] by the regressor, as unsure as its error on real scans makes it."""
    low, high = audited.known.range_of(AGE)
    error = float(np.std(audited.real.covariates[REGRESSOR][AGE] - audited.held.covariates[AGE]))
    middles = low + (np.arange(CLASSES) + 0.5) * (high - low) / CLASSES
    p = np.exp(-0.5 * ((measured.covariates[REGRESSOR][AGE][:, None] - middles) / max(error, 1e-6)) ** 2) + 1e-12
    shares: Floats = p / p.sum(axis=1, keepdims=True)
    return shares


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, help="table of cases with the recipe's covariates and a split `test`")
    parser.add_argument("--out", type=Path, default=Path("runs/steps_study"))
    parser.add_argument("--number", type=int, default=100, help="scans drawn by each sampler")
    parser.add_argument("--quick", action="store_true", help="4 mm and small networks: an hour or two on two cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--baseline", action="append", default=[], metavar="key=value", help="laid over the baselines")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the diffusion recipe")
    chosen = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for row in [COLUMNS, *study(chosen.pop("table"), chosen.pop("out"), **chosen)]:
        print("  ".join(f"{cell:<10}" for cell in row))


if __name__ == "__main__":
    main()
