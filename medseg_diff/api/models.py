"""A trained model that stays in memory: its weights are read once for any number of calls of `segment` or `anomaly`."""

from dataclasses import dataclass
from pathlib import Path

from medseg_diff.errors import CheckpointError, UsageError
from medseg_diff.recipes.anomaly import AnomalyRecipe
from medseg_diff.recipes.lookup import Task
from medseg_diff.recipes.segmentation import SegmentationRecipe
from medseg_diff.recipes.trained import Trained, find_models, task_of_model
from medseg_diff.tasks.apply.anomaly_ensemble import AnomalyModel
from medseg_diff.tasks.apply.segmentation_system import SegmentationModel
from medseg_diff.tasks.keywords import option
from medseg_diff.tasks.options import Compute


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A run, or a study of folds, on a device: what `model=` of `segment` or `anomaly` takes in the place of a folder."""

    opened: SegmentationModel | AnomalyModel

    @property
    def name(self) -> str:
        return self.opened.found.name

    @property
    def task(self) -> Task:
        """The verb that it is for."""
        return "segment" if isinstance(self.opened, SegmentationModel) else "anomaly"

    @property
    def channels(self) -> tuple[str, ...]:
        """What it reads, in this order."""
        return tuple(self._trained.recipe.channels)

    @property
    def device(self) -> str:
        return str(self._trained.device)

    @property
    def _trained(self) -> Trained[SegmentationRecipe] | Trained[AnomalyRecipe]:
        """The first of its runs."""
        return self.opened.trained if isinstance(self.opened, SegmentationModel) else self.opened.trained[0]

    def __repr__(self) -> str:
        return f"LoadedModel {self.name} for {self.task}, reads {', '.join(self.channels)}, on {self.device}"


@dataclass(frozen=True, kw_only=True)
class ModelOption:
    """Which model: a folder or a name as on the command line, or one that is loaded."""

    model: Path | LoadedModel | None = option(
        None,
        "Run or study of folds: folder or name, or what load_model returns [the newest, else `starter`].",
    )
    runs: Path = option(Path("runs"), "Where to look for the newest run.")


def load_model(
    model: str | Path | None = None,
    *,
    task: Task | None = None,
    device: str = "auto",
    precision: str | None = None,
    runs: str | Path = "runs",
) -> LoadedModel:
    """Read and verify a model's weights once, for any number of calls.

    Args:
        model: Run (also a study of folds): its folder or name [the newest of `task` below `runs`, else `starter`].
        task: segment or anomaly, where no model is named [segment].
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32 or bf16 [the recipe's].
        runs: Where to look for models by name.

    Raises: UsageError where there is none; CheckpointError where it is damaged or of another task; EnvironmentFault.
    """
    runs = Path(runs)
    wanted = task or ("segment" if model is None else task_of_model(model, runs=runs))
    compute = Compute(device=device, precision=precision)
    if wanted == "segment":
        return LoadedModel(SegmentationModel.load(find_models(model, task="segment", runs=runs), compute))
    if wanted == "anomaly":
        return LoadedModel(AnomalyModel.load(find_models(model, task="anomaly", runs=runs), compute))
    if task is None:
        raise CheckpointError(f"is a run for `{wanted}`", fix="name another model", file=Path(str(model)).name)
    raise UsageError(f"unknown task `{task}`", fix="use segment or anomaly")


def model_for(task: Task, asked: ModelOption, compute: Compute) -> SegmentationModel | AnomalyModel:
    """The model that a verb was given, opened where it is not yet.

    Where workers do the cases they open it once more, each for itself. Raises: UsageError where a loaded one is of another
    task, or asked to be elsewhere than it is; as `load_model`.
    """
    model = asked.model
    if not isinstance(model, LoadedModel):
        here = compute.here
        return load_model(model, task=task, device=here.device, precision=here.precision, runs=asked.runs).opened
    if model.task != task:
        raise UsageError(f"{model.name} is a model for `{model.task}`, not `{task}`", fix="load another")
    if compute.sharing:
        raise UsageError(
            f"{model.name} is loaded in this process, but workers open models themselves", fix="name its folder instead"
        )
    if (compute.device, compute.precision) != ("auto", None):
        fix = "pass device and precision to load_model instead"
        raise UsageError(f"{model.name} is already loaded on {model.device}", fix=fix)
    return model.opened
