"""Trained models under a name and a version: a run folder's own files in MLflow's registry, checked when they come back."""

import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from medseg_diff.errors import CheckpointError, UsageError, verbs_of
from medseg_diff.files import sha256_of
from medseg_diff.run import Run
from medseg_diff.tracking.store import Entry, answering, make_client
from medseg_diff.tracking.sync import complete

SCHEME = "models:/"
FOLDER = "model"  # among the run's artifacts
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
        raise UsageError(f"`{name}` is no name for a model", fix="use letters, digits, dot, dash and underscore")
    files = _sealed_files(run)
    with answering():
        completed = complete(run, store)
        client = make_client(store)
        entry = Entry(client, completed.run_id, known=True)
        for path in files:
            entry.file(path, str(PurePosixPath(FOLDER, path.relative_to(run.folder).parent.as_posix())))
        if name not in {model.name for model in client.search_registered_models(f"name = '{name}'")}:
            client.create_registered_model(name)
        root = client.get_run(completed.run_id).info.artifact_uri
        version = client.create_model_version(
            name,
            f"{root}/{FOLDER}",
            run_id=completed.run_id,
            tags={SUMS_TAG: sha256_of(run.folder / "SHA256SUMS"), "task": str(run.facts["task"])},
        )
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version))


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
        raise UsageError(f"`{uri}` names no model", fix="write models:/NAME/VERSION or models:/NAME@ALIAS")
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
        shutil.rmtree(folder, ignore_errors=True)
        came.replace(folder)
