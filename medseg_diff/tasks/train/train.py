"""What every train verb does: recipe and table read, phases trained into a run folder, curves drawn, MLflow told."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar, cast

from torch import nn

from medseg_diff.console import duration, log
from medseg_diff.data.tables.manifest import Manifest, read_manifest
from medseg_diff.diffusion import Denoiser
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.enhancement import EnhancementRecipe
from medseg_diff.recipes.lookup import AnyRecipe, Task, load_recipe
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.synthesis import SynthesisRecipe
from medseg_diff.recipes.warm_start import WarmStart
from medseg_diff.run import Point, Run
from medseg_diff.tasks.train.study import check_channels, with_splits
from medseg_diff.tasks.training_options import TrainingRun
from medseg_diff.tracking import Mirror
from medseg_diff.training.estimate import LONG_SECONDS, Work
from medseg_diff.training.fit import Progress
from medseg_diff.training.job import Bench, Job, Phase, train
from medseg_diff.training.signals import preemptible
from medseg_diff.training.watcher import Watcher

Kind = TypeVar("Kind", SegmentationRecipe, AnomalyRecipe, SynthesisRecipe, EnhancementRecipe)


@dataclass(frozen=True)
class Material(Generic[Kind]):
    """What a training is given: its recipe and the recipe's name, the table with its splits, the folder of prepared cases,
    the words that ask for the same again, but for --runs, --device, --out and --resume, and the weights that it begins with.
    """

    recipe: Kind
    name: str
    manifest: Manifest
    cache: Path
    command: Sequence[str]
    start: WarmStart | None = None

    def warmed(self, part: str, network: nn.Module) -> None:
        """Give the untrained `part` of the recipe the weights that it begins with, if there are any."""
        if self.start:
            self.start.fill(part, network, self.recipe)


@dataclass(frozen=True)
class TrainVerb(Generic[Kind]):
    """What tells one train verb from another: its name, the task and the usual recipe, and `phases`, which yields one
    thing to train after the other and measures at its end what came of them; `then` is what is said to do next with a model.
    """

    name: str
    task: Task
    config: str
    phases: Callable[[Material[Kind], Bench], Iterator[Phase]]
    then: Callable[[Kind], str] = lambda recipe: "--volume PATIENT_FOLDER --out results"

    @preemptible()
    def run(self, data: Path, options: TrainingRun, *, device: str, data_root: Path | None) -> Run:
        """Train on the table `data`.

        Raises: ConfigError, ManifestError, ImageError; UsageError where `out` already holds something; CheckpointError;
        EnvironmentFault; Preempted; Diverged.
        """
        given = self.material(data, options, data_root=data_root)
        run = self.train(replace(given, manifest=with_splits(given.manifest)), options, device=device)
        log.info("next: medseg-diff %s --model %s %s", self.task, run.folder, self.then(given.recipe))
        return run

    def material(self, data: Path, options: TrainingRun, *, data_root: Path | None) -> Material[Kind]:
        """The recipe, and the table as it is, with the recipe's channels. Raises: ConfigError, ManifestError."""
        config = options.config or self.config
        is_file = config.endswith((".yaml", ".yml"))
        config = config if is_file else config.removeprefix(f"{self.task}/")  # as `info` prints it
        resampled: list[str] = [f"preparation.resample_to={options.resample_to}"] if options.resample_to else []
        recipe = cast(Kind, load_recipe(config, task=self.task, overrides=[*options.overrides, *resampled]))
        manifest = read_manifest(Path(data), data_root=data_root)
        check_channels(
            manifest,
            recipe.channels,
            fill_missing=recipe.bears_missing_channels,
            resample_to=recipe.preparation.resample_to,
        )
        name = Path(config).stem if is_file else config.replace("/", "-")
        command = ["medseg-diff", self.name, "--data", str(data), "--config", config, *options.overrides]
        command += ["--resample-to", options.resample_to] if options.resample_to else []
        command += ["--data-root", str(data_root)] if data_root else []
        command += ["--init-from", options.init_from] if options.init_from else []
        command += [] if options.mlflow else ["--no-mlflow"]
        start = WarmStart.of(options.init_from, recipe, runs=options.runs) if options.init_from else None
        return Material(recipe, name, manifest, options.runs / "cache", command, start)

    def train(self, given: Material[Kind], options: TrainingRun, *, device: str, study: Path | None = None) -> Run:
        """Into `options.out`, or a new run folder; of a fold `study` is the folder of all. Raises: what `run` raises."""
        job = Job(
            self.task,
            given.name,
            given.recipe,
            given.manifest,
            trainings=given.recipe.trainings,
            precision=given.recipe.training.precision,
            command=given.command,
            study=study,
            init_from=given.start.facts if given.start else None,
            overrides=options.overrides,
        )
        return train(
            job,
            partial(self.phases, given),
            out=options.out,
            runs=options.runs,
            device=device,
            resume=options.resume,
            watchers=[Curves(), *([Mirror(options.runs, parent=options.parent)] if options.mlflow else [])],
        )


class Curves(Watcher):
    """Draws figures/training.png when the training is over; first of the watchers, so that MLflow can be shown it.

    How fast it went is measured here and not kept: metrics.csv is the same for a training that goes on after a break."""

    def __init__(self) -> None:
        self.speed: list[Point] = []
        self._before: tuple[int, float, frozenset[str]] | None = None

    def metrics(self, step: int, numbers: Mapping[str, float]) -> None:
        """Steps a second since the last numbers, where no validation lies between, and no other phase."""
        now, names = time.monotonic(), frozenset(numbers)
        if self._before and names == self._before[2] and step > self._before[0]:
            phase = next(iter(numbers)).removesuffix("loss")
            self.speed.append(
                Point(step, f"{phase}steps per second", (step - self._before[0]) / (now - self._before[1]))
            )
        self._before = step, now, names

    def end(self, run: Run, *, finished: bool, weights: Sequence[Path]) -> None:
        from medseg_diff.reporting.curves import training_curves

        if finished:
            training_curves([*run.numbers(), *self.speed], run.figures / "training.png")


def averaged(progress: Progress, recipe: AnyRecipe) -> Denoiser:
    """The denoiser of the averaged weights, as it is at this moment of a training."""
    return recipe.denoiser.around(progress.averages["denoiser"], recipe.schedule)


def say_how_long(works: Sequence[Work], bench: Bench, *, quick: str) -> None:
    """`this machine: about 41 days …`, and where that is long, which quicker recipe there is."""
    device, precision = bench.fabric.device, bench.precision
    seconds = sum(work.seconds(device, precision, processes=bench.fabric.world_size) for work in works)
    amounts = " and ".join(f"{work.settings.steps} steps of {work.settings.batch}" for work in works)
    long = seconds > LONG_SECONDS and device.type == "cpu"
    advice = f"; try --config {quick}, or a machine with a GPU" if long else ""
    log.info("estimated time on this machine: about %s for %s (%s)%s", duration(seconds), amounts, precision, advice)
