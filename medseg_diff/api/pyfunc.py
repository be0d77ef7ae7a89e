"""A registered run as MLflow's generic model: `mlflow.pyfunc.load_model("models:/NAME/1").predict(table)`.

MLflow imports this module and gives it the folder of the run: weights in safetensors, nothing pickled.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_diff.api.anomaly import anomaly
from medseg_diff.api.models import LoadedModel, load_model
from medseg_diff.api.segment import segment
from medseg_diff.run import Run
from medseg_diff.tasks.apply.synthesise import synthesise

if TYPE_CHECKING:
    from pandas import DataFrame


def _load_pyfunc(path: str) -> "PyfuncModel":
    """What MLflow calls. Raises: CheckpointError where the folder is not the run that was registered."""
    run = Run(Path(path))
    run.verified(run.recipe_file)
    return PyfuncModel(run)


@dataclass
class PyfuncModel:
    """Rows of a table in, results in a folder out. Of a model that reads scans a row is a scan, `volume` as --volume takes
    it; of one that draws them an order: `number`, `covariates` (NAME=VALUE …) or `masks`, as `synthesise` takes them."""

    run: Run
    loaded: LoadedModel | None = None

    def predict(self, model_input: "DataFrame", params: Mapping[str, Any] | None = None) -> "DataFrame":
        """A row for each result: `row` of the input, `case` and its `folder` below params["out"].

        Raises: UsageError, ImageError, EnvironmentFault as the verb of the model's task.
        """
        from pandas import DataFrame

        asked: dict[str, Any] = {"out": "results", "seed": 0, "device": "auto"} | dict(params or {})
        rows = [
            {"row": row, "case": folder.name, "folder": str(folder)}
            for row, given in enumerate(model_input.to_dict("records"))
            for folder in self._folders(given, **asked)
        ]
        return DataFrame(rows, columns=["row", "case", "folder"])

    def _folders(self, given: Mapping[Any, Any], *, out: str, seed: int, device: str) -> Iterator[Path]:
        """The folders of the results of one row."""
        if self.run.facts["task"] == "synthesise":
            order = {name: value for name, value in given.items() if value == value and value not in (None, "")}
            order |= {"covariates": str(order["covariates"]).split()} if "covariates" in order else {}
            order |= {"number": int(order["number"])} if "number" in order else {}
            yield from synthesise(out, model=self.run.folder, seed=seed, device=device, **order)
            return
        self.loaded = self.loaded or load_model(self.run.folder, device=device)
        verb = segment if self.loaded.task == "segment" else anomaly
        yield verb(str(given["volume"]), model=self.loaded, out=out, seed=seed).folder  # type: ignore[union-attr, misc]
