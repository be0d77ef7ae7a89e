"""Trained models under a name and a version: a run folder's own files in MLflow's registry, checked when they come back."""

import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medseg_diff import __version__
from medseg_diff.errors import CheckpointError, UsageError, verbs_of
from medseg_diff.files import sha256_of
from medseg_diff.run import Run
from medseg_diff.tracking.about import description_of_version
from medseg_diff.tracking.store import answering, make_client
from medseg_diff.tracking.sync import complete

SCHEME = "models:/"
FOLDER, RUN = "model", "run"  # among the run's artifacts, and in the model's data
LOADER = "medseg_diff.api.pyfunc"
SUMS_TAG = "medseg_diff.sha256sums"
PLAIN = ("run.json", "environment.json", "SHA256SUMS")
NAME = re.compile(r"[\w.-]{1,64}")


class Registered(NamedTuple):
    """A model version, and the word that `--model` takes for it."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.name}/{self.version}"


def register(run: Run, store: Path, *, name: str, alias: str | None = None) -> Registered:
    """The run's sealed files as the next version of `name`; the version's source are the run's own artifacts.

    Raises: UsageError for an unfit name, CheckpointError where the run is unfinished or damaged, EnvironmentFault where
    MLflow does not answer.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"`{name}` is not a name for a model", fix="use letters, digits, dot, dash and underscore")
    files = _sealed_files(run)
    with answering(), tempfile.TemporaryDirectory() as temporary:
        completed = complete(run, store)
        client = make_client(store)
        _write_model(run, files, Path(temporary) / FOLDER)
        client.log_artifacts(completed.run_id, str(Path(temporary) / FOLDER), FOLDER)
        if name not in {model.name for model in client.search_registered_models(f"name = '{name}'")}:
            client.create_registered_model(name)
        root = client.get_run(completed.run_id).info.artifact_uri
        version = client.create_model_version(
            name,
            f"{root}/{FOLDER}",
            run_id=completed.run_id,
            tags={SUMS_TAG: sha256_of(run.folder / "SHA256SUMS"), "task": str(run.facts["task"])},
            description=description_of_version(run),
        )
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version))


def _write_model(run: Run, files: Sequence[Path], folder: Path) -> None:
    """The run's files as an MLflow model with a signature, which `medseg_diff.api.pyfunc` loads: code and safetensors."""
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / RUN
        for path in files:
            place = copy / path.relative_to(run.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        with warnings.catch_warnings(action="ignore"):  # MLflow asks for an example: that would be somebody's scan
            mlflow.pyfunc.save_model(
                folder,
                loader_module=LOADER,
                data_path=copy,
                signature=_signature(run.facts["task"]),
                pip_requirements=[f"medseg_diff=={__version__}"],
                metadata={"task": run.facts["task"], "recipe": run.facts["recipe"]},
            )


def _signature(task: str) -> Any:
    """What a row of a table holds, which results come of it, and where they go."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text, whole = DataType.string, DataType.long
    orders = [ColSpec(whole, "number", required=False)]
    orders += [ColSpec(text, name, required=False) for name in ("covariates", "masks")]
    inputs = orders if task == "synthesise" else [ColSpec(text, "volume")]
    results = [ColSpec(whole, "row"), ColSpec(text, "case"), ColSpec(text, "folder")]
    asked = [ParamSpec("out", text, "results"), ParamSpec("seed", whole, 0), ParamSpec("device", text, "auto")]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(results), params=ParamSchema(asked))


def fetch(uri: str, store: Path) -> Run:
    """The run folder of `models:/NAME/VERSION` or `models:/NAME@ALIAS`, brought to `store`/cache/models and verified.

    Raises: UsageError where there is no such model, CheckpointError where what came differs from its checksums,
    EnvironmentFault where MLflow does not answer.
    """
    name, version, alias = _parse(uri)
    with answering():
        client = make_client(store)
        found = _find(client, name, version, alias)
        sums = found.tags.get(SUMS_TAG)
        if not sums:
            raise CheckpointError(
                "was not registered by medseg-diff",
                fix="register it: medseg-diff runs register RUN --name NAME",
                file=uri,
            )
        folder = store / "cache" / "models" / f"{name}-{found.version}-{sums[:12]}"
        if not (folder / "run.json").is_file():
            _download(client, found.run_id, folder)
    run = Run(folder)
    if sha256_of(folder / "SHA256SUMS") != sums:
        raise CheckpointError("is not what was registered", fix=f"remove {folder.name} from the cache", file=uri)
    _sealed_files(run)
    return run


def _sealed_files(run: Run) -> list[Path]:
    """Every file that makes the model, verified. Raises: CheckpointError."""
    if not run.facts.get("finished"):
        fix = f"finish it: {verbs_of(run.facts['task']).train} --resume auto"
        raise CheckpointError("is not finished", fix=fix, file=run.name)
    return [*run.verified(run.recipe_file), *(run.folder / name for name in PLAIN if (run.folder / name).is_file())]


def _parse(uri: str) -> tuple[str, str | None, str | None]:
    """(name, version, alias), one of the last two."""
    found = re.fullmatch(r"models:/+([\w.-]+)(?:/(\d+)|@([\w.-]+))", uri)
    if not found:
        raise UsageError(f"`{uri}` does not name a model", fix="write models:/NAME/VERSION or models:/NAME@ALIAS")
    return found[1], found[2], found[3]


def _find(client: Any, name: str, version: str | None, alias: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        if version is not None:
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = [f"{SCHEME}{model.name}" for model in client.search_registered_models(max_results=10)]
        raise UsageError(
            f"the registry has no {SCHEME}{name}{f'/{version}' if version else f'@{alias}'}",
            fix=f"use one of {', '.join(known)}"
            if known
            else "register one: medseg-diff runs register RUN --name NAME",
        ) from None


def _download(client: Any, run_id: str, folder: Path) -> None:
    """Bring the files beside their final place, and rename: a cut download leaves nothing under the name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        came = Path(client.download_artifacts(run_id, FOLDER, temporary))
        came = came / "data" / RUN if (came / "data" / RUN).is_dir() else came  # as it was before there was a signature
        shutil.rmtree(folder, ignore_errors=True)
        came.replace(folder)
